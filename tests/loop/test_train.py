"""What `sami plan` assumes about training is what a run does and what the trainer would do by itself."""

from dataclasses import replace
from typing import Any

import pytest

from sami.contrasts import Contrast
from sami.costs.estimate import Costs, Gpus, plan
from sami.errors import InputError
from sami.loop.context import Run
from sami.loop.train import arguments, starting_point
from sami.prepared import prepare
from sami.recipe import Recipe, load_recipe
from sami.training import SAMIConfig, SAMITrainer
from tests.support.recipes import write_recipe
from tests.support.tiny import random_contrast

RECIPES = pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["launch.processes=2"],
        ["adapter={}"],
        ["training.master_weights=bfloat16", "model.dtype=bfloat16"],
        ["model.dtype=bfloat16"],
        ["training.gradient_checkpointing=true"],
        ["training.optimizer=rmsprop"],
        ["training.beta=0.1"],
        ["training.share_prefix=false"],
        ["training.micro_batch_size=3"],
    ],
    ids=" ".join,
)


@pytest.fixture
def load(tmp_path, model_folder, monkeypatch) -> Any:
    """`load(*overrides)`: a recipe of a tiny model."""
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e9)
    monkeypatch.setattr("sami.costs.estimate.memory_rate", lambda: 1e9)
    file = write_recipe(tmp_path, model_folder("llama", True))
    return lambda *overrides: load_recipe(file, overrides)


def training_parts(costs: Costs) -> dict[str, int]:
    return next(phase.parts for phase in costs.memory if phase.phase == "training")


def longest_contrasts(recipe: Recipe) -> list[Contrast]:
    """Contrasts whose rows are as long as those that a plan expects."""
    prepared = prepare(recipe)
    planned = [*prepared.training_plan(1), *prepared.evaluation_plan()]
    prompts = [prepared.prompts.training_prompt(p.query, c.texts, c.text) for p in planned for c in p.constitutions]
    longest, response = max(map(len, prompts)), recipe.generation.max_new_tokens
    lengths = {"prompt_tokens": (longest, longest), "response_tokens": (response, response)}
    return [random_contrast(seed, **lengths) for seed in range(4)]


@RECIPES
def test_plan_run_and_trainer_use_the_gradient_cache_at_the_same_memory(load, tmp_path, monkeypatch, overrides):
    recipe = load(*overrides)
    contrasts, processes = longest_contrasts(recipe), recipe.launch.total
    whole = training_parts(plan(load(*overrides, "training.gradient_cache=false")))
    kept = whole["activations"]
    held = sum(whole.values()) - kept - whole["logits"]
    loaded = sum(whole.get(name, 0) for name in ("float32 weights", "bfloat16 weights", "frozen base", "reference"))

    def free(value):
        for place in ("models.devices", "training.trainer"):
            monkeypatch.setattr(f"sami.{place}.free_bytes", lambda *_: value)

    for share, cached in ((2.02, False), (1.98, True)):
        device = held + share * kept
        free(device * processes)
        planned = training_parts(plan(recipe))
        assert (planned["activations"] < kept) == cached
        run = Run.start(recipe, tmp_path / f"run-{share}")
        with run.opened():
            settings = arguments(run, 1, contrasts)
            assert settings.gradient_cache == cached
            free(device * processes * (100 if cached else 0.01))
            assert arguments(run, 1, contrasts).gradient_cache == cached  # once decided, kept
            if processes > 1:
                continue
            free(device - loaded)
            undecided = replace(settings, gradient_cache=None, output_dir=str(tmp_path / "trainer"))
            inputs = {"args": undecided, "train_dataset": contrasts, "processing_class": run.tokenizer}
            trainer = SAMITrainer(**starting_point(run, 0), **inputs)
            trainer.train()
            assert trainer.gradient_cache == cached


@RECIPES
def test_plan_and_run_take_the_same_micro_batches(load, tmp_path, overrides):
    recipe = load(*overrides, "training.gradient_cache=false")
    run = Run.start(recipe, tmp_path / "run")
    with run.opened():
        settings = arguments(run, 1, longest_contrasts(recipe))
    micro, processes = settings.per_device_train_batch_size, recipe.launch.total
    assert micro == recipe.training.micro_batch(processes) == 2 if "launch" not in str(overrides) else 1
    assert micro * settings.gradient_accumulation_steps * processes == recipe.training.batch_size
    one = training_parts(plan(load(*overrides, "training.gradient_cache=false", "training.micro_batch_size=1")))
    assert training_parts(plan(recipe))["activations"] == pytest.approx(micro * one["activations"], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "conflict"),
    [
        ({"beta": 0.1, "processes": 2}, "one process only"),
        ({"master_weights": "bfloat16", "processes": 2, "dtype": "bfloat16"}, "shard float32 weights"),
        ({"master_weights": "bfloat16", "dtype": "float32"}, "computes in float32"),
        ({"beta": 0.1}, None),
        ({"master_weights": "bfloat16", "dtype": "bfloat16"}, None),
        ({"processes": 2}, None),
    ],
    ids=str,
)
def test_recipe_trainer_and_plan_refuse_the_same_settings(load, tmp_path, monkeypatch, settings, conflict):
    values = {"beta": 0.0, "master_weights": "float32", "processes": 1, "dtype": "float32"} | settings
    shared = [f"training.{name}={values[name]}" for name in ("beta", "master_weights")]
    shared.append(f"model.dtype={values['dtype']}")
    monkeypatch.setattr(SAMIConfig, "world_size", property(lambda _: values["processes"]))
    chosen = {name: values[name] for name in ("beta", "master_weights")} | {"compute_dtype": values["dtype"]}

    def recipe():
        return load(*shared, f"launch.processes={values['processes']}")

    def trainer():
        return SAMIConfig(output_dir=str(tmp_path), use_cpu=True, **chosen)

    if conflict is None:
        recipe()
        trainer()
    else:
        for refused in (recipe, trainer):
            with pytest.raises(InputError, match=conflict):
                refused()
    if values["processes"] == 1 and conflict is None:  # a plan for more GPUs launches what the recipe could
        several = plan(load(*shared), Gpus(4)).processes
        assert several == (4 if load(*shared).conflict(4) is None else 1)


def test_warmup_of_a_recipe_has_an_effect(load, tmp_path):
    run = Run.start(load("training.steps=4", "training.warmup_steps=2"), tmp_path / "run")
    inputs = {"train_dataset": [random_contrast(seed) for seed in range(4)], "processing_class": run.tokenizer}
    with run.opened():
        trainer = SAMITrainer(**starting_point(run, 0), args=arguments(run, 1, inputs["train_dataset"]), **inputs)
        trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates[0] < rates[1] < rates[2] == rates[3]
