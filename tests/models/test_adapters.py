"""An adapter is trained beside a base that never changes, and the saved folder is one of plain peft."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sami.contrasts import collate
from sami.costs.estimate import plan
from sami.errors import InputError
from sami.loop.context import Run
from sami.models import adapters, loading, sources
from sami.pipeline import run, start
from sami.prepared import prepare
from sami.recipe import Model, load_recipe
from sami.scoring.logprobs import logprob_matrix
from sami.scoring.merge_check import checked_merge
from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.interruption import interrupted_at
from tests.support.places import ROOT
from tests.support.recipes import timeless, write_recipe
from tests.support.tiny import PAD, random_contrast, tiny_model

Folder = Callable[[str, bool], Path]
LORA = {"adapter__r": 4, "adapter__lora_alpha": 8}
BATCH = collate([random_contrast(seed) for seed in range(3)], PAD)


def adapter_weights(run_folder: Path, iteration: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder / f"iteration-{iteration}" / "model" / "adapter_model.safetensors")


def scores(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return logprob_matrix(model.eval(), BATCH)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), model_folder("llama", True), **LORA)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> tuple[Path, dict[str, Any]]:
    """A finished run of two iterations with an adapter. Tests read it only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, run(load_recipe(recipe_file), folder)


@pytest.fixture
def make(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> Callable[..., SAMITrainer]:
    def trainer(config: LoraConfig, model: Any = None, **arguments: Any) -> SAMITrainer:
        settings = {"output_dir": str(tmp_path), "max_steps": 2, "learning_rate": 1e-2, "use_cpu": True}
        return SAMITrainer(
            model=tiny_model() if model is None else model,
            args=SAMIConfig(**settings, report_to="none", disable_tqdm=True, **arguments),
            train_dataset=[random_contrast(seed) for seed in range(4)],
            processing_class=plain_tokenizer,
            peft_config=config,
        )

    return trainer


# Through the pipeline.


def test_a_run_saves_the_adapter_alone_in_fp32(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert [p["name"] for p in summary["policies"]] == ["base", "iteration-1", "iteration-2"]
    for iteration in (1, 2):
        saved = folder / f"iteration-{iteration}" / "model"
        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
            p.name for p in saved.iterdir()
        }
        assert not list(saved.glob("model*"))
        weights = adapter_weights(folder, iteration)
        assert all("lora_A" in name or "lora_B" in name for name in weights)
        assert len(weights) == 2 * 2 * 7  # A and B of seven linear modules in two layers; no output head
        assert {w.dtype for w in weights.values()} == {torch.float32}
        assert all(bool(w.any()) for w in weights.values())
    config = json.loads((folder / "iteration-1" / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)


def test_the_saved_folder_loads_with_plain_peft_and_scores_alike(
    finished: tuple[Path, dict[str, Any]], model_folder: Folder, recipe_file: Path
) -> None:
    folder = finished[0] / "iteration-2" / "model"
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == model_folder("llama", True)
    base = AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32)
    plain = scores(base)
    expected = scores(PeftModel.from_pretrained(base, folder))
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(scores(Run.open(finished[0]).load(2)), expected)
    assert torch.equal(scores(loading.load_model(Model(source=str(folder)), torch.float32)), expected)
    assert loading.load_tokenizer(Model(source=str(folder))).eos_token_id == 1
    assert loading.load_config(Model(source=str(folder))).model_type == "llama"


def test_the_policy_is_what_is_evaluated(finished: tuple[Path, dict[str, Any]]) -> None:
    bounds = [policy["information"]["bound"] for policy in finished[1]["policies"]]
    assert len({round(bound, 6) for bound in bounds}) == 3


def test_the_base_is_untouched_bit_for_bit(finished: tuple[Path, dict[str, Any]], recipe_file: Path) -> None:
    expected = tiny_model().state_dict()
    saved = load_file(Path(load_recipe(recipe_file).model.source) / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in expected.items())
    opened = Run.open(finished[0])
    held = adapters.load(opened.load(0), finished[0] / "iteration-2" / "model").unload().state_dict()
    assert all(torch.equal(held[name], weight) for name, weight in expected.items())


def test_a_training_that_was_interrupted_ends_with_the_same_adapter(
    finished: tuple[Path, dict[str, Any]], recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file, ["training.checkpoint_steps=1"])
    with interrupted_at(3, monkeypatch):
        run(recipe, tmp_path / "run")
    checkpoint = tmp_path / "run" / "iteration-2" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not list(checkpoint.glob("model*"))
    seen: list[Any] = []
    train = SAMITrainer.train
    monkeypatch.setattr(SAMITrainer, "train", lambda self, **named: seen.append(named) or train(self, **named))
    summary = run(recipe, tmp_path / "run")
    assert seen == [{"resume_from_checkpoint": str(checkpoint)}]
    expected, found = (adapter_weights(folder, 2) for folder in (finished[0], tmp_path / "run"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert timeless(summary) == timeless(finished[1])


def test_restart_from_previous_goes_on_with_its_adapter_and_base_as_reference(
    tmp_path: Path, model_folder: Folder
) -> None:
    changes = {"training__restart_from": "previous", "training__lr": [3e-3, 1e-5], "training__beta": 0.1}
    run(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **LORA, **changes)), tmp_path / "run")
    first, second = (adapter_weights(tmp_path / "run", n) for n in (1, 2))
    assert 1e-5 <= max(float((second[k] - first[k]).abs().max()) for k in first) < 4e-5
    metrics = [json.loads(line) for line in (tmp_path / "run/iteration-2/metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["kl"] > 1e-3  # the policy that it starts from is away from base


def test_a_merged_run_saves_the_whole_model_within_rounding_of_its_adapter(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, model_folder: Folder
) -> None:
    changes = {"adapter__merge": True, "training__iterations": 1, "training__steps": 2}
    run(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **LORA, **changes)), tmp_path / "run")
    saved = tmp_path / "run" / "iteration-1" / "model"
    assert not (saved / "adapter_config.json").exists()
    whole = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    expected = scores(loading.load_model(Model(source=str(finished[0] / "iteration-1" / "model")), torch.float32))
    assert (scores(whole) - expected).abs().max() < 2e-5
    assert (scores(tiny_model()) - expected).abs().max() > 0.05


def test_a_merge_into_bf16_rounds_once(model_folder: Folder) -> None:
    base = load_file(model_folder("llama", True) / "model.safetensors")
    model = loading.load_model(Model(source=str(model_folder("llama", True))), torch.bfloat16)
    torch.manual_seed(0)
    adapted = adapters.attach(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    factors = {name: w for name, w in adapted.named_parameters() if "lora_" in name}
    for weight in factors.values():
        torch.nn.init.normal_(weight, std=0.02)
    prefix, name = "base_model.model.", "model.layers.1.self_attn.q_proj"
    a, b = (factors[f"{prefix}{name}.lora_{factor}.default.weight"].detach() for factor in "AB")
    merged, changed = adapters.merge(adapted)
    whole = base[f"{name}.weight"].to(torch.bfloat16).float() + 2 * b @ a
    assert torch.equal(merged.state_dict()[f"{name}.weight"], whole.to(torch.bfloat16))
    assert merged.state_dict().keys() == base.keys()
    assert 0.3 < changed < 1


def test_with_restart_from_previous_a_merged_model_is_held_near_base(tmp_path: Path, model_folder: Folder) -> None:
    changes = {"adapter__merge": True, "training__restart_from": "previous", "training__beta": 0.1}
    run(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **LORA, **changes)), tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run/iteration-2/metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["kl"] > 1e-3


def test_a_merge_that_rounding_undoes_is_an_error(tmp_path: Path, model_folder: Folder) -> None:
    changes = {"adapter__merge": True, "training__iterations": 1, "training__steps": 2, "model__dtype": "bfloat16"}
    changes["training__lr"] = 1e-9
    recipe = load_recipe(write_recipe(tmp_path, model_folder("llama", True), **LORA, **changes))
    with pytest.raises(InputError, match=r"2 steps at learning rate 1e-09.*rounded to bfloat16"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "iteration-1" / "model").exists()


# In the trainer.


def test_the_base_is_held_in_bf16_and_the_adapter_in_fp32_without_a_copy(
    make: Callable[..., SAMITrainer],
    model_folder: Folder,
    plain_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    trainer = make(LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    trainer.train()
    assert trainer._strategy._copy is None
    for name, weight in trainer.trained_model.named_parameters():
        assert weight.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name
    assert trainer.state.log_history[1]["weights_changed"] == 1.0  # of the adapter, as it is saved
    # What was trained is what is loaded, to the bit.
    adapters.save(trainer.trained_model, plain_tokenizer, tmp_path / "adapter")
    base = loading.load_model(Model(source=str(model_folder("llama", True))), torch.bfloat16)
    loaded = adapters.load(base, tmp_path / "adapter")
    assert torch.equal(scores(loaded), scores(trainer.trained_model))


def test_the_seed_decides_the_first_weights_of_an_adapter(make: Callable[..., SAMITrainer]) -> None:
    def first(seed: int) -> torch.Tensor:
        torch.randn(3)  # the caller's random state does not matter
        return next(w for n, w in make(LoraConfig(r=2), seed=seed).trained_model.named_parameters() if "lora_A" in n)

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


def test_dropout_falls_on_the_adapter_in_training(make: Callable[..., SAMITrainer]) -> None:
    with_dropout, without = (make(LoraConfig(r=4, lora_dropout=share), compute_dtype="float32") for share in (0.5, 0.0))
    for trainer in (with_dropout, without):
        trainer.train()
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (with_dropout, without)]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-5)  # B is still 0
    assert abs(losses[0][1] - losses[1][1]) > 1e-4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["q_proj", "wq"], r"names wq, and the model has none.*q_proj, k_proj, v_proj, o_proj, gate_proj"),
        (["query_key_value"], "names query_key_value"),
        ("q_proj", r"the full name of no module.*as a list.*q_proj, k_proj"),
        ("[", "not a valid regular expression"),
        (["mlp"], r"cannot be put on the model.*q_proj, k_proj"),
    ],
)
def test_target_modules_that_do_not_exist_are_refused_with_some_that_do(
    make: Callable[..., SAMITrainer], target: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(LoraConfig(r=2, target_modules=target))


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["lm_head", "q_proj"]}, {"target_modules": ["embed_tokens"]}, {"modules_to_save": ["lm_head"]}],
    ids=["head", "embeddings", "copied head"],
)
def test_an_adapter_on_tied_weights_is_refused(make: Callable[..., SAMITrainer], settings: dict[str, Any]) -> None:
    config = LlamaConfig(**{**tiny_model().config.to_dict(), "tie_word_embeddings": True})
    tied = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match=r"weights are also those of.*tied.*Leave .* out of target_modules"):
        adapters.attach(tied, LoraConfig(r=2, **settings))
    make(LoraConfig(r=2, **settings), compute_dtype="float32")  # not tied


