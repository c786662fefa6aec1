"""Judges inside a run: what the summary says, baselines, new judges on a finished run, and kill -9."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from sami.contrasts import read_contrasts
from sami.errors import InputError
from sami.evaluation import ask, comparison
from sami.evaluation.judges import make_judge
from sami.evaluation.verdicts import read_verdicts
from sami.models import loading
from sami.pipeline import Pipeline, run
from sami.recipe import Model, Recipe, load_recipe
from tests.support import chat_templates
from tests.support.faulty_server import Request, serving
from tests.support.garbage import freeze_libraries
from tests.support.recipes import timeless, write_recipe
from tests.support.tiny import tiny_model

SHORT = {"training__iterations": 1, "training__steps": 2}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), model_folder("llama", True), **SHORT)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe) -> Path:
    """A finished run of one iteration, judged by its verifiers. Tests read it only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(load_recipe(recipe), folder)
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def rejudge(recipe: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    return Pipeline(load_recipe(recipe, overrides), folder).judge()


def local(model: Path, name: str = "tiny") -> str:
    return f"evaluation.judges=[verifier, {{kind: local, model: {model}, name: {name}}}]"


def test_the_summary_carries_verifier_win_rates_against_base(finished):
    summary = json.loads((finished / "summary.json").read_text())
    cells = {cell["scope"]: cell for cell in summary["win_rates"]}
    assert set(cells) == {"all", "learned", "held_out"}
    for cell in cells.values():
        assert (cell["candidate"], cell["baseline"], cell["judge"]) == ("iteration-1", "base", "verifier")
        assert {"raw", "stratified", "length_controlled"} <= cell.keys()
        assert 0 <= cell["raw"]["low"] <= cell["raw"]["rate"] <= cell["raw"]["high"] <= 100
        assert cell["queries"] == 3
        assert cell["first_position_rate"] == 50.0  # verifiers read no order
        assert cell["judge_accuracy"] is None
    # 3 queries with 3 principles that have a verifier, 2 constitutions, 2 orders; the fourth has none.
    assert cells["all"]["judgements"] == 36
    assert cells["held_out"]["judgements"] == 12
    assert summary["verdict"].startswith("iteration-1 is ")
    assert "n 3 queries (verifier, whose checks define the answer)" in summary["verdict"]


def test_the_win_rate_is_what_the_verifiers_said_of_the_responses(finished):
    passed = {
        name: {
            (v["contrast"], v["constitution"]): v["passed"]
            for v in json.loads((finished / "evaluation" / "scores" / f"{name}.json").read_text())["verdicts"]
        }
        for name in ("base", "iteration-1")
    }
    wins = [0.5 + 0.5 * (passed["iteration-1"][key] - passed["base"][key]) for key in passed["base"]]
    [cell] = [c for c in json.loads((finished / "summary.json").read_text())["win_rates"] if c["scope"] == "all"]
    assert cell["raw"]["rate"] == pytest.approx(100 * sum(wins) / len(wins))


def test_a_judge_at_chance_is_refused_and_can_be_forced_and_is_asked_once(recipe, copy, model_folder, monkeypatch):
    judges = local(model_folder("gpt2", False))
    with pytest.raises(InputError, match=r"not above chance.*--force"):
        rejudge(recipe, copy, judges)
    verdicts = read_verdicts(copy / "evaluation" / "verdicts.jsonl")
    assert {v.judge for v in verdicts} == {"verifier"}
    summary = rejudge(recipe, copy, judges, "evaluation.force=true")
    [cell] = [c for c in summary["win_rates"] if (c["judge"], c["scope"]) == ("tiny", "all")]
    assert cell["judgements"] == 48
    assert cell["judge_accuracy"]["above_chance"] is False
    assert cell["judge_accuracy"]["low"] <= cell["judge_accuracy"]["accuracy"] <= cell["judge_accuracy"]["high"]
    assert "tiny, judge accuracy" in summary["verdict"]
    assert "not above chance" in summary["verdict"]
    assert [a["judges"] for a in summary["agreement"]] == [["verifier", "tiny"]]
    assert [j["judge"] for j in summary["judges"]] == ["verifier", "tiny"]
    # The verifier's part is what it was.
    before = json.loads((copy / "summary.json").read_text())
    assert [c for c in summary["win_rates"] if c["judge"] == "verifier"] == [
        c for c in before["win_rates"] if c["judge"] == "verifier"
    ]
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
    assert rejudge(recipe, copy, judges, "evaluation.force=true") == summary


def test_other_settings_of_a_finished_run_are_still_refused(recipe, copy):
    with pytest.raises(InputError, match=r"evaluation\.seed: 0 there, 1 now"):
        rejudge(recipe, copy, "evaluation.seed=1")


# Baselines.


def test_a_model_an_earlier_run_and_a_file_are_baselines(recipe, copy, finished, model_folder, tmp_path):
    ids = {q.text: q.id for q in Pipeline(load_recipe(recipe), copy).context.prepared.splits.evaluation}
    rows = [
        {"id": ids[c.query], "constitution": text, "response": "YES?"}
        for c in read_contrasts(copy / "evaluation" / "responses" / "base.parquet")
        for text in c.constitutions
    ]
    (tmp_path / "yes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baselines = [
        {"name": "plain", "model": str(model_folder("gpt2", False))},
        {"name": "earlier", "run": str(finished)},
        {"name": "yes", "responses": str(tmp_path / "yes.jsonl")},
    ]
    summary = rejudge(recipe, copy, f"evaluation.baselines={json.dumps(baselines)}")
    cells = {c["baseline"]: c for c in summary["win_rates"] if c["scope"] == "all"}
    assert list(cells) == ["base", "plain", "earlier", "yes"]
    assert {c["judgements"] for c in cells.values()} == {36}
    # The earlier run's model is this run's: every pair is a tie.
    assert (cells["earlier"]["raw"]["rate"], cells["earlier"]["ties"]) == (50.0, 36)
    # "YES?" is short, loud and a question, so it follows each definition and no antithesis.
    assert [(p["name"], p["iteration"]) for p in summary["policies"]] == [
        ("base", 0),
        ("iteration-1", 1),
        ("plain", None),
        ("earlier", None),
        ("yes", None),
    ]
    yes = summary["policies"][-1]
    assert yes["verifier"]["learned"]["value"] == 0.5
    assert yes["health"]["words"] == 1.0
    assert yes["information"]["bound"] is None
    assert yes["principles"]["asking"] == {"learned": False, "bound": None, "verifier_rate": 0.5}
    lines = (tmp_path / "yes.jsonl").read_text().splitlines()
    (tmp_path / "yes.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"The responses of the baseline yes lack 1 of the run's 24"):
        rejudge(recipe, copy, f"evaluation.baselines={json.dumps(baselines)}")


@pytest.mark.parametrize("train", ["sft", "dpo"])
def test_baselines_are_trained_on_the_contrasts_of_the_run(recipe, copy, train):
    pytest.importorskip("trl", reason="the extra `baselines` is not installed")
    baselines = json.dumps([{"name": "other", "train": train}])
    summary = rejudge(recipe, copy, f"evaluation.baselines={baselines}")
    assert [c["baseline"] for c in summary["win_rates"] if c["scope"] == "all"] == ["base", "other"]
    assert {p.name for p in (copy / "baselines" / "other").iterdir()} == {"model"}
    base = tiny_model("llama").state_dict()
    trained = load_file(copy / "baselines" / "other" / "model" / "model.safetensors")
    changes = {name: float((trained[name] - base[name]).abs().max()) for name in trained}
    # Two Adam steps of 3e-3 from the base weights reach no further than their sum.
    assert 1e-3 < max(changes.values()) <= 6e-3 * 1.05
    before = {path: path.stat().st_mtime_ns for path in (copy / "baselines").rglob("*")}
    assert rejudge(recipe, copy, f"evaluation.baselines={baselines}") == summary
    assert {path: path.stat().st_mtime_ns for path in (copy / "baselines").rglob("*")} == before


def test_an_earlier_run_whose_weights_changed_is_no_baseline(recipe, copy, tmp_path):
    earlier = shutil.copytree(copy, tmp_path / "earlier")
    config = earlier / "iteration-1" / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    baselines = json.dumps([{"name": "earlier", "run": str(earlier)}])
    with pytest.raises(InputError, match=r"earlier/iteration-1/model changed after the step train-1"):
        rejudge(recipe, copy, f"evaluation.baselines={baselines}")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.judges=[{kind: human, path: nowhere.jsonl}]", "nowhere.jsonl"),
        ("evaluation.judges=[{kind: local, model: /nowhere/model}]", "/nowhere/model"),
        ("evaluation.judges=[{kind: endpoint, model: m, key_variable: NO_SUCH_KEY}]", "NO_SUCH_KEY"),
        ("evaluation.baselines=[{name: a, responses: nowhere.jsonl}]", "nowhere.jsonl"),
        ("evaluation.baselines=[{name: a, run: nowhere}]", "not a run with a trained model"),
        ("evaluation.baselines=[{name: a, model: /nowhere/model}]", "/nowhere/model"),
    ],
)
def test_judges_and_baselines_that_cannot_work_are_refused_before_anything_is_done(recipe, tmp_path, override, words):
    with pytest.raises(InputError, match=words):
        run(load_recipe(recipe, [override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (chat_templates.DROPS_QUERY, "does not show the query"),
        (chat_templates.CHATML.replace("{{ m.content }}", "{{ m.content }}" + " so" * 500), "the context of"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "run"])
def test_prompts_of_a_baseline_are_checked_before_anything_is_done(
    recipe: Path, copy: Path, tmp_path: Path, kind: str, template: str, words: str
) -> None:
    model = copy / "iteration-1" / "model"
    tokenizer = loading.load_tokenizer(Model(source=str(model)))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    baseline = json.dumps([{"name": "other", kind: str(model if kind == "model" else copy)}])
    with pytest.raises(InputError, match=words):
        run(load_recipe(recipe, [f"evaluation.baselines={baseline}"]), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_judges_see_the_date_of_the_run(recipe: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dates = []

    def watched(settings, given):
        dates.append(given.date)
        return make_judge(settings, given)

    monkeypatch.setattr(comparison, "make_judge", watched)
    rejudge(recipe, copy)
    assert dates == [yaml.safe_load((copy / "recipe.yaml").read_text())["prompt"]["date"]]
    assert dates[0] is not None


# A server.


def answer_first(request: Request) -> None:
    request.say("Verdict: A")


def test_a_server_judges_a_run_and_its_tokens_are_counted(recipe, copy):
    with serving(answer_first) as server:
        judge = {"kind": "endpoint", "url": server.url, "model": "m", "prompt_price": 1.0, "name": "first"}
        settings = (f"evaluation.judges=[{json.dumps(judge)}]", "evaluation.force=true")
        summary = rejudge(recipe, copy, *settings)
        asked = len(server.requests)
        assert rejudge(recipe, copy, *settings)["judges"] == summary["judges"]
        assert len(server.requests) == asked
    [account] = summary["judges"]
    assert account["versions"] == ["judge-2026-01-01 fp_1"]
    assert account["prompt_tokens"] == 100 * asked
    assert account["cost"] == pytest.approx(1e-4 * asked)
    assert account["calibration"]["position_lean"] == 50.0
    [cell] = [c for c in summary["win_rates"] if c["scope"] == "all"]
    assert cell["first_position_rate"] > 90  # identical responses are ties without a question
    recorded = yaml.safe_load((copy / "recipe.yaml").read_text())
    assert recorded["evaluation"]["judges"][0]["name"] == "first"


# kill -9.


def _judge_until(recipe: Recipe, folder: Path, stop: int | None) -> None:
    append, written = ask.append_verdict, 0

    def deadly(path: Path, verdict: Any) -> None:
        nonlocal written
        written += 1
        append(path, verdict)
        if written == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    freeze_libraries()
    ask.append_verdict = deadly
    Pipeline(recipe, folder).judge()


def test_judging_that_was_killed_ends_with_the_summary_of_one_that_was_not(recipe, finished, tmp_path, model_folder):
    resolved = load_recipe(recipe, [local(model_folder("gpt2", False)), "evaluation.force=true"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.loop.test_judge", "sami.generation.transformers_engine"])
    folders = {name: shutil.copytree(finished, tmp_path / name) for name in ("killed", "through")}
    for folder in folders.values():
        (folder / "evaluation" / "verdicts.jsonl").unlink()  # verifiers judge again too
    exits = []
    for name, stop in (("killed", 20), ("killed", 30), ("killed", None), ("through", None)):
        process = context.Process(target=_judge_until, args=(resolved, folders[name], stop))
        process.start()
        process.join(timeout=120)
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders.values()]
    assert timeless(summaries[0]) == timeless(summaries[1])
    for file in ("verdicts.jsonl", "calibration/verdicts.jsonl"):
        killed, through = (sorted((f / "evaluation" / file).read_text().splitlines()) for f in folders.values())
        assert killed == through
        assert len(through) == len(set(through)) > 30
