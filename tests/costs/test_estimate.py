"""What a run will cost: counts and bytes that follow from the recipe, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sami.costs.estimate import Costs, matrix_rate, memory_rate, plan
from sami.prepared import prepare
from sami.recipe import load_recipe
from tests.support.command_line import Sami
from tests.support.recipes import write_recipe
from tests.support.tiny import tiny_model

Folder = Callable[[str, bool], Path]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Folder) -> Path:
    return write_recipe(tmp_path, model_folder("llama", True))


@pytest.fixture(autouse=True)
def a_fixed_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e9)
    monkeypatch.setattr("sami.costs.estimate.memory_rate", lambda: 1e9)


def test_counts_follow_from_the_recipe(recipe: Path) -> None:
    costs = plan(load_recipe(recipe))
    assert costs.parameters == sum(weight.numel() for weight in tiny_model("llama").parameters())
    assert (costs.training_queries, costs.evaluation_queries) == (8, 3)
    assert costs.win_rate_queries == 783
    assert costs.steps == [2, 3]
    assert costs.contrasts == [9, 14]  # 8 and 12, and a tenth more
    # Two responses of six tokens for each contrast; base and two policies answer 3 queries x 4 principles.
    assert costs.generated_tokens == 2 * 6 * (9 + 14 + 3 * 12)
    assert costs.trained_tokens == pytest.approx((2 + 3) * 4 * 2 * (costs.prompt_tokens + 12), rel=1e-3)
    # Base scores its own, and base and policy score those of each of two policies.
    assert costs.scored_tokens == pytest.approx(5 * 12 * 2 * (costs.prompt_tokens + 12), rel=1e-3)


def test_prompts_are_counted_with_the_models_tokenizer(recipe: Path) -> None:
    costs = plan(load_recipe(recipe))
    prepared = prepare(load_recipe(recipe))
    planned = [*prepared.training_plan(1), *prepared.evaluation_plan()]
    lengths = [
        len(prepared.prompts.training_prompt(p.query, [c.text], c.text)) for p in planned for c in p.constitutions
    ]
    assert costs.prompt_tokens == pytest.approx(sum(lengths) / len(lengths), abs=0.05)


def test_twice_the_steps_take_twice_the_training(recipe: Path) -> None:
    once, twice = (plan(load_recipe(recipe, [f"training.steps={steps}"])) for steps in ([2, 3], [4, 6]))
    # Nearly: the prompts whose mean length is taken are others.
    assert twice.seconds["training"] == pytest.approx(2 * once.seconds["training"], rel=0.1)
    assert twice.trained_tokens == pytest.approx(2 * once.trained_tokens, rel=0.02)
    assert twice.seconds["scoring"] == once.seconds["scoring"]


def test_planning_writes_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    monkeypatch.chdir(place)
    before = sorted(tmp_path.rglob("*"))
    plan(load_recipe(recipe))
    assert sorted(tmp_path.rglob("*")) == before


def test_planning_needs_no_weights(tmp_path: Path, model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    from sami.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    for architecture in ("gpt2", "gemma3", "mixtral"):
        path = write_recipe(tmp_path / architecture, model_folder(architecture, True))
        costs = plan(load_recipe(path))
        assert costs.parameters == sum(weight.numel() for weight in tiny_model(architecture).parameters())


def test_a_rate_that_bf16_hides_is_warned_about(recipe: Path) -> None:
    def warnings(*overrides: str) -> str:
        return " ".join(plan(load_recipe(recipe, overrides)).warnings)

    assert "bfloat16" in warnings("model.dtype=bfloat16", "training.lr=5e-7")
    assert "bfloat16" not in warnings("model.dtype=float32", "training.lr=5e-7")
    assert "bfloat16" not in warnings("model.dtype=bfloat16", "training.lr=2e-5")


def test_bf16_masters_take_half_the_memory_and_ask_for_steps_that_rounding_keeps(recipe: Path) -> None:
    def costs(*overrides: str) -> Costs:
        return plan(load_recipe(recipe, ["model.dtype=bfloat16", "training.lr=1.5e-5", *overrides]))

    whole, narrow = costs(), costs("training.master_weights=bfloat16")
    assert whole.training_bytes - narrow.training_bytes == (4 * 4 + 2 - 2 * 4) * whole.parameters
    assert whole.warnings == []
    assert "lost one by one" in " ".join(narrow.warnings)
    assert costs("training.master_weights=bfloat16", "training.lr=3e-5").warnings == []


def test_too_little_memory_is_warned_about(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 1000)
    assert "No setting makes it fit" in " ".join(plan(load_recipe(recipe)).misfits)
    needed = plan(load_recipe(recipe)).training_bytes
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: needed - 1)
    misfit = next(one for one in plan(load_recipe(recipe)).misfits if one.startswith("Training needs"))
    assert misfit.endswith("Set training.micro_batch_size=1.")
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 2**40)
    assert plan(load_recipe(recipe)).misfits == []


def test_training_memory_holds_weights_gradients_and_optimizer(recipe: Path) -> None:
    adamw, rmsprop = (plan(load_recipe(recipe, [f"training.optimizer={name}"])) for name in ("adamw", "rmsprop"))
    assert adamw.training_bytes - rmsprop.training_bytes == 4 * adamw.parameters
    assert adamw.training_bytes > 16 * adamw.parameters


def test_the_matrix_rate_is_that_of_this_machine() -> None:
    assert 1e8 < matrix_rate(torch.float32) < 1e16
    assert 1e7 < memory_rate() < 1e14


def test_plan_prints_the_recipe_and_the_costs(
    sami: Sami,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = sami("plan", recipe, "training.lr=0.5")
    assert code == 0
    for expected in (
        "training.lr",
        "[0.5]",
        "training.weight_decay",
        "9 in iteration 1",
        "2, 3",
        "GiB",
        "Decoupled",
        "783 held-out",
    ):
        assert expected in out
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_refuses_what_run_would_refuse(sami: Sami, recipe: Path) -> None:
    with (recipe.parent / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"query": f"{n} " + "Why? " * 400}) + "\n" for n in range(12))
    code, out, err = sami("plan", recipe)
    assert (code, out) == (2, "")
    assert "is 1024 tokens" in err


def test_plan_prints_json(sami: Sami, recipe: Path) -> None:
    code, out, _ = sami("plan", recipe, "--json")
    value = json.loads(out)
    assert code == 0
    assert value["recipe"]["training"]["steps"] == [2, 3]
    assert value["contrasts"] == [9, 14]
    assert set(value["seconds"]) == {"generation", "training", "scoring", "starting"}
