"""What a run will cost: counts, bytes and seconds that follow from the recipe, and nothing is written."""

import json

import pytest
import torch

from sami.costs.estimate import Gpus, _largest_change, matrix_rate, memory_rate, plan
from sami.errors import InputError
from sami.prepared import prepare
from sami.recipe import load_recipe
from tests.support.recipes import write_recipe
from tests.support.tiny import tiny_model


@pytest.fixture
def recipe(tmp_path, model_folder):
    return write_recipe(tmp_path, model_folder("llama", True))


@pytest.fixture
def tiny(recipe):
    """`tiny(*overrides)`: the costs of a tiny model's recipe on this machine."""
    return lambda *overrides: plan(load_recipe(recipe, overrides))


@pytest.fixture(autouse=True)
def a_fixed_matrix_rate(monkeypatch):
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e9)
    monkeypatch.setattr("sami.costs.estimate.memory_rate", lambda: 1e9)


def papers(name, gpus, *overrides):
    return plan(load_recipe(f"paper/{name}", overrides), gpus, hub=False)


# This machine.


def test_counts_follow_from_the_recipe(tiny):
    costs = tiny()
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


def test_prompts_are_counted_with_the_models_tokenizer(tiny, recipe):
    prepared = prepare(load_recipe(recipe))
    planned = [*prepared.training_plan(1), *prepared.evaluation_plan()]
    lengths = [
        len(prepared.prompts.training_prompt(p.query, [c.text], c.text)) for p in planned for c in p.constitutions
    ]
    assert tiny().prompt_tokens == pytest.approx(sum(lengths) / len(lengths), abs=0.05)


def test_twice_the_steps_take_twice_the_training(tiny):
    once, twice = tiny("training.steps=[2, 3]"), tiny("training.steps=[4, 6]")
    # Nearly: the prompts whose mean length is taken are others.
    assert twice.seconds["training"] == pytest.approx(2 * once.seconds["training"], rel=0.1)
    assert twice.seconds["scoring"] == once.seconds["scoring"]


def test_planning_needs_no_weights(tmp_path, model_folder, monkeypatch):
    from sami.models import loading

    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    for architecture in ("gpt2", "gemma3", "mixtral"):
        path = write_recipe(tmp_path / architecture, model_folder(architecture, True))
        costs = plan(load_recipe(path))
        assert costs.parameters == sum(weight.numel() for weight in tiny_model(architecture).parameters())


def test_too_little_memory_is_a_misfit_with_the_setting_that_helps(tiny, monkeypatch):
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 1000)
    assert "No setting makes it fit" in " ".join(tiny().misfits)
    needed = tiny().training_bytes
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: needed - 1)
    misfit = next(one for one in tiny().misfits if one.startswith("Training needs"))
    assert misfit.endswith("Set training.micro_batch_size=1.")
    monkeypatch.setattr("sami.models.devices.free_bytes", lambda: 2**40)
    assert tiny().misfits == []


def test_rates_are_those_of_this_machine():
    assert 1e8 < matrix_rate(torch.float32) < 1e16
    assert 1e7 < memory_rate() < 1e14


# Warnings.


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["model.dtype=bfloat16", "training.lr=5e-7"], "once rounded to bfloat16"),
        (["model.dtype=float32", "training.lr=5e-7"], None),
        (["model.dtype=bfloat16", "training.lr=2e-5"], None),
        (["model.dtype=bfloat16", "training.master_weights=bfloat16", "training.lr=1.5e-5"], "loses most steps"),
        (["model.dtype=bfloat16", "training.master_weights=bfloat16", "training.lr=3e-5"], None),
        (["launch.address=here:29500"], "launch.address=here:29500 has no effect with one node"),
    ],
    ids=str,
)
def test_settings_that_lose_steps_or_change_nothing_are_warned_about(tiny, overrides, warning):
    found = " ".join(tiny(*overrides).warnings)
    assert found == "" if warning is None else warning in found


def test_the_largest_change_is_that_of_the_optimizer():
    for name, optimizer in (("rmsprop", torch.optim.RMSprop), ("adamw", torch.optim.AdamW)):
        recipe = load_recipe("paper/diverse-llama3-70b", [f"training.optimizer={name}", "training.lr=1e-3"])
        weight = torch.nn.Parameter(torch.zeros(1))
        steps = optimizer([weight], lr=1e-3)
        for _ in range(recipe.training.steps_of(3)):
            weight.grad = torch.full((1,), 0.5)
            steps.step()
        assert _largest_change(recipe, 3) == pytest.approx(-weight.item(), rel=1e-3)


def test_no_recipe_of_the_paper_trains_what_rounding_undoes():
    for name in ("hh-mistral-7b", "tldr-mistral-7b", "tldr-mixtral-8x7b-weak-writer", "diverse-llama3-70b"):
        assert "rounded" not in " ".join(papers(name, Gpus(16)).warnings)