def test_a_merge_that_gives_another_model_is_refused() -> None:
    adapted = adapters.attach(tiny_model(), LoraConfig(r=4, target_modules=["lm_head"]))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    inner: Any = adapted.get_base_model()
    inner.model.embed_tokens.weight = inner.lm_head.base_layer.weight  # tied behind the check's back
    with pytest.raises(InputError, match=r"differs from the base with its adapter by \d"):
        checked_merge(adapted, random_contrast(0))


def test_a_regular_expression_over_full_names_chooses_modules(make: Callable[..., SAMITrainer]) -> None:
    model = make(LoraConfig(r=2, target_modules=r".*layers\.1\..*(q|v)_proj")).trained_model
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2


def test_modules_trained_whole_need_fp32(make: Callable[..., SAMITrainer]) -> None:
    config = LoraConfig(r=2, modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"modules_to_save trains.*lm_head.*compute_dtype='float32'"):
        make(config)
    make(config, compute_dtype="float32").train()


def test_a_model_that_is_frozen_is_refused(make: Callable[..., SAMITrainer]) -> None:
    with pytest.raises(InputError, match="nothing would be trained"):
        make(None, tiny_model().requires_grad_(False))  # type: ignore[arg-type]


# Before anything is computed.


def test_a_recipe_with_wrong_modules_is_refused_before_anything_is_done(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["adapter.target_modules=[qproj]"])
    for command in (plan, lambda recipe: run(recipe, tmp_path / "run")):
        with pytest.raises(InputError, match=r"names qproj.*q_proj"):
            command(recipe)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_start_from_an_adapter(finished: tuple[Path, dict[str, Any]], recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [f"model.source={finished[0] / 'iteration-1' / 'model'}"])
    with pytest.raises(InputError, match=r"is an adapter.*merged"):
        prepare(recipe)


