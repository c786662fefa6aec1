"""Training does what its settings say, logs what happened, and stops where it cannot work."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from sami import objective
from sami.contrasts import collate
from sami.errors import InputError
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from sami.scoring.packing_check import PackingCheck
from sami.training import SAMITrainer
from tests.support.tiny import PAD, tiny_model, tiny_tokenizer
from tests.support.training import (
    SGD,
    contrasts_of,
    largest_difference,
    logged,
    steps_logged,
    trained,
    weights_of,
)


def weights_at_the_start():
    return dict(tiny_model("llama").named_parameters())


def matrix_of(contrasts, model=None, **settings):
    return logprob_matrix(model or tiny_model("llama"), collate(contrasts, PAD), **settings)


# Steps.


@pytest.mark.parametrize("settings", [{"max_grad_norm": 0.5}, {"beta": 0.5}], ids=str)
def test_accumulation_gives_the_weights_of_one_big_batch_even_if_contrasts_do_not_fill_the_steps(make, settings):
    contrasts = contrasts_of(7)  # 4 and 3 in an epoch
    big = trained(make, contrasts, 4, per_device_train_batch_size=4, **SGD, **settings)
    for micro in (1, 2):
        arguments = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro, **settings}
        assert largest_difference(big, trained(make, contrasts, 4, **SGD, **arguments)) < 1e-6
    assert largest_difference(big, weights_at_the_start()) > 1e-3


@pytest.mark.parametrize(
    ("settings", "scored", "direction"),
    [({}, {}, "both"), ({"contrast": "columns"}, {}, "columns"), ({"per_token": False}, {"per_token": False}, "both")],
    ids=str,
)
def test_a_step_is_gradient_descent_on_the_mean_loss(make, settings, scored, direction):
    contrasts, model = contrasts_of(4), tiny_model("llama")
    loss = objective.sami_loss(matrix_of(contrasts, model, **scored), direction)
    loss.backward()
    rate = SGD["learning_rate"]
    expected = {n: (w - rate * w.grad).detach() for n, w in model.named_parameters()}
    trainer = make(contrasts, 1, max_grad_norm=1e9, **SGD, **settings)
    trainer.train()
    assert largest_difference(weights_of(trainer), expected) < 5e-6
    assert logged(trainer, "loss") == pytest.approx([loss.item()], abs=1e-3)


def test_another_estimator_is_one_function_and_one_line(make, monkeypatch):
    def nwj(logprobs_BCR, over):
        """Poole et al. 2019, eq. 6, with log-probs less their mean as the critic."""
        critic = logprobs_BCR - logprobs_BCR.mean(over, keepdim=True)
        own = torch.diagonal(critic, dim1=1, dim2=2)
        return ((critic - 1).exp().mean(over) - own).mean(1)

    monkeypatch.setitem(objective.ESTIMATORS, "nwj", nwj)
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 3, contrast="columns", estimator="nwj")
    trainer.train()
    expected = nwj(matrix_of(contrasts), 1).mean().item()
    assert logged(trainer, "loss")[0] == pytest.approx(expected, abs=1e-4)
    assert logged(trainer, "loss")[2] < expected


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(make, tmp_path):
    contrasts, schedule = contrasts_of(8), {"lr_scheduler_type": "linear"}
    through = make(contrasts, 5, save_strategy="steps", save_steps=2, **schedule)
    through.train()
    resumed = make(contrasts, 5, **schedule)
    resumed.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert largest_difference(weights_of(through), weights_of(resumed)) == 0.0
    assert logged(through, "loss") == logged(resumed, "loss")
    assert [entry["step"] for entry in steps_logged(resumed)] == [1, 2, 3, 4, 5]


# Rows, and what is kept in memory.


def test_shared_rows_are_checked_once_and_given_up_where_they_are_wrong(make, monkeypatch):
    contrasts = contrasts_of(4)
    trainer = make(contrasts)
    trainer.train()
    assert trainer.packing is not None
    assert trainer.packing.shared
    assert trainer.packing.difference < 1e-4
    plain = trained(make, contrasts, share_prefix=False)
    monkeypatch.setattr("sami.training.trainer.check_packing", lambda *_: PackingCheck(False, 0.5))
    trainer = make(contrasts)
    with pytest.warns(UserWarning, match="a row of its own"):
        trainer.train()
    assert largest_difference(weights_of(trainer), plain) == 0.0


@pytest.mark.parametrize("setting", ["gradient_cache", "gradient_checkpointing"])
def test_in_bf16_too_a_second_forward_pass_changes_rounding_at_most(make, setting):
    shared = {**SGD, "compute_dtype": "bfloat16"}
    plain, other = (trained(make, contrasts_of(8, 3), 3, **{setting: on}, **shared) for on in (False, True))
    assert largest_difference(plain, other) <= (2e-3 if setting == "gradient_cache" else 0.0)
    assert largest_difference(plain, weights_at_the_start()) > 1e-2


def test_the_gradient_cache_drops_the_same_units_in_both_passes(make):
    """gpt2 with dropout: a second pass with other units would send other gradients than the scores deserve."""
    model = tiny_model("gpt2").train()
    batches = [collate(contrasts_of(2, 3), PAD, constitutions=[c]) for c in range(3)]
    seen = []
    score = lambda batch: seen.append(logprob_matrix(model, batch)) or seen[-1]  # noqa: E731
    objective.sami_loss(cached_logprob_matrix(score, batches)).backward()
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0], logprob_matrix(model, batches[0]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_change_rounding_only(make, dtype):
    shared = {**SGD, "compute_dtype": dtype}
    plain, compiled = (trained(make, contrasts_of(8), 3, compile_layers=on, **shared) for on in (False, True))
    assert 0 < largest_difference(plain, compiled) < (1e-5 if dtype == "float32" else 5e-3)


# Dtypes.


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "rmsprop", "sgd"])
def test_bf16_compute_sees_every_step_of_the_optimizer(make, optim):
    settings = {"optim": optim, "learning_rate": 0.1 if optim == "sgd" else 1e-3}
    losses = []
    for dtype in ("bfloat16", "float32"):
        trainer = make(contrasts_of(4), 5, compute_dtype=dtype, **settings)
        trainer.train()
        losses.append(logged(trainer, "loss"))
    narrow, exact = losses
    assert narrow == pytest.approx(exact, abs=0.03)
    assert narrow[0] - narrow[-1] > 0.06


def test_bf16_compute_gives_the_loss_of_the_model_saved_in_bf16(make, tmp_path):
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 1, compute_dtype="bfloat16")
    trainer.train()
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    batch = trainer._collate([contrasts[i] for i in trainer._get_train_sampler()])["contrasts"][0]
    with torch.no_grad():
        expected = float(objective.sami_loss(logprob_matrix(saved, batch)))
    assert logged(trainer, "loss")[0] == pytest.approx(expected, abs=1e-6)
    assert {weight.dtype for weight in weights_of(trainer).values()} == {torch.float32}


def test_bf16_masters_hold_everything_in_bf16_and_lose_small_steps(make):
    def after(lr, masters):
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


# Training that stops.


@pytest.mark.parametrize(("limit", "found"), [(1e-9, r"is \d"), (0.0, r"is \d"), (1e4, "is nan")])
def test_a_gradient_that_explodes_stops_before_the_weights_change(make, limit, found):
    trainer = make(contrasts_of(4), explode_above=limit)
    before = weights_of(trainer)
    if "nan" in found:
        trainer.trained_model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(InputError, match=rf"gradient norm {found}.* at step 1, above the limit"):
        trainer.train()
    assert largest_difference(before, weights_of(trainer)) == 0.0


@pytest.mark.parametrize(("dtype", "lr"), [("bfloat16", 1e-8), ("float32", 1e-14)])
def test_a_rate_that_rounding_undoes_is_an_error_that_says_what_to_raise(make, dtype, lr):
    trainer = make(contrasts_of(4), 2, compute_dtype=dtype, learning_rate=lr)
    with pytest.raises(InputError, match=rf"2 steps at learning rate {lr:g}.*{dtype}.*[Rr]aise training\.lr"):
        trainer.train()


# What is logged.


def test_every_step_logs_its_figures(make):
    contrasts = contrasts_of(4)
    trainer = make(contrasts, 3, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    before = weights_of(trainer)
    trainer.train()
    steps = steps_logged(trainer)
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    with torch.no_grad():
        matrix = matrix_of(contrasts)
    first = steps[0]
    assert first["loss"] == pytest.approx(float(objective.sami_loss(matrix)), abs=1e-4)
    assert first["bound"] == pytest.approx(float(objective.information_bound(matrix).mean()), abs=1e-6)
    assert first["row_accuracy"] == pytest.approx(float(objective.row_accuracy(matrix).mean()))
    assert first["column_accuracy"] == pytest.approx(float(objective.column_accuracy(matrix).mean()))
    assert first["learning_rate"] == 1e-3
    assert first["grad_norm"] > 0
    assert first["weights_changed"] > 0.5
    assert steps[2]["bound"] > steps[1]["bound"] > steps[0]["bound"]
    # The last step's size: Adam moves each weight by about the learning rate.
    size = sum(float(w.square().sum()) for w in before.values()) ** 0.5
    count = sum(w.numel() for w in before.values())
    assert first["relative_weight_change"] == pytest.approx(1e-3 * count**0.5 / size, rel=0.2)


def test_callbacks_see_the_figures_of_every_step(make):
    seen = []

    class Recording(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            seen.append((state.global_step, "bound" in logs))

    make(contrasts_of(4), 2, callbacks=[Recording()]).train()
    assert seen == [(1, True), (2, True), (2, False)]


def test_the_figures_of_a_step_are_means_over_its_micro_batches_alone(make):
    trainer = make(contrasts_of(8), 4, per_device_train_batch_size=2, gradient_accumulation_steps=2, contrast="columns")
    trainer.train()
    for entry in steps_logged(trainer):
        assert entry["bound"] == pytest.approx(math.log(2) - entry["loss"], abs=1e-4)


def test_weights_changed_counts_after_rounding(make):
    shares = {}
    for dtype in ("bfloat16", "float32"):
        trainer = make(contrasts_of(4), 2, compute_dtype=dtype, learning_rate=1e-5)
        trainer.train()
        shares[dtype] = logged(trainer, "weights_changed")[-1]
    assert 0.001 < shares["bfloat16"] < 0.1
    assert 0.7 < shares["float32"] < 0.9  # embeddings of tokens that never occur stay


# What users of transformers expect.


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_folder_and_a_model_without_pad_token_train_like_the_model_itself(make, model_folder):
    expected = trained(make, contrasts_of(4))
    assert largest_difference(expected, trained(make, contrasts_of(4), model=str(model_folder("llama", True)))) == 0.0
    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.pad_token = None
    arguments = {"args": make(contrasts_of(4)).args, "train_dataset": contrasts_of(4)}
    trainer = SAMITrainer(model=tiny_model("llama"), processing_class=tokenizer, **arguments)
    trainer.train()
    assert largest_difference(expected, weights_of(trainer)) == 0.0
