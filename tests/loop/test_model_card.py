"""The model card: its figures are the summary's, its code runs, and a model is not pushed without it."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sami.commands import push as push_command
from sami.errors import InputError
from sami.generation import SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.loop import model_card
from sami.loop.context import Run
from sami.loop.redaction import shareable
from sami.loop.results import Summary
from sami.models import sources
from sami.pipeline import run
from sami.recipe import Model, Recipe, load_recipe
from tests.support.command_line import Sami
from tests.support.recipes import PRINCIPLES, write_recipe

TOKEN = "hf_" + "s" * 34


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    recipe = write_recipe(
        folder / "recipe",
        model_folder("llama", False),
        training__iterations=1,
        training__steps=[2],
        adapter__r=4,
        adapter__lora_alpha=8,
    )
    run(load_recipe(recipe), folder / "run")
    return folder / "run"


def text_of(finished: Path, iteration: int) -> str:
    return (finished / f"iteration-{iteration}" / "model" / "README.md").read_text(encoding="utf-8")


def card_of(finished: Path, iteration: int = 2, **changes: Any) -> str:
    """The card of the run, with some arguments replaced."""
    opened = Run.open(finished)
    arguments = {
        "summary": Summary.read(opened.directory.summary),
        "iteration": iteration,
        "folder": opened.directory.model(iteration),
        "name": "run",
        "recipe": opened.recipe,
        "principles": opened.principles,
        "prompts": opened.prompts,
        "tokenizer": opened.tokenizer,
    }
    return model_card.card(**(arguments | changes))


# What the card says.


def test_every_trained_model_has_a_card_with_the_figures_of_the_summary(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    for number in (1, 2):
        text = text_of(finished_run, number)
        policy = summary["policies"][number]
        information = policy["information"]
        row = next(line for line in text.splitlines() if "learned principles: information under the frozen" in line)
        assert f"{information['base_bound']:.3f} [{information['base_low']:.3f}, {information['base_high']:.3f}]" in row
        gain = summary["comparisons"][number - 1]["learned"]["base_bound"]
        assert f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}], n {gain['n']}" in row
        rates = [cell for cell in summary["win_rates"] if cell["candidate"] == policy["name"]]
        assert rates
        for cell in rates:
            assert f"| {cell['scope'].replace('_', ' ')} | {cell['raw']['rate']:.1f} [" in text
        for failure in policy["health"]["failures"]:
            assert failure.split(" (")[0].replace("_", "\\_") in text
        assert all(principle["definition"] in text and principle["antithesis"] in text for principle in PRINCIPLES)
        assert text.count("no, held out") == 1
        assert "2404.14313" in text
    assert "@inproceedings{franken2024sami" in text_of(finished_run, 1)


def test_the_metadata_reads_back(finished_run, adapter_run):
    data = ModelCard.load(finished_run / "iteration-2" / "model" / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.model_name) == (
        "transformers",
        "text-generation",
        "run-iteration-2",
    )
    assert data.base_model is None  # a folder of this machine has no name on the hub
    summary = json.loads((finished_run / "summary.json").read_text())
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    expected = summary["policies"][2]["information"]["base_bound"]
    assert values["information_under_frozen_base"] == pytest.approx(expected, abs=1e-4)
    assert ModelCard.load(adapter_run / "iteration-1" / "model" / "README.md").data.library_name == "peft"


def test_no_path_of_this_machine_is_in_a_card(finished_run, adapter_run):
    for text in (text_of(finished_run, 1), text_of(adapter_run, 1)):
        assert not re.search(r"(?<![\w:/.])/(?:tmp|home|root|work|var|Users)/", text)
        assert str(finished_run.parent) not in text
    assert "path: queries.jsonl" in text_of(finished_run, 1)


def test_only_paths_are_shortened_and_servers_are_left_out(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    writer = {"url": "http://10.1.2.3:8000/v1", "model": "m", "key_variable": "PRIVATE_KEY"}
    whole = {
        "model": {"source": str(tmp_path / "weights")},
        "queries": {"path": str(tmp_path / "q.jsonl")},
        "principles": {"task": "answering", "writer": writer},
        "prompt": {"system": "~ /no_think " + "long " * 100, "response_prefix": "a/b"},
        "generation": {"first_model": str(tmp_path / "writer")},
        "evaluation": {"judges": [{"kind": "endpoint", "model": "j", "url": "http://10.1.2.3:8001/v1"}]},
    }
    values = shareable(Recipe.model_validate(whole))
    assert values["prompt"]["system"] == whole["prompt"]["system"]
    assert values["prompt"]["response_prefix"] == "a/b"
    assert values["model"]["source"] == "weights"
    assert values["generation"]["first_model"]["source"] == "writer"
    assert values["queries"]["path"] == "q.jsonl"
    assert values["principles"]["writer"]["model"] == "m"
    assert "10.1.2.3" not in str(values)
    assert str(tmp_path) not in str(values)


def test_a_recipe_of_the_hub_names_base_and_data(finished_run):
    recipe = Run.open(finished_run).recipe
    hub = recipe.model_copy(
        update={
            "model": Model(source="owner/base-model"),
            "queries": recipe.queries.model_copy(update={"path": "owner/queries"}),
        }
    )
    data = ModelCard(card_of(finished_run, recipe=hub)).data
    assert (data.base_model, data.datasets) == ("owner/base-model", ["owner/queries"])


def test_a_card_names_broken_limits_and_warns(finished_run):
    summary = Summary.read(finished_run / "summary.json")
    summary.policies[2].health.failures = ["loops rose from 0 % to 40 % (limit 3 points)"]
    text = card_of(finished_run, summary=summary)
    assert "Health limits are broken" in text
    assert "loops rose from 0 % to 40 %" in text
    assert "iteration-2 is not called better than base: loops rose from 0 %" in text
    assert "fewer than 50 queries" in text  # three queries are few, and win rates must say so
    assert "All health limits of the run hold" not in text


def test_texts_cannot_leave_their_cell(finished_run):
    opened = Run.open(finished_run)
    hostile = "A | B\n\n# Title <script>alert(1)</script> [x](javascript:1) ```\n{{ 7 * 7 }}"
    principles = [opened.principles[0].model_copy(update={"definition": hostile}), *opened.principles[1:]]
    text = card_of(finished_run, principles=principles)
    row = next(line for line in text.splitlines() if line.startswith("| brief"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    assert "<script>" not in row
    assert "\\[x\\](" in row
    assert "49" not in row
    assert "\n# Title" not in text
    # The example states the definition in code: its fence is longer than any in it.
    fence = re.search(r"^(`{3,})python$", text, re.MULTILINE)
    assert fence is not None
    assert len(fence[1]) == 4


# Its code.


def answer_of_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    code = re.search(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code[1], "README.md", "exec"), {})
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.parametrize("kind", ["transformers", "peft"])
def test_the_code_of_the_card_answers_as_the_run_does(kind, request, monkeypatch, capsys):
    finished = request.getfixturevalue("finished_run" if kind == "transformers" else "adapter_run")
    opened = Run.open(finished)
    folder = opened.directory.model(opened.iteration())
    assert f"from {kind} import" in (folder / "README.md").read_text()
    told = answer_of_the_card(folder, monkeypatch, capsys)
    text = opened.principles[0].definition
    prompt = opened.prompts.generation_prompt("Why is the sky blue?", [text], text)
    settings = SamplingSettings(max_new_tokens=opened.recipe.generation.max_new_tokens)
    answer, base = (
        TransformersEngine(opened.load(number), opened.tokenizer).generate([prompt], settings)[0].text
        for number in (opened.iteration(), 0)
    )
    assert told == answer
    assert kind == "peft" or told != base


# License and fingerprint.


def test_the_license_is_read_where_the_weights_come_from(tmp_path):
    assert model_card.base_license(Model(source=str(tmp_path))) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert model_card.base_license(Model(source=str(tmp_path))) == "apache-2.0"
    (tmp_path / sources.SOURCE_FILE).write_text('{"license": "mit"}')  # converted weights
    assert model_card.base_license(Model(source=str(tmp_path))) == "mit"
    assert model_card.base_license(Model(source="nobody/nothing")) is None


def test_a_card_is_no_part_of_the_weights(finished_run, tmp_path):
    folder = shutil.copytree(finished_run / "iteration-1" / "model", tmp_path / "model")
    before = sources.fingerprint(Model(source=str(folder)))
    (folder / "README.md").write_text("another")
    assert sources.fingerprint(Model(source=str(folder))) == before


# Uploading.


class StubHub:
    """Records what is asked of the hub, and fails where it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.calls = failure, []

    def __call__(self) -> "StubHub":
        return self

    def whoami(self) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        return {"name": "me"}

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        self.calls.append(("create", repo_id, settings))
        return type("Url", (str,), {"repo_id": f"me/{repo_id}"})(f"https://hub.example/me/{repo_id}")

    def upload_folder(self, **settings: Any) -> None:
        self.calls.append(("upload", settings))