def test_a_missing_key_of_a_judge_is_a_warning(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "OPENAI_API_KEY, which is not set" in " ".join(papers("hh-mistral-7b", Gpus(8)).warnings)


# GPUs that are not present, a hub that does not answer.


def test_without_a_hub_known_models_are_planned_from_what_is_known():
    costs = papers("tldr-mistral-7b", Gpus(8))
    assert costs.parameters == 7_241_732_096
    assert costs.estimated is not None
    assert "no hub" in costs.estimated
    assert costs.contrasts == [384, 768, 1152]
    assert 400 < costs.prompt_tokens < 500  # a post of 313 tokens on average, with its constitution
    assert (costs.training_queries, costs.evaluation_queries) == (4096, 250)
    assert costs.seconds["training"] < papers("tldr-mistral-7b", Gpus(4)).seconds["training"]


def test_models_of_7b_fit_on_eight_gpus_of_80_gib():
    for name in ("hh-mistral-7b", "tldr-mistral-7b"):
        costs = papers(name, Gpus(8, 80))
        assert costs.misfits == []
        assert costs.as_json()["fits"] is True
        assert "launches" not in " ".join(costs.warnings)
    assert "launch.processes=4" in " ".join(papers("hh-mistral-7b", Gpus(4)).warnings)  # the recipe launches 8


def test_fp32_masters_of_the_large_models_fit_on_two_machines_of_eight_gpus_of_80_gib():
    for name in ("tldr-mixtral-8x7b-weak-writer", "diverse-llama3-70b", "diverse-llama3-70b-cot"):
        eight, sixteen = papers(name, Gpus(8, 80)), papers(name, Gpus(16, 80))
        assert any(one.startswith("Training needs") and "launch.processes=16" in one for one in eight.misfits)
        assert sixteen.misfits == []


def test_what_does_not_fit_says_what_to_change():
    (misfit,) = papers("hh-mistral-7b", Gpus(1, 80)).misfits
    assert misfit.startswith("Training needs")
    assert "Set launch.processes=2 (on 2 GPUs)." in misfit
    fewer = papers("tldr-mistral-7b", Gpus(8, 40), "generation.batch_size=128").misfits
    assert any("Set generation.batch_size=64." in one or "Set generation.batch_size=32." in one for one in fewer)


def test_a_mistake_is_an_error_without_a_hub_too(tmp_path):
    with pytest.raises(InputError, match="someone/a-model cannot be loaded"):
        plan(load_recipe(write_recipe(tmp_path / "unknown", "someone/a-model")), Gpus(8), hub=False)
    recipe = write_recipe(tmp_path, "mistralai/Mistral-7B-v0.1", prompt__style="plain")
    assert plan(load_recipe(recipe), Gpus(8), hub=False).contrasts == [9, 14]
    for overrides, message in (
        (["sampling.principles_per_constitution=4"], "only 3 principles"),
        (["training.estimator=nwj"], "'nwj', which does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            plan(load_recipe(recipe, overrides), Gpus(8), hub=False)
    (tmp_path / "queries.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="query"):
        plan(load_recipe(recipe), Gpus(8), hub=False)


# The command.


def test_plan_prints_the_recipe_and_the_costs_and_writes_nothing(sami, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = sami("plan", recipe, "training.lr=0.5")
    assert code == 0
    for expected in ("training.lr", "[0.5]", "training.weight_decay", "9 in iteration 1", "2, 3", "GiB", "Decoupled"):
        assert expected in out
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_refuses_what_run_would_refuse(sami, recipe):
    with (recipe.parent / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"query": f"{n} " + "Why? " * 400}) + "\n" for n in range(12))
    code, out, err = sami("plan", recipe)
    assert (code, out) == (2, "")
    assert "is 1024" in err


def test_plan_prints_json_and_exits_with_2_if_it_does_not_fit(sami, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, _ = sami("plan", "paper/hh-mistral-7b", "--gpus", 8)
    assert code == 0
    assert "Memory on each device" in out
    assert "does not fit" not in out
    code, out, err = sami("plan", "paper/hh-mistral-7b", "--gpus", 2, "--gpu-memory", 24, "--json")
    value = json.loads(out)
    assert (code, value["fits"]) == (2, False)
    assert value["recipe"]["training"]["steps"] == [2, 4, 6]
    assert {phase["phase"] for phase in value["memory"]} == {"training", "generation", "scoring"}
    assert set(value["seconds"]) == {"generation", "training", "scoring", "starting"}
    assert err.startswith("sami: Training needs")


@pytest.mark.parametrize("option", [["--gpu-memory", 24], ["--gpu-tflops", 989]], ids=str)
def test_gpus_are_not_described_without_their_number(sami, recipe, option):
    code, out, err = sami("plan", recipe, *option)
    assert (code, out) == (2, "")
    assert "Add --gpus N" in err
