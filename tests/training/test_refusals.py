"""What training refuses before it computes anything: contrasts, models, checkpoints and settings that cannot work."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from sami.contrasts import require_scorable
from sami.errors import InputError
from sami.training import SAMIConfig, SAMITrainer
from tests.support.scoring import see_later_tokens
from tests.support.tiny import VOCABULARY, random_contrast, tiny_model
from tests.support.training import contrasts_of, largest_difference, trained, weights_of

# Contrasts and models.

LONG = replace(random_contrast(7), response_ids=[[20] * 3, [21] * 1100])
FOREIGN = replace(random_contrast(7), response_ids=[[20, VOCABULARY], [21]])


@pytest.mark.parametrize(
    ("contrasts", "arguments", "message"),
    [
        ([LONG], {}, r"Response 1 of contrast contrast-7 has 1100 tokens.*context is 1024"),
        ([LONG], {"model": tiny_model("gpt2")}, r"Response 1 of contrast contrast-7 has 1100 tokens.*context is 1024"),
        ([FOREIGN], {}, r"contrast-7 holds the token id 320.*has 320 tokens"),
        ([], {}, "no contrasts"),
        (contrasts_of(3), {"model": tiny_model().requires_grad_(False)}, "All weights of the model are frozen"),
    ],
    ids=["long", "long for gpt2", "foreign", "none", "frozen"],
)
def test_contrasts_and_models_that_cannot_be_trained_are_refused(make, contrasts, arguments, message):
    with pytest.raises(InputError, match=message):
        make(contrasts, **arguments)


def test_fewer_contrasts_than_processes_are_refused(make, monkeypatch):
    monkeypatch.setattr(SAMIConfig, "world_size", property(lambda _: 4))
    with pytest.raises(InputError, match=r"4 processes train and there are 3 contrasts"):
        make(contrasts_of(3))


@pytest.mark.parametrize(
    ("more", "message"),
    [({}, "processing_class"), ({"eval_dataset": contrasts_of(1)}, "does not evaluate while it trains")],
    ids=["no tokenizer", "evaluation"],
)
def test_arguments_of_a_trainer_that_cannot_work_are_refused(tmp_path, more, message):
    arguments = {"args": SAMIConfig(output_dir=str(tmp_path)), "train_dataset": contrasts_of(2)} | more
    with pytest.raises(InputError, match=message):
        SAMITrainer(model=tiny_model("llama"), **arguments)


def test_a_prompt_with_a_response_may_fill_the_context():
    contrast = replace(random_contrast(0), prompt_ids=[[20] * 10, [20] * 30], response_ids=[[21] * 70, [21]])
    require_scorable([contrast], 100, VOCABULARY)
    require_scorable([contrast], None, VOCABULARY)
    with pytest.raises(InputError, match="context is 99"):
        require_scorable([contrast], 99, VOCABULARY)


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [(torch.bfloat16, {}), (torch.float32, {"master_weights": "bfloat16", "compute_dtype": "bfloat16"})],
    ids=str,
)
def test_a_model_that_is_not_in_the_master_dtype_is_refused(make, dtype, settings):
    with pytest.raises(InputError, match=r"is (bfloat16|float32), and master_weights is (?!\1)"):
        make(contrasts_of(4), model=tiny_model("llama").to(dtype), **settings)


def test_a_model_that_sees_later_tokens_is_refused_without_shared_rows_too(make, monkeypatch):
    see_later_tokens(monkeypatch)
    trainer = make(contrasts_of(4), share_prefix=False)
    before = weights_of(trainer)
    with pytest.raises(InputError, match="its tokens attend to later ones"):
        trainer.train()
    assert largest_difference(before, weights_of(trainer)) == 0.0


# Checkpoints.


@pytest.mark.parametrize("other", [{"vocab_size": VOCABULARY + 1}, {"architecture": "gpt2"}], ids=str)
def test_a_checkpoint_of_another_model_is_refused(make, tmp_path, other):
    make(contrasts_of(4), save_strategy="steps", save_steps=1).train()
    trainer = make(contrasts_of(4), model=tiny_model(**other))
    before = weights_of(trainer)
    with pytest.raises(InputError, match=r"checkpoint-1 belongs to another model: .*(lm_head|model|transformer)\."):
        trainer.train(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-1"))
    assert largest_difference(before, weights_of(trainer)) == 0.0


def test_a_checkpoint_of_another_adapter_is_refused(make, tmp_path):
    def lora(rank, steps=3, **settings):
        config = LoraConfig(r=rank, target_modules=["q_proj"])
        return make(contrasts_of(4), steps, peft_config=config, learning_rate=1e-2, **settings)

    lora(2, 2, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "trainer" / "checkpoint-1")
    with pytest.raises(InputError, match=r"another model: it holds .*lora_A\.weight of shape \(2, 32\)"):
        lora(4).train(resume_from_checkpoint=checkpoint)
    lora(2).train(resume_from_checkpoint=checkpoint)


def test_the_state_that_makes_a_checkpoint_complete_is_written_last(make, tmp_path):
    """A save that is killed anywhere leaves no state that parses, and such a checkpoint is passed over."""
    make(contrasts_of(4), save_strategy="steps", save_steps=1).train()
    for step in (1, 2):
        files = list((tmp_path / "trainer" / f"checkpoint-{step}").iterdir())
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {f.name for f in files}
        assert max(files, key=lambda file: file.stat().st_mtime_ns).name == "trainer_state.json"


# Settings.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bf16": True}, "^bf16 has no effect"),
        ({"fp16": True}, "^fp16 has no effect"),
        ({"torch_compile": True}, "^torch_compile has no effect"),
        ({"label_smoothing_factor": 0.1}, "^label_smoothing_factor has no effect"),
        ({"data_seed": 3}, "^data_seed has no effect"),
        ({"fsdp": True}, "keep the launcher"),
        ({"beta": -0.1}, "cannot be negative"),
        ({"contrast": "diagonal"}, "'diagonal'.*both, columns or rows"),
        ({"estimator": "nwj"}, "'nwj'.*infonce"),
        ({"master_weights": "bfloat16", "compute_dtype": "float32"}, "computes in float32"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_or_have_no_effect_are_refused(tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        SAMIConfig(output_dir=str(tmp_path), use_cpu=True, **setting)


def test_a_launchers_mixed_precision_does_not_round_a_second_time(make, monkeypatch):
    settings = {"compute_dtype": "bfloat16", "optim": "sgd", "learning_rate": 0.1}
    plain = trained(make, contrasts_of(4), **settings)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert largest_difference(plain, trained(make, contrasts_of(4), **settings)) == 0.0
    with pytest.raises(InputError, match=r"mixed precision bf16.*compute_dtype is float32"):
        make(contrasts_of(4), compute_dtype="float32")