def refused(status: int) -> HfHubHTTPError:
    request = SimpleNamespace(method="POST", url="https://hub.example", headers={"authorization": f"Bearer {TOKEN}"})
    response = SimpleNamespace(status_code=status, headers={}, request=request)
    return HfHubHTTPError(f"{status} for Bearer {TOKEN}", response=response)


@pytest.fixture
def push(sami, monkeypatch) -> Sami:
    def call(hub: StubHub, *arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(push_command, "HfApi", hub)
        code, out, err = sami("push", *arguments)
        assert TOKEN not in out + err
        return code, out, err

    return call


def test_the_model_and_its_card_are_uploaded(finished_run, push):
    hub = StubHub()
    assert push(hub, finished_run, "principles", "--private") == (0, "https://hub.example/me/principles\n", "")
    create, upload = hub.calls
    assert create == ("create", "principles", {"private": True, "exist_ok": True})
    assert upload[1]["repo_id"] == "me/principles"
    sent = {path.name for path in Path(upload[1]["folder_path"]).iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= sent
    files = [path for path in finished_run.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (refused(403), "refused owner/name with 403"),
        (refused(401), "refused owner/name with 401"),
        (OfflineModeIsEnabled(f"offline {TOKEN}"), "HF_HUB_OFFLINE is set"),
        (ConnectionError(f"{TOKEN}"), "could not be reached"),
        (push_command.HTTPError(f"Illegal header value b'Bearer {TOKEN}'"), "could not be reached"),
    ],
)
def test_what_the_hub_refuses_is_said_without_the_token(finished_run, push, failure, words):
    hub = StubHub(failure)
    code, out, err = push(hub, finished_run, "owner/name")
    assert (code, out, hub.calls) == (2, "", [])
    assert words in err


def test_without_a_token_one_is_told_how_to_log_in(finished_run, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(InputError, match="hf auth login"):
        push_command.push(Run.open(finished_run), "owner/name")


def test_what_others_could_not_use_is_not_uploaded(finished_run, adapter_run, tmp_path):
    with pytest.raises(InputError, match="folder of this machine"):
        push_command.push(Run.open(adapter_run), "owner/name")
    with pytest.raises(InputError, match="is not a valid repository id"):
        push_command.push(Run.open(finished_run), "a/b/c d")
    unevaluated = shutil.copytree(finished_run, tmp_path / "run")
    model = unevaluated / "iteration-2" / "model"
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + "\n")
    with pytest.raises(InputError, match="model changed after the step train-2"):
        push_command.push(Run.open(unevaluated), "owner/name")
    (model / "config.json").write_text(config)
    (model / "README.md").unlink()
    with pytest.raises(InputError, match="has no card"):
        push_command.push(Run.open(unevaluated), "owner/name")
