"""Every recipe that comes with the package runs whole in miniature: no network, a CPU, seconds."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from sami.commands.smoke import _tokenizer, smoked
from sami.contrasts import read_contrasts
from sami.models.known import Family
from sami.pipeline import run
from sami.recipe import PACKAGED_RECIPES, Recipe, load_recipe
from sami.recipe.loading import packaged_recipes
from tests.support.recipes import write_recipe

NAMES = [str(path.relative_to(PACKAGED_RECIPES).with_suffix("")) for path in packaged_recipes()]
ARCHITECTURES = {
    "base-model": "Gemma3ForCausalLM",
    "weak-to-strong": "Gemma3ForCausalLM",
    "paper/hh-mistral-7b": "MistralForCausalLM",
    "paper/tldr-mistral-7b": "MistralForCausalLM",
    "paper/tldr-mixtral-8x7b-weak-writer": "MixtralForCausalLM",
    "paper/diverse-llama3-70b": "LlamaForCausalLM",
    "paper/diverse-llama3-70b-cot": "LlamaForCausalLM",
}


@pytest.fixture
def no_network(monkeypatch) -> None:
    """A connection to anything but this machine fails the test."""
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_runs_whole(sami, name, tmp_path, no_network, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = sami("run", name, "--smoke", "--json", "--output", tmp_path / "run")
    assert code == 0, err
    assert "figures mean nothing" in err
    recipe, summary = load_recipe(name), json.loads(out)
    iterations = recipe.training.iterations
    policies = ["base", *(f"iteration-{i}" for i in range(1, iterations + 1))]
    baselines = [one.name for one in recipe.evaluation.baselines]
    assert [p["name"] for p in summary["policies"]] == policies + baselines
    model = json.loads((tmp_path / "run" / f"iteration-{iterations}" / "model" / "config.json").read_text())
    assert model["architectures"] == [ARCHITECTURES.get(name, "LlamaForCausalLM")]
    tokenizer = (tmp_path / "run" / f"iteration-{iterations}" / "model" / "tokenizer.json").read_text()
    bytes_within = model["architectures"] == ["LlamaForCausalLM"]  # Llama 3, SmolLM2
    assert ('"ByteLevel"' in tokenizer, '"ByteFallback"' in tokenizer) == (bytes_within, not bytes_within)
    for i in range(1, iterations + 1):
        trained = read_contrasts(tmp_path / "run" / f"iteration-{i}" / "contrasts.parquet")
        assert trained
        assert all(len(c.prompt_ids) == recipe.sampling.constitutions for c in trained)
        steps = (tmp_path / "run" / f"iteration-{i}" / "metrics.jsonl").read_text().splitlines()
        assert len(steps) == i
    judged = {(r["candidate"], r["baseline"], r["judge"]) for r in summary["win_rates"]}
    judges = ["verifier" if j.kind == "verifier" else "scripted-1" for j in recipe.evaluation.judges]
    assert judged == {(c, b, j) for c in policies[1:] for b in ["base", *baselines] for j in judges}


def test_all_experiments_of_the_paper_are_among_them():
    assert set(ARCHITECTURES) <= set(NAMES)


def test_only_answers_are_trained_where_reasoning_comes_first(tmp_path):
    recipe = load_recipe("paper/diverse-llama3-70b-cot", ["training.iterations=1", "training.steps=1"])
    marker = recipe.generation.chain_of_thought.marker
    with smoked(recipe, tmp_path / ".smoke") as tiny:
        summary = run(tiny, tmp_path / "run")
    contrasts = read_contrasts(tmp_path / "run" / "iteration-1" / "contrasts.parquet")
    assert contrasts
    assert not any(marker in response for c in contrasts for response in c.responses)
    counted = summary["contrasts"]["iteration-1"]
    assert counted["generated"] == counted["kept"] + counted["dropped"]["unsplit"]


# What is changed, and what is not.


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[tuple[Recipe, Recipe]]:
    recipe = load_recipe("paper/tldr-mixtral-8x7b-weak-writer")
    with smoked(recipe, tmp_path_factory.mktemp("smoke")) as tiny:
        yield recipe, tiny


def test_what_makes_the_experiment_stays(both):
    recipe, tiny = both
    assert tiny.sampling == recipe.sampling
    assert tiny.prompt == recipe.prompt
    assert (tiny.principles.task, tiny.principles.names) == (recipe.principles.task, recipe.principles.names)
    assert tiny.principles.writer.kind == "scripted"
    kept = "iterations restart_from optimizer contrast per_token train_eos gradient_checkpointing"
    for name in kept.split():
        assert getattr(tiny.training, name) == getattr(recipe.training, name)
    assert [b.name for b in tiny.evaluation.baselines] == [b.name for b in recipe.evaluation.baselines]


def test_the_tiny_model_is_of_the_recipes_architecture(both):
    config = AutoConfig.from_pretrained(both[1].model.source)
    assert config.model_type == "mixtral"
    assert (config.num_local_experts, config.num_experts_per_tok) == (4, 2)
    instruct = AutoConfig.from_pretrained(both[1].evaluation.baselines[0].model.source)
    assert instruct.model_type == "mistral"


def test_base_models_have_no_chat_template_and_instruct_models_have_one(both):
    assert AutoTokenizer.from_pretrained(both[1].model.source).chat_template is None
    assert AutoTokenizer.from_pretrained(both[1].evaluation.baselines[0].model.source).chat_template is not None


def test_nothing_of_the_recipes_own_servers_is_left(both):
    assert [judge.name for judge in both[1].evaluation.judges] == ["scripted-1"]
    assert all(judge.url.startswith("http://127.0.0.1:") for judge in both[1].evaluation.judges)
    assert both[1].launch.total == 1


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_tokenizers_give_back_every_text(kind):
    texts = ["The post is about bread.", "Why do people like rain?"] * 4
    tokenizer = _tokenizer(Family("llama", kind, begins=True, chat=False), texts)
    for text in ("The post", "naïve 日本語 🙂", "two\n\nlines  and spaces"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("The post is about bread.")["input_ids"]) < len("The post is about bread.") / 2
    words = [name for name in tokenizer.get_vocab() if name.startswith("▁") and len(name) > 2]
    assert bool(words) == (kind == "sentencepiece")


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3", "qwen3"])
def test_a_local_models_folder_tells_its_family(model_folder, architecture, tmp_path):
    source = model_folder(architecture, True)
    recipe = load_recipe(write_recipe(tmp_path / "recipe", source))
    with smoked(recipe, tmp_path / "smoke") as tiny:
        config = AutoConfig.from_pretrained(tiny.model.source)
        assert config.model_type == AutoConfig.from_pretrained(source).model_type
        assert AutoTokenizer.from_pretrained(tiny.model.source).chat_template is not None


def test_a_name_that_tells_no_architecture_is_refused(sami, tmp_path):
    recipe = write_recipe(tmp_path, "someone/a-model")
    code, out, err = sami("run", recipe, "--smoke", "--output", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "someone/a-model does not tell its architecture" in err
    assert "mixtral, mistral" in err
    assert not (tmp_path / "run").exists()


def test_a_stopped_smoke_run_continues(sami, tmp_path, model_folder):
    recipe = write_recipe(tmp_path / "recipe", model_folder("llama", True))
    arguments = ("run", recipe, "--smoke", "--output", tmp_path / "run")
    assert sami(*arguments)[0] == 0
    model = tmp_path / "run" / "iteration-2" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    code, _, err = sami(*arguments)
    assert code == 0, err
    assert model.stat().st_mtime_ns == before


def test_planning_a_smoke_run_writes_nothing(sami, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = sami("plan", "paper/diverse-llama3-70b", "--smoke", "--json")
    assert code == 0
    assert json.loads(out)["steps"] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []
