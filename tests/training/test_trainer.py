"""Training by different routes gives one trajectory, and training that cannot work is an error."""

import json
import math
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from sami import objective
from sami.contrasts import collate
from sami.errors import InputError
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from sami.scoring.packing_check import PackingCheck
from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.places import ROOT
from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.support.training import Make, contrasts_of, largest_difference, trained, weights_of


def steps_logged(trainer: SAMITrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# One trajectory by different routes.


def test_accumulation_gives_the_weights_of_one_big_batch(make: Make) -> None:
    contrasts, start = contrasts_of(8), dict(tiny_model("llama").named_parameters())
    # Plain gradient descent: Adam would turn rounding of small gradients into full steps.
    shared = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.5}
    big = trained(make, contrasts, per_device_train_batch_size=8, **shared)
    for micro in (1, 2, 4):
        small = trained(
            make, contrasts, per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro, **shared
        )
        assert largest_difference(big, small) < 1e-6
    assert largest_difference(big, start) > 1e-3


def test_accumulation_gives_the_weights_of_one_big_batch_when_contrasts_do_not_fill_the_steps(make: Make) -> None:
    contrasts = contrasts_of(7)  # two epochs of a step of 4 and one of 3
    shared = {"optim": "sgd", "learning_rate": 0.1}
    big = trained(make, contrasts, 4, per_device_train_batch_size=4, **shared)
    small = trained(make, contrasts, 4, per_device_train_batch_size=2, gradient_accumulation_steps=2, **shared)
    assert largest_difference(big, small) < 1e-6


def test_every_step_takes_batch_size_contrasts(make: Make) -> None:
    seen: list[int] = []

    class Counting(SAMITrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            seen.append(len(inputs["contrasts"][0]))
            return super().compute_loss(model, inputs, *rest, **named)

    trainer = make(contrasts_of(8), 3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer.__class__ = Counting
    trainer.train()
    assert seen == [2] * 6
    assert trainer.state.global_step == 3


def test_the_first_step_is_one_step_of_gradient_descent_on_the_mean_loss(
    make: Make, plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    contrasts, model = contrasts_of(4), tiny_model("llama")
    loss = objective.sami_loss(logprob_matrix(model, collate(contrasts, plain_tokenizer.pad_token_id)))
    loss.backward()
    expected = {
        name: (weight - 0.1 * weight.grad).detach()  # type: ignore[operator]
        for name, weight in model.named_parameters()
    }
    after = trained(make, contrasts, 1, optim="sgd", learning_rate=0.1, max_grad_norm=1e9)
    assert largest_difference(after, expected) < 1e-6


@pytest.mark.parametrize("constitutions", [2, 3])
def test_shared_prefix_and_plain_path_train_to_the_same_weights(make: Make, constitutions: int) -> None:
    contrasts = contrasts_of(4, constitutions)
    shared = {"optim": "sgd", "learning_rate": 0.1}
    one = trained(make, contrasts, 3, share_prefix=True, **shared)
    other = trained(make, contrasts, 3, share_prefix=False, **shared)
    assert largest_difference(one, other) < 1e-6


def test_the_shared_prefix_check_is_made_once_and_reported(make: Make) -> None:
    trainer = make(contrasts_of(4), 1)
    trainer.train()
    assert trainer.packing is not None
    assert trainer.packing.shared
    assert trainer.packing.difference < 1e-4


def test_a_model_on_which_shared_prefixes_are_wrong_trains_by_the_plain_path(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrasts = contrasts_of(4)
    plain = trained(make, contrasts, share_prefix=False)
    monkeypatch.setattr("sami.training.trainer.check_packing", lambda *_: PackingCheck(False, 0.5))
    trainer = make(contrasts)
    with pytest.warns(UserWarning, match="a row of its own"):
        trainer.train()
    assert largest_difference(weights_of(trainer), plain) == 0.0


def test_the_seed_decides_the_order_of_contrasts(make: Make) -> None:
    contrasts = contrasts_of(8)
    first = trained(make, contrasts, seed=0)
    assert largest_difference(first, trained(make, contrasts, seed=0)) == 0.0
    assert largest_difference(first, trained(make, contrasts, seed=1)) > 1e-5


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(make: Make, tmp_path: Path) -> None:
    contrasts = contrasts_of(8)
    through = make(contrasts, 5, output_dir=str(tmp_path / "a"), lr_scheduler_type="linear")
    through.train()
    stopped = make(contrasts, 5, output_dir=str(tmp_path / "b"), lr_scheduler_type="linear", save_steps=2)

    class StopAfterThree(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    stopped.args.save_strategy = "steps"
    stopped.add_callback(StopAfterThree())
    stopped.train()
    resumed = make(contrasts, 5, output_dir=str(tmp_path / "b"), lr_scheduler_type="linear")
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    expected, found = weights_of(through), weights_of(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [e["loss"] for e in steps_logged(through)][2:] == [e["loss"] for e in steps_logged(resumed)][2:]
    assert largest_difference(expected, weights_of(stopped)) > 1e-5


# Dtypes.


def test_bf16_compute_keeps_fp32_master_weights(make: Make) -> None:
    trainer = make(contrasts_of(4), 3, compute_dtype="bfloat16", learning_rate=1e-3)
    trainer.train()
    weights = weights_of(trainer)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    # Masters hold more digits than bf16 has, and every one of them got a gradient in fp32.
    beyond = [float((w != w.to(torch.bfloat16).float()).float().mean()) for w in weights.values()]
    assert min(beyond) > 0.5
    exact = trained(make, contrasts_of(4), 3, learning_rate=1e-3)
    assert 0 < largest_difference(weights, exact) < 2e-2


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "rmsprop", "sgd"])
def test_bf16_compute_sees_every_step_of_the_optimizer(make: Make, optim: str) -> None:
    settings = {"optim": optim, "learning_rate": 0.1 if optim == "sgd" else 1e-3}
    narrow, exact = (make(contrasts_of(4), 5, compute_dtype=dtype, **settings) for dtype in ("bfloat16", "float32"))
    for trainer in (narrow, exact):
        trainer.train()
    ours, theirs = ([entry["loss"] for entry in steps_logged(trainer)] for trainer in (narrow, exact))
    assert ours == pytest.approx(theirs, abs=0.03)
    assert ours[0] - ours[-1] > 0.06


def test_bf16_compute_gives_the_loss_of_the_model_saved_in_bf16(make: Make, tmp_path: Path) -> None:
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 1, compute_dtype="bfloat16")
    trainer.train()
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "saved")  # type: ignore[arg-type]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    batch = trainer._collate([contrasts[i] for i in trainer._get_train_sampler()])["contrasts"][0]
    with torch.no_grad():
        expected = float(objective.sami_loss(logprob_matrix(saved, batch)))
    assert steps_logged(trainer)[0]["loss"] == pytest.approx(expected, abs=1e-6)


def test_a_bf16_model_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match=r"float32.*torch\.float32"):
        make(contrasts_of(4), model=tiny_model("llama").to(torch.bfloat16))  # type: ignore[arg-type]


# Training that cannot work.


def test_no_contrasts_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="no contrasts"):
        make([])


def test_a_module_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="processing_class"):
        SAMITrainer(model=tiny_model("llama"), args=SAMIConfig(output_dir=str(tmp_path)), train_dataset=contrasts_of(2))


@pytest.mark.parametrize("share_prefix", [True, False])
def test_nan_weights_are_an_error_that_names_the_contrasts(make: Make, share_prefix: bool) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[contrasts_of(1)[0].response_ids[0][0]] = float("nan")
    contrasts = contrasts_of(1)
    with pytest.raises(InputError, match=r"not finite.*contrast-0"):
        make(contrasts, model=model, share_prefix=share_prefix).train()


@pytest.mark.parametrize("limit", [1e-9, 0.0])
def test_an_exploding_gradient_stops_before_the_weights_change(make: Make, limit: float) -> None:
    trainer = make(contrasts_of(4), explode_above=limit)
    before = weights_of(trainer)
    with pytest.raises(InputError, match=r"gradient norm.*at step 1.*above the limit"):
        trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(trainer).items())


