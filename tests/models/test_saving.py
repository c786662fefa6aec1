"""A model comes out as it went in, and what cannot be saved is found before anything is generated."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sami.errors import InputError
from sami.loop.context import Run
from sami.models import generation_configs, loading, saving
from sami.pipeline import loop, run, start
from sami.recipe import Model, load_recipe
from tests.support.recipes import write_recipe
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

Folder = Callable[[str, bool], Path]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_with_equal_weights(model_folder: Folder, tmp_path: Path, dtype: torch.dtype) -> None:
    source = Model(source=str(model_folder("llama", True)))
    trained = loading.load_model(source, torch.float32)
    with torch.no_grad():
        trained.get_input_embeddings().weight += 1e-3
    expected = {name: weight.detach().to(dtype).clone() for name, weight in trained.named_parameters()}
    saving.save_model(trained, loading.load_tokenizer(source), tmp_path / "model", dtype)
    again = Model(source=str(tmp_path / "model"))
    loaded = loading.load_model(again, dtype)
    assert all(torch.equal(expected[name], weight) for name, weight in loaded.named_parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no temporary folder is left
    assert "sami" not in (tmp_path / "model" / "config.json").read_text()  # no attention of ours
    tokenizer = loading.load_tokenizer(again)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer("Why is the sky blue?")["input_ids"] == tiny_tokenizer()("Why is the sky blue?")["input_ids"]


def test_saving_that_fails_leaves_neither_folder_nor_rest(model_folder: Folder, tmp_path: Path) -> None:
    source = Model(source=str(model_folder("llama", True)))
    loaded, tokenizer = loading.load_model(source, torch.float32), loading.load_tokenizer(source)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    tokenizer.save_pretrained = full
    with pytest.raises(OSError, match="No space left"):
        saving.save_model(loaded, tokenizer, tmp_path / "model", torch.float32)
    assert list(tmp_path.iterdir()) == []


# Generation configs that transformers loads, or not even that, and refuses to save.

SHAPES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "sampling values without sampling": (
        "generation_config.json",
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"temperature", "top_p"},
    ),
    "only a temperature": ("generation_config.json", {"temperature": 0.6}, {"temperature"}),
    "top_k without sampling": ("generation_config.json", {"do_sample": False, "top_k": 1}, {"top_k"}),
    "beam values with one beam": (
        "generation_config.json",
        {"num_beams": 1, "length_penalty": 0.8, "early_stopping": True},
        {"length_penalty", "early_stopping"},
    ),
    "several greedy answers": ("generation_config.json", {"num_return_sequences": 4}, {"num_return_sequences"}),
    "scores without a dict": ("generation_config.json", {"output_scores": True}, {"output_scores"}),
    "an unknown cache": ("generation_config.json", {"cache_implementation": "magic"}, {"cache_implementation"}),
    "a token forced and suppressed": (
        "generation_config.json",
        {"suppress_tokens": [5, 6], "forced_bos_token_id": 5},
        {"forced_bos_token_id"},
    ),
    "sampling values in config.json": ("config.json", {"temperature": 0.7, "top_k": 10}, {"temperature", "top_k"}),
    "sampling": ("generation_config.json", {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, set()),
    "sampling in config.json": ("config.json", {"do_sample": True, "temperature": 0.7, "max_length": 50}, set()),
    "beams": ("generation_config.json", {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}, set()),
    "defaults by name": ("generation_config.json", {"temperature": 1.0, "top_p": None}, set()),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_generation_configs_are_repaired_at_the_start_and_saved(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, values, dropped = SHAPES[shape]
    folder = save_tiny(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    content = json.loads((folder / file).read_text()) if file == "config.json" else {"eos_token_id": [1, 7]}
    (folder / file).write_text(json.dumps(content | values))
    source = Model(source=str(folder))
    tokenizer = loading.load_tokenizer(source)
    saving.require_savable(source, tokenizer)
    said = capsys.readouterr().err
    assert {key for key in values if f"{key}=" in said} == dropped
    saving.save_model(loading.load_model(source, torch.float32), tokenizer, tmp_path / "saved", torch.float32)
    again = GenerationConfig.from_pretrained(tmp_path / "saved")
    kept = {key: value for key, value in values.items() if key not in dropped and value is not None}
    assert {key: getattr(again, key) for key in kept} == kept
    assert again.eos_token_id == (1 if file == "config.json" else [1, 7])


def test_the_check_runs_before_anything_is_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = load_recipe(write_recipe(tmp_path / "recipe", tmp_path / "model"))
    ready = start(recipe, tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("added tokens overlap")

    ready.tokenizer.save_pretrained = broken
    with pytest.raises(InputError, match="cannot be saved: added tokens overlap"):
        loop(ready)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(model_folder: Folder) -> None:
    source = Model(source=str(model_folder("llama", True)))
    tokenizer = loading.load_tokenizer(source)

    def other(folder: str) -> None:
        tiny_tokenizer(adds_bos=True).save_pretrained(folder)

    tokenizer.save_pretrained = other
    with pytest.raises(InputError, match="gives other tokens after it is saved"):
        saving.require_savable(source, tokenizer)


def test_values_of_a_generation_config_that_are_valid_are_left_alone(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    own = GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.3, eos_token_id=[1, 7])
    own.save_pretrained(folder)
    config, dropped = generation_configs.load(str(folder))
    assert (config.to_diff_dict(), dropped) == (GenerationConfig.from_pretrained(folder).to_diff_dict(), {})
    assert loading.load_model(Model(source=str(folder)), torch.float32).generation_config.repetition_penalty == 1.3


# A config that claims tied embeddings over a checkpoint with two different ones.


@pytest.mark.parametrize("process", [0, 1])
def test_embeddings_that_are_not_tied_stay_so_in_every_process(tmp_path: Path, process: int) -> None:
    folder = says_tied(tmp_path / "model")
    source = Model(source=str(folder))
    model: Any = loading.load_for_shards(source, torch.float32, process)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    if process == 0:
        saving.save_model(model, loading.load_tokenizer(source), tmp_path / "saved", torch.float32)
        saved: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(saved.lm_head.weight, tiny_model().lm_head.weight)
        assert not saved.config.tie_word_embeddings


def says_tied(folder: Path) -> Path:
    save_tiny(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


# Settings of a source go with what is made from it.

CODE = """
from transformers import LlamaForCausalLM


class DoubledForCausalLM(LlamaForCausalLM):
    def forward(self, *args, logits_to_keep=0, **kwargs):
        output = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
        output.logits = 2 * output.logits
        return output
"""


def test_code_that_comes_with_a_model_goes_with_what_is_trained_from_it(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "modeling_doubled.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_doubled.DoubledForCausalLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    changes = {"model__trust_remote_code": True, "training__iterations": 1, "training__steps": 1}
    recipe = load_recipe(write_recipe(tmp_path / "recipe", folder, **changes))
    run(recipe, tmp_path / "run")
    assert type(Run.open(tmp_path / "run").load(1)).__name__ == "DoubledForCausalLM"
