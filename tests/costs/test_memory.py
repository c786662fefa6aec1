"""Bytes of each phase, by hand, against autograd, and for GPUs that are not here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sami.contrasts import collate
from sami.costs.estimate import Costs, Gpus, _largest_change, plan
from sami.costs.memory import GIB, MASTER, Lengths, Needs, Shape, host_bytes, needs, require_possible
from sami.errors import InputError
from sami.models import attention
from sami.models.devices import activation_bytes
from sami.models.known import SHAPES, known_config
from sami.recipe import Model, Recipe, load_recipe
from sami.scoring.logprobs import scored_states
from tests.support.command_line import Sami
from tests.support.recipes import write_recipe
from tests.support.tiny import ARCHITECTURES, random_contrast, tiny_model

PUBLISHED = {"Mistral-7B": 7_241_732_096, "Mixtral-8x7B": 46_702_792_704, "Meta-Llama-3-70B": 70_553_706_496}
LENGTHS = Lengths(prompt=500, generation_prompt=600, response=100)


def shape_of(source: str) -> Shape:
    config = known_config(Model(source=source))
    assert config is not None
    return Shape.of(config)


def phases(recipe: Recipe, processes: int = 1, **more: Any) -> dict[str, Needs]:
    settings: dict[str, Any] = {"dtype": torch.bfloat16, "device_bytes": 80 * GIB} | more
    found = needs(shape_of(recipe.model.source), recipe, LENGTHS, processes=processes, **settings)
    return {one.phase: one for one in found}


@pytest.mark.parametrize("source", SHAPES)
def test_a_known_shape_has_the_published_number_of_weights(source: str) -> None:
    assert shape_of(source).total == next(n for name, n in PUBLISHED.items() if name in source)


def test_a_token_passes_two_of_eight_experts() -> None:
    mixtral, mistral = shape_of("mistralai/Mixtral-8x7B-v0.1"), shape_of("mistralai/Mistral-7B-v0.1")
    assert mixtral.active + 2 * mixtral.head == pytest.approx(12.9e9, rel=0.01)  # as its authors say
    assert mistral.active + 2 * mistral.head == mistral.total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_shape(architecture: str) -> None:
    model = tiny_model(architecture)
    shape = Shape.of(model.config)
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    assert shape.layers == 2
    assert 0 < shape.active <= shape.total


def test_one_process_holds_masters_gradients_states_and_a_copy() -> None:
    recipe = load_recipe("paper/hh-mistral-7b")
    total = PUBLISHED["Mistral-7B"]
    parts = phases(recipe)["training"].parts
    assert parts["float32 weights"] == parts["gradients"] == 4 * total
    assert parts["adamw states"] == 8 * total
    assert parts["bfloat16 copy"] == 2 * total
    parts = phases(recipe, dtype=torch.float32)["training"].parts
    assert "float32 copy" not in parts
    assert "bfloat16 copy" not in parts


def test_processes_share_all_but_what_is_gathered() -> None:
    recipe = load_recipe("paper/hh-mistral-7b")
    alone, eight, sixteen = (phases(recipe, n)["training"].parts for n in (1, 8, 16))
    for part in ("float32 weights", "gradients", "adamw states"):
        assert eight[part] == pytest.approx(alone[part] / 8)
        assert sixteen[part] == pytest.approx(alone[part] / 16)
    assert eight["gathered weights"] == sixteen["gathered weights"]
    assert eight["activations"] == alone["activations"]
    assert set(phases(recipe, 8)) == {"training", "generation", "scoring"}


def test_the_first_of_several_processes_holds_whole_weights_on_its_host() -> None:
    recipe, total = load_recipe("paper/hh-mistral-7b"), PUBLISHED["Mistral-7B"]
    shape = shape_of(recipe.model.source)
    assert [host_bytes(shape, recipe, n) for n in (1, 8)] == [0, 4 * total]
    saving = load_recipe("paper/hh-mistral-7b", ["training.checkpoint_steps=2"])
    assert host_bytes(shape, saving, 8) == 8 * total  # both states of AdamW


def test_a_model_is_spread_over_gpus_only_where_one_cannot_hold_it() -> None:
    recipe, total = load_recipe("paper/tldr-mixtral-8x7b-weak-writer"), PUBLISHED["Mixtral-8x7B"]
    for gpus, device, devices, models in (
        (8, 80, 8, 4 * total / 8),
        (1, 80, 1, 4 * total),
        (8, 320, 1, 4 * total),
        # In fp32, to check packed rows, over all; base on one in bf16, and of the policy an eighth beside it.
        (8, 140, 8, 2 * total + 2 * total / 8),
    ):
        scoring = phases(recipe, 16, device_bytes=device * GIB, gpus=gpus)["scoring"]
        assert (scoring.devices, scoring.parts["policy and base"]) == (devices, pytest.approx(models)), (gpus, device)
    served = load_recipe("paper/tldr-mixtral-8x7b-weak-writer", ["generation={engine: transformers}"])
    generation = phases(served, 16, gpus=8)["generation"]
    assert (generation.devices, generation.parts["weights"]) == (8, pytest.approx(2 * total / 8))


def test_an_adapter_trains_a_small_part_beside_a_frozen_base() -> None:
    recipe = load_recipe("paper/hh-mistral-7b", ["adapter={}", "launch.processes=1"])
    parts = phases(recipe, adapter_weights=1000)["training"].parts
    assert parts["float32 weights"] == 4000
    assert parts["frozen base"] == 2 * PUBLISHED["Mistral-7B"]


def test_narrow_masters_take_half() -> None:
    recipe = load_recipe("paper/hh-mistral-7b", ["training.master_weights=bfloat16", "launch.processes=1"])
    parts = phases(recipe)["training"].parts
    assert parts["bfloat16 weights"] == 2 * PUBLISHED["Mistral-7B"]
    assert parts["adamw states"] == 4 * PUBLISHED["Mistral-7B"]
    assert "bfloat16 copy" not in parts


def test_activations_shrink_with_each_setting_that_is_there_for_it() -> None:
    def kept(*overrides: str) -> int:
        plain = [
            "training.gradient_checkpointing=false",
            "training.gradient_cache=false",
            "training.micro_batch_size=4",
        ]
        return phases(load_recipe("paper/tldr-mistral-7b", [*plain, *overrides]))["training"].parts["activations"]

    assert kept("training.micro_batch_size=2") == kept() / 2
    assert kept("training.gradient_cache=true") == kept() / 2  # one of two constitutions
    assert kept("training.gradient_checkpointing=true") < kept() / 10
    row, layers, hidden, inner = 500 + 2 * 100, 32, 4096, 14336
    assert kept() == 4 * 2 * row * layers * (10 * hidden + 4 * inner) * 2


def test_the_cache_is_on_where_the_trainer_would_turn_it_on() -> None:
    def kept(device: float) -> int:
        recipe = load_recipe("paper/tldr-mistral-7b", ["training.gradient_checkpointing=false"])
        return phases(recipe, device_bytes=device)["training"].parts["activations"]

    needed = kept(2**50)
    held = MASTER * PUBLISHED["Mistral-7B"]
    assert kept(held + 2.01 * needed) == needed
    assert kept(held + 1.99 * needed) == needed / 2


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 4096}),
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}),
        ("qwen2", {}),
    ],
)
def test_activations_are_those_that_autograd_keeps(kind: str, more: dict[str, Any]) -> None:
    def kept(layers: int) -> tuple[float, Any]:
        sizes = {"hidden_size": 256, "intermediate_size": 896, "num_attention_heads": 4, "num_key_value_heads": 1}
        config = AutoConfig.for_model(kind, vocab_size=400, num_hidden_layers=layers, head_dim=64, **sizes, **more)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        attention.install(model)
        contrasts = [random_contrast(i, prompt_tokens=(300, 300), response_tokens=(60, 60)) for i in range(2)]
        batch = collate(contrasts, 2)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        seen: dict[int, int] = {}
        alive = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # so that no other tensor takes its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scored_states(model, batch)
        return sum(seen.values()) / batch.input_ids.numel(), config

    (one, config), (three, _) = kept(1), kept(3)
    assert (three - one) / 2 == pytest.approx(activation_bytes(config, 1, torch.bfloat16), rel=0.15)


# Rounding.


def test_the_largest_change_is_that_of_the_optimiser() -> None:
    for name, optimizer in (("rmsprop", torch.optim.RMSprop), ("adamw", torch.optim.AdamW)):
        recipe = load_recipe("paper/diverse-llama3-70b", [f"training.optimizer={name}", "training.lr=1e-3"])
        weight = torch.nn.Parameter(torch.zeros(1))
        steps = optimizer([weight], lr=1e-3)
        for _ in range(recipe.training.steps_of(3)):
            weight.grad = torch.full((1,), 0.5)
            steps.step()
        assert _largest_change(recipe, 3) == pytest.approx(-weight.item(), rel=1e-3)


def test_no_recipe_of_the_paper_trains_what_rounding_undoes() -> None:
    for name in ("hh-mistral-7b", "tldr-mistral-7b", "tldr-mixtral-8x7b-weak-writer", "diverse-llama3-70b"):
        warnings = plan(load_recipe(f"paper/{name}"), Gpus(16), hub=False).warnings
        assert "rounded" not in " ".join(warnings)
    papers = plan(load_recipe("paper/hh-mistral-7b", ["training.lr=5e-7"]), Gpus(8), hub=False)
    assert "most weights will not change once rounded to bfloat16" in " ".join(papers.warnings)


# GPUs that are not here, a hub that does not answer.


def planned(name: str, gpus: Gpus, *overrides: str) -> Costs:
    return plan(load_recipe(f"paper/{name}", overrides), gpus, hub=False)


def test_without_a_hub_known_models_are_planned_from_what_is_known() -> None:
    costs = planned("tldr-mistral-7b", Gpus(8))
    assert costs.parameters == PUBLISHED["Mistral-7B"]
    assert costs.estimated is not None
    assert "no hub" in costs.estimated
    assert costs.contrasts == [384, 768, 1152]
    assert 400 < costs.prompt_tokens < 500  # a post of 313 tokens on average, with its constitution
    assert (costs.training_queries, costs.evaluation_queries) == (4096, 250)


def test_models_of_7b_fit_on_eight_gpus_of_80_gib() -> None:
    for name in ("hh-mistral-7b", "tldr-mistral-7b"):
        costs = planned(name, Gpus(8, 80))
        assert costs.misfits == []
        assert costs.as_json()["fits"] is True


def test_what_does_not_fit_says_what_to_change() -> None:
    (misfit,) = planned("hh-mistral-7b", Gpus(1, 80)).misfits
    assert misfit.startswith("Training needs")
    assert "Set launch.processes=2 (one for each GPU of as many)." in misfit
    fewer = planned("tldr-mistral-7b", Gpus(8, 40), "generation.batch_size=128")
    assert any(
        "Set generation.batch_size=64." in one or "Set generation.batch_size=32." in one for one in fewer.misfits
    )


def test_fp32_masters_of_the_large_models_fit_on_two_machines_of_eight_gpus_of_80_gib() -> None:
    for name in ("tldr-mixtral-8x7b-weak-writer", "diverse-llama3-70b", "diverse-llama3-70b-cot"):
        eight, sixteen = planned(name, Gpus(8, 80)), planned(name, Gpus(16, 80))
        assert any(one.startswith("Training needs") and "launch.processes=16" in one for one in eight.misfits)
        assert sixteen.misfits == []


def test_a_plan_for_other_gpus_than_the_recipe_launches_says_so() -> None:
    assert "launch.processes=4" in " ".join(planned("hh-mistral-7b", Gpus(4)).warnings)
    assert "launches" not in " ".join(planned("hh-mistral-7b", Gpus(8)).warnings)


def test_more_processes_train_faster() -> None:
    assert (
        planned("tldr-mistral-7b", Gpus(8)).seconds["training"]
        < planned("tldr-mistral-7b", Gpus(4)).seconds["training"]
    )


def test_an_unknown_model_without_a_hub_is_an_error(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "someone/a-model")
    with pytest.raises(InputError, match="someone/a-model cannot be loaded"):
        plan(load_recipe(recipe), Gpus(8), hub=False)


def test_a_mistake_in_the_recipe_is_no_estimate(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "mistralai/Mistral-7B-v0.1", prompt__style="plain")
    assert plan(load_recipe(recipe), Gpus(8), hub=False).contrasts == [9, 14]
    with pytest.raises(InputError, match="only 3 principles"):
        plan(load_recipe(recipe, ["sampling.principles_per_constitution=4"]), Gpus(8), hub=False)
    (tmp_path / "queries.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="query"):
        plan(load_recipe(recipe), Gpus(8), hub=False)


def test_a_missing_key_of_a_judge_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY, which is not set" in " ".join(planned("hh-mistral-7b", Gpus(8)).warnings)


def test_the_command_prints_memory_and_exits_with_2_where_it_does_not_fit(
    sami: Sami,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = sami("plan", "paper/hh-mistral-7b", "--gpus", 8, "--gpu-memory", 80)
    assert code == 0
    assert "Memory on each device" in out
    assert "does not fit" not in out
    code, out, err = sami("plan", "paper/hh-mistral-7b", "--gpus", 2, "--gpu-memory", 24, "--json")
    value = json.loads(out)
    assert (code, value["fits"]) == (2, False)
    assert {phase["phase"] for phase in value["memory"]} == {"training", "generation", "scoring"}
    assert err.startswith("sami: Training needs")


# A run that cannot fit.


def test_a_run_whose_weights_cannot_fit_is_refused_before_anything_is_written(
    sami: Sami,
    tmp_path: Path,
    model_folder: Callable[[str, bool], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = write_recipe(tmp_path / "recipe", model_folder("llama", True))
    weights = sum(weight.numel() for weight in tiny_model("llama").parameters())

    class Memory:
        total = 16 * weights

    monkeypatch.setattr("sami.costs.memory.psutil.virtual_memory", Memory)
    code, out, err = sami("run", recipe, "--output", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "The model cannot fit: training needs at least" in err
    assert "sami plan RECIPE --gpus" in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_fits_is_not_refused(tmp_path: Path, model_folder: Callable[[str, bool], Path]) -> None:
    require_possible(load_recipe(write_recipe(tmp_path, model_folder("llama", True))), torch.float32, 0)