def test_a_gradient_norm_that_is_not_a_number_stops_training(make: Make) -> None:
    trainer = make(contrasts_of(4))
    before = weights_of(trainer)

    class Poison(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            raise AssertionError("the step went on")

    weight = trainer.trained_model.lm_head.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer.add_callback(Poison())
    with pytest.raises(InputError, match="nan"):
        trainer.train()
    assert largest_difference(before, weights_of(trainer)) == 0.0


@pytest.mark.parametrize(("dtype", "lr"), [("bfloat16", 1e-8), ("float32", 1e-14)])
def test_a_rate_that_no_weight_survives_is_an_error_that_says_what_to_raise(make: Make, dtype: str, lr: float) -> None:
    trainer = make(contrasts_of(4), 2, compute_dtype=dtype, learning_rate=lr)
    with pytest.raises(InputError, match=rf"2 steps at learning rate {lr:g}.*{dtype}.*[Rr]aise training\.lr"):
        trainer.train()


def test_weights_changed_counts_after_rounding(make: Make) -> None:
    shares = {}
    for dtype in ("bfloat16", "float32"):
        trainer = make(contrasts_of(4), 2, compute_dtype=dtype, learning_rate=1e-5)
        trainer.train()
        shares[dtype] = steps_logged(trainer)[-1]["weights_changed"]
    assert 0.001 < shares["bfloat16"] < 0.1
    assert 0.7 < shares["float32"] < 0.9  # embeddings of tokens that never occur stay


# What is logged.


def test_every_step_logs_its_figures(make: Make, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    before = weights_of(trainer)
    trainer.train()
    logged = steps_logged(trainer)
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    names = {"loss", "bound", "row_accuracy", "column_accuracy", "learning_rate", "grad_norm"}
    names |= {"relative_weight_change", "weights_changed"}
    for entry in logged:
        assert names <= entry.keys()
    with torch.no_grad():
        matrix = logprob_matrix(tiny_model("llama"), collate(contrasts, plain_tokenizer.pad_token_id))
    first = logged[0]
    assert first["loss"] == pytest.approx(float(objective.sami_loss(matrix)), abs=1e-4)
    assert first["bound"] == pytest.approx(float(objective.information_bound(matrix).mean()), abs=1e-6)
    assert first["row_accuracy"] == pytest.approx(float(objective.row_accuracy(matrix).mean()))
    assert first["column_accuracy"] == pytest.approx(float(objective.column_accuracy(matrix).mean()))
    assert first["learning_rate"] == 1e-3
    assert first["grad_norm"] > 0
    assert first["weights_changed"] > 0.5
    assert logged[2]["bound"] > logged[1]["bound"] > logged[0]["bound"]
    # The last step's size: Adam moves each weight by about the rate.
    size = sum(float(w.square().sum()) for w in before.values()) ** 0.5
    count = sum(w.numel() for w in before.values())
    assert first["relative_weight_change"] == pytest.approx(1e-3 * count**0.5 / size, rel=0.2)


def test_every_steps_figures_are_its_own(make: Make) -> None:
    trainer = make(contrasts_of(8), 4, per_device_train_batch_size=2, gradient_accumulation_steps=2, contrast="columns")
    trainer.train()
    for entry in steps_logged(trainer):
        assert entry["bound"] == pytest.approx(math.log(2) - entry["loss"], abs=1e-4)


def test_the_bound_on_the_training_contrasts_rises(make: Make, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    contrasts = contrasts_of(6)
    batch = collate(contrasts, plain_tokenizer.pad_token_id)

    def bound(model: PreTrainedModel) -> float:
        with torch.no_grad():
            return float(objective.information_bound(logprob_matrix(model, batch)).mean())

    trainer = make(contrasts, 20, per_device_train_batch_size=6, learning_rate=5e-3)
    trainer.train()
    assert bound(tiny_model("llama")) < 0.1
    assert 0.5 < bound(trainer.trained_model) <= 0.6932
    assert steps_logged(trainer)[-1]["column_accuracy"] > 0.9


# Settings have effects.


def test_train_eos_decides_whether_eos_is_trained(make: Make) -> None:
    contrasts = [replace(c, finish_reasons=["stop", "stop"]) for c in contrasts_of(4)]
    with_eos = trained(make, contrasts, train_eos=True, optim="sgd", learning_rate=0.1)
    without = trained(make, contrasts, train_eos=False, optim="sgd", learning_rate=0.1)
    assert largest_difference(with_eos, without) > 1e-5


def test_per_token_false_trains_the_sum(make: Make, plain_tokenizer: PreTrainedTokenizerFast) -> None:
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 1, per_token=False)
    trainer.train()
    with torch.no_grad():
        batch = collate(contrasts, plain_tokenizer.pad_token_id)
        matrix = logprob_matrix(tiny_model("llama"), batch, per_token=False)
    assert steps_logged(trainer)[0]["loss"] == pytest.approx(float(objective.sami_loss(matrix)), abs=1e-3)


@pytest.mark.parametrize("direction", ["columns", "rows"])
def test_the_contrast_setting_decides_the_loss(
    make: Make, plain_tokenizer: PreTrainedTokenizerFast, direction: Any
) -> None:
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 1, contrast=direction)
    trainer.train()
    with torch.no_grad():
        matrix = logprob_matrix(tiny_model("llama"), collate(contrasts, plain_tokenizer.pad_token_id))
    assert steps_logged(trainer)[0]["loss"] == pytest.approx(float(objective.sami_loss(matrix, direction)), abs=1e-4)


# What users of transformers expect.


def test_a_model_folder_is_loaded_with_its_tokenizer(
    make: Make, model_folder: Callable[[str, bool], Path], plain_tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = model_folder("llama", True)
    by_name = trained(make, contrasts_of(4), model=str(folder))
    assert largest_difference(by_name, trained(make, contrasts_of(4))) == 0.0


def test_callbacks_run(make: Make) -> None:
    seen: list[str] = []

    class Recording(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seen.append(f"step {state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append("bound" if "bound" in logs else "end")

    make(contrasts_of(4), 2, callbacks=[Recording()]).train()
    assert seen == ["step 1", "bound", "step 2", "bound", "end"]


def test_a_lora_configuration_trains_the_adapter_only(make: Make, tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make(contrasts_of(4), 3, peft_config=config, learning_rate=1e-2)
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert len(changed) == 8  # A and B of two projections in two layers
    assert steps_logged(trainer)[-1]["bound"] > steps_logged(trainer)[0]["bound"]
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_unknown_contrast_direction_is_refused(make: Make) -> None:
    with pytest.raises(InputError, match="both, columns or rows"):
        make(contrasts_of(4), contrast="diagonal").train()


SCRIPT = """
    import json, os, pathlib, sys
    sys.path.insert(0, {tests!r})
    import torch
    from torch.distributed.tensor import DTensor
    from tests.support.tiny import random_contrast, tiny_model, tiny_tokenizer
    from sami.training import SAMIConfig, SAMITrainer

    out, dtype, cache = sys.argv[1], sys.argv[3], sys.argv[5] == "cache"
    micro, steps = int(sys.argv[2]), int(sys.argv[4])
    optim, rate = {{"sgd": ("sgd", 0.1), "adamw": ("adamw_torch_fused", 3e-3)}}[sys.argv[6]]
    seen = []

    class Watching(SAMITrainer):
        def compute_loss(self, model, inputs, *rest, **named):
            seen.append(list(inputs["contrasts"][0].ids))
            return super().compute_loss(model, inputs, *rest, **named)

    trainer = Watching(
        model=tiny_model("llama"),
        args=SAMIConfig(output_dir=out, max_steps=steps, learning_rate=rate, optim=optim, use_cpu=True,
                        per_device_train_batch_size=micro, gradient_accumulation_steps=2, compute_dtype=dtype,
                        gradient_cache=cache, save_strategy="steps", save_steps=10, report_to="none",
                        disable_tqdm=True),
        train_dataset=[random_contrast(seed) for seed in range(32)],
        processing_class=tiny_tokenizer(chat=False),
    )
    checkpoint = pathlib.Path(out, "checkpoint-10")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.is_dir() else None)
    world = trainer.args.world_size
    assert world == 8 // (2 * micro), world
    parameters = list(trainer.trained_model.parameters())
    if world > 1:
        assert all(isinstance(p, DTensor) for p in parameters)
        mine, all_of_it = sum(p.to_local().numel() for p in parameters), sum(p.numel() for p in parameters)
        assert mine < 0.6 * all_of_it, (mine, all_of_it)
    trainer.save_model(out)
    gathered = [None] * world
    if world > 1:
        torch.distributed.all_gather_object(gathered, seen)
    if trainer.is_world_process_zero():
        logged = [e for e in trainer.state.log_history if "loss" in e]
        pathlib.Path(out, "steps.json").write_text(json.dumps(logged))
        pathlib.Path(out, "seen.json").write_text(json.dumps(gathered if world > 1 else [seen]))
    if world > 1:
        torch.distributed.barrier()
        os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then
"""


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., tuple[dict[str, torch.Tensor], list[dict[str, Any]], list[Any]]]:
    """`launch(name, processes, …)`: weights, logged steps and the contrasts that each process saw."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(ROOT)))

    def run(
        name: str, processes: int, dtype: str = "float32", steps: int = 20, cache: bool = False, optim: str = "sgd"
    ) -> Any:
        # Not `accelerate launch --cpu`: without MPI it quietly starts one process.
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable] if processes == 1 else launcher
        out = tmp_path / name
        done = subprocess.run(
            [
                *command,
                str(script),
                str(out),
                str(4 // processes),
                dtype,
                str(steps),
                "cache" if cache else "whole",
                optim,
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        weights = load_file(out / "model.safetensors")
        return weights, *(json.loads((out / f"{file}.json").read_text()) for file in ("steps", "seen"))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_with_sharded_weights_train_to_the_weights_of_one(launch: Any, dtype: str) -> None:
    (one, single, whole), (two, double, parts) = (launch(f"of-{n}", n, dtype) for n in (1, 2))
    exact = dtype == "float32"
    assert largest_difference(one, two) < (1e-3 if exact else 5e-2)
    assert largest_difference(one, dict(tiny_model("llama").state_dict())) > 1e-2
    assert len(single) == len(double) == 20
    for ours, theirs in zip(single, double, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4 if exact else 5e-2)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-2 if exact else 0.5)
    # Every process has contrasts of its own, and together they are those of the one process.
    for step in range(20):
        seen = [ids for process in parts for micro in process[2 * step : 2 * step + 2] for ids in micro]
        assert len(set(seen)) == len(seen) == 8
        assert set(seen) == {ids for micro in whole[0][2 * step : 2 * step + 2] for ids in micro}


@pytest.mark.slow
def test_two_processes_resume_and_take_the_gradient_cache(launch: Any) -> None:
    straight, logged, _ = launch("straight", 2, optim="adamw")
    launch("stopped", 2, steps=10, optim="adamw")
    resumed, again, _ = launch("stopped", 2, steps=20, optim="adamw")
    assert largest_difference(straight, resumed) == 0.0
    assert [step["loss"] for step in again] == [step["loss"] for step in logged]
    (plain, _, _), (cached, _, _) = launch("plain", 2), launch("cached", 2, cache=True)
    assert largest_difference(plain, cached) < 1e-3


def test_training_warns_of_nothing(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make(contrasts_of(4), 1).train()


def test_a_tokenizer_without_pad_token_trains_like_one_with_it(tmp_path: Path, make: Make) -> None:
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.pad_token = None
    trainer = SAMITrainer(
        model=tiny_model("llama"),
        args=make(contrasts_of(4)).args,
        train_dataset=contrasts_of(4),
        processing_class=tokenizer,
    )
    trainer.train()
    assert largest_difference(weights_of(trainer), trained(make, contrasts_of(4))) == 0.0


def test_sharding_is_left_to_the_trainer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keep the launcher"):
        SAMIConfig(output_dir=str(tmp_path), fsdp=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("constitutions", [2, 3])
def test_the_gradient_cache_changes_nothing(make: Make, dtype: str, constitutions: int) -> None:
    contrasts = contrasts_of(8, constitutions)
    shared = {"optim": "sgd", "learning_rate": 0.1, "compute_dtype": dtype}
    plain = trained(make, contrasts, 3, gradient_cache=False, **shared)
    cached = trained(make, contrasts, 3, gradient_cache=True, **shared)
    assert largest_difference(plain, cached) < (1e-6 if dtype == "float32" else 2e-3)
    assert largest_difference(plain, dict(tiny_model("llama").named_parameters())) > 1e-2


def test_the_gradient_cache_drops_the_same_units_in_both_passes(make: Make) -> None:
    """gpt2 with dropout: a second pass with other units would send other gradients than the scores deserve."""
    trainer = make(contrasts_of(2, 3), 1, model=tiny_model("gpt2"), per_device_train_batch_size=2, gradient_cache=True)
    batches = trainer._collate(contrasts_of(2, 3))["contrasts"]
    seen: list[torch.Tensor] = []
    score = lambda batch: seen.append(logprob_matrix(trainer.trained_model.train(), batch)) or seen[-1]  # noqa: E731
    objective.sami_loss(cached_logprob_matrix(score, batches)).backward()
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], logprob_matrix(trainer.trained_model, batches[0]))


def test_the_gradient_cache_is_used_where_memory_asks_for_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not make(contrasts_of(4)).gradient_cache
    monkeypatch.setattr("sami.training.trainer.free_bytes", lambda device: 1000)
    assert make(contrasts_of(4)).gradient_cache
    assert not make(contrasts_of(4), gradient_cache=False).gradient_cache


def test_bf16_masters_hold_everything_in_bf16_and_lose_small_steps(make: Make) -> None:
    def after(lr: float, masters: torch.dtype) -> SAMITrainer:
        arguments = {"compute_dtype": "bfloat16", "master_weights": str(masters).removeprefix("torch.")}
        trainer = make(contrasts_of(8), 10, model=tiny_model("llama").to(masters), learning_rate=lr, **arguments)
        trainer.train()
        return trainer

    trainer = after(1e-5, torch.bfloat16)
    assert {weight.dtype for weight in trainer.trained_model.parameters()} == {torch.bfloat16}
    states = [value for state in trainer.optimizer.state.values() for value in state.values() if value.ndim]
    assert {state.dtype for state in states} == {torch.bfloat16}
    kept = trainer.weight_change.share_changed()
    assert 0.01 < kept < 0.5 * after(1e-5, torch.float32).weight_change.share_changed()
    with pytest.raises(InputError, match="differ from the start once rounded"):
        after(1e-9, torch.bfloat16)


def test_bf16_masters_are_refused_where_they_cannot_be(make: Make) -> None:
    with pytest.raises(InputError, match="one process can train that computes in bfloat16"):
        make(contrasts_of(4), master_weights="bfloat16")
    with pytest.raises(InputError, match="is not bfloat16, as the master weights must be"):
        make(contrasts_of(4), master_weights="bfloat16", compute_dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_change_rounding_only(make: Make, dtype: str) -> None:
    shared = {"optim": "sgd", "learning_rate": 0.1, "compute_dtype": dtype}
    plain = trained(make, contrasts_of(8), 3, **shared)
    compiled = trained(make, contrasts_of(8), 3, compile_layers=True, **shared)
    assert 0 < largest_difference(plain, compiled) < (1e-5 if dtype == "float32" else 5e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activation_checkpointing_changes_nothing(make: Make, dtype: str) -> None:
    shared = {"optim": "sgd", "learning_rate": 0.1, "compute_dtype": dtype}
    plain = trained(make, contrasts_of(8), 3, **shared)
    assert largest_difference(plain, trained(make, contrasts_of(8), 3, gradient_checkpointing=True, **shared)) == 0.0


def test_warmup_of_a_recipe_has_an_effect(model_folder: Callable[[str, bool], Path], tmp_path: Path) -> None:
    from sami.pipeline import Pipeline
    from sami.recipe import load_recipe
    from tests.support.recipes import write_recipe

    changes = {"training__steps": 4, "training__warmup_steps": 2}
    pipeline = Pipeline(load_recipe(write_recipe(tmp_path, model_folder("llama", True), **changes)), tmp_path / "run")
    pipeline.generate(1)
    pipeline.train(1)
    lines = [json.loads(line) for line in pipeline.directory.metrics(1).read_text().splitlines()]
    rates = [line["learning_rate"] for line in lines]
    assert rates[0] < rates[1] < rates[2] == rates[3]