def test_a_trained_baseline_beside_an_adapter_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["evaluation.baselines=[{name: sft, train: sft}]"])
    with pytest.raises(InputError, match="comparison would be unfair"):
        start(recipe, tmp_path / "run")


def test_another_setting_of_the_adapter_is_another_run(
    finished: tuple[Path, dict[str, Any]], recipe_file: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    assert json.loads((folder / ".steps" / "train-1.json").read_text())["inputs"]["adapter"]["r"] == 4
    with pytest.raises(InputError, match=r"adapter\.r: 4 there, 2 now"):
        run(load_recipe(recipe_file, ["adapter.r=2"]), folder)


def test_an_adapter_takes_the_optimisers_memory_of_its_own_weights_only(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e6)
    total = sum(w.numel() for w in tiny_model().parameters())
    small, large = (plan(load_recipe(recipe_file, [f"adapter.r={r}"])) for r in (4, 8))
    full = plan(load_recipe(recipe_file, ["adapter=null"]))
    own = prepare(load_recipe(recipe_file)).adapter_weights()
    assert own == sum(w.numel() for n, w in tiny_adapter().named_parameters() if "lora_" in n)
    assert large.training_bytes - small.training_bytes == 16 * own  # weight, gradient and AdamW's two states
    # In float32 all weights are computed with as they are held; under an adapter they stay, frozen.
    assert full.training_bytes - small.training_bytes == 16 * (total - own) - 4 * total
    assert small.generation_bytes == full.generation_bytes
    assert small.seconds["training"] == pytest.approx(full.seconds["training"] * 2 / 3, rel=0.05)
    held = plan(load_recipe(recipe_file, ["training.beta=0.1"]))
    assert held.training_bytes == small.training_bytes  # its base is the reference
    assert held.seconds["training"] == pytest.approx(full.seconds["training"], rel=0.05)
    assert plan(load_recipe(recipe_file, ["adapter=null", "training.beta=0.1"])).training_bytes > full.training_bytes


def tiny_adapter() -> Any:
    return adapters.attach(tiny_model(), LoraConfig(r=4, target_modules="all-linear"))


# Folders.


def test_an_adapters_identity_contains_its_bases(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, model_folder: Folder
) -> None:
    folder = shutil.copytree(finished[0] / "iteration-1" / "model", tmp_path / "adapter")
    base = shutil.copytree(model_folder("llama", True), tmp_path / "base")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    before = sources.fingerprint(Model(source=str(folder)))
    tiny_model(seed=5).save_pretrained(base)
    assert sources.fingerprint(Model(source=str(folder))) != before


def test_damaged_adapters_are_refused(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole = finished[0] / "iteration-1" / "model"

    def broken(name: str) -> Path:
        return shutil.copytree(whole, tmp_path / name)

    (broken("weightless") / "adapter_model.safetensors").unlink()
    (broken("cut") / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    (broken("nameless") / "adapter_config.json").write_text("{}")
    some = dict(list(load_file(whole / "adapter_model.safetensors").items())[3:])
    from safetensors.torch import save_file

    save_file(some, broken("partial") / "adapter_model.safetensors")
    for name, message in (
        ("weightless", "safetensors only"),
        ("cut", "cannot be put on its model"),
        ("nameless", "does not say which model"),
        ("partial", "cannot be put on its model: Found missing adapter keys"),
    ):
        with pytest.raises(InputError, match=message):
            loading.load_model(Model(source=str(tmp_path / name)), torch.float32)


# Several processes.

SCRIPT = """
    import json, os, pathlib, sys
    sys.path.insert(0, {tests!r})
    import torch
    from peft import LoraConfig
    from torch.distributed.tensor import DTensor
    from tests.support.tiny import random_contrast, tiny_model, tiny_tokenizer
    from sami import SAMIConfig, SAMITrainer

    out, world = pathlib.Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", 1))
    trainer = SAMITrainer(
        model=tiny_model("llama"),
        args=SAMIConfig(output_dir=str(out), max_steps=4, learning_rate=1.0, optim="sgd", use_cpu=True,
                        per_device_train_batch_size=4 // world, compute_dtype="float32", save_strategy="steps",
                        save_steps=2, report_to="none", disable_tqdm=True),
        train_dataset=[random_contrast(seed) for seed in range(8)],
        processing_class=tiny_tokenizer(chat=False),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    checkpoint = out / "checkpoint-2"
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.is_dir() else None)
    assert all(isinstance(p, DTensor) == (world > 1) for p in trainer.trained_model.parameters())
    trainer.save_model(str(out))
    if world > 1:
        torch.distributed.barrier()
        os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then
"""


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one_and_resume(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(ROOT)))

    def launch(name: str, processes: int) -> dict[str, torch.Tensor]:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), str(script), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return load_file(tmp_path / name / "adapter_model.safetensors")

    one, two = launch("one", 1), launch("two", 2)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    shutil.rmtree(tmp_path / "two" / "checkpoint-4")
    again = launch("two", 2)
    assert all(torch.equal(two[name], again[name]) for name in two)
    assert all(bool(weight.any()) for weight in two.values())
