"""What training refuses before it computes anything: contrasts, checkpoints and settings that cannot work."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from sami.contrasts import require_scorable
from sami.errors import InputError
from sami.training.config import SAMIConfig
from tests.support.places import ROOT
from tests.support.scoring import see_later_tokens
from tests.support.tiny import VOCABULARY, random_contrast, tiny_model
from tests.support.training import Make, contrasts_of, largest_difference, trained, weights_of

# Contrasts that the model cannot read.


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_response_beyond_the_context_is_named(make: Make, architecture: str) -> None:
    long = replace(random_contrast(7), response_ids=[[20] * 3, [21] * 1100])
    with pytest.raises(InputError, match=r"Response 1 of contrast contrast-7 has 1100 tokens.*context is 1024"):
        make([*contrasts_of(3), long], model=tiny_model(architecture))


def test_a_prompt_with_a_response_may_fill_the_context() -> None:
    contrast = replace(random_contrast(0), prompt_ids=[[20] * 10, [20] * 30], response_ids=[[21] * 70, [21]])
    require_scorable([contrast], 100, VOCABULARY)
    require_scorable([contrast], None, VOCABULARY)
    with pytest.raises(InputError, match="context is 99"):
        require_scorable([contrast], 99, VOCABULARY)


def test_contrasts_of_another_tokenizer_are_refused(make: Make) -> None:
    foreign = replace(random_contrast(7), response_ids=[[20, VOCABULARY], [21]])
    with pytest.raises(InputError, match=r"contrast-7 holds the token id 320.*has 320 tokens"):
        make([*contrasts_of(3), foreign])


def test_more_processes_than_contrasts_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SAMIConfig, "world_size", property(lambda _: 4))
    with pytest.raises(InputError, match=r"4 processes train and there are 3 contrasts"):
        make(contrasts_of(3))


# A model that is not causal.


def test_a_model_that_sees_later_tokens_is_refused_without_shared_rows_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_later_tokens(monkeypatch)
    trainer = make(contrasts_of(4), share_prefix=False)
    before = weights_of(trainer)
    with pytest.raises(InputError, match="its tokens attend to later ones"):
        trainer.train()
    assert largest_difference(before, weights_of(trainer)) == 0.0


# Checkpoints.


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"vocab_size": VOCABULARY + 1}, r"lm_head\.weight"),
        ({"architecture": "gpt2"}, r"lm_head\.weight|model\.|transformer\."),
    ],
    ids=["size", "architecture"],
)
def test_a_checkpoint_of_another_model_is_refused(make: Make, tmp_path: Path, other: Any, message: str) -> None:
    make(contrasts_of(4), save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "trainer" / "checkpoint-1"
    trainer = make(contrasts_of(4), model=tiny_model(**other))
    before = weights_of(trainer)
    with pytest.raises(InputError, match=f"checkpoint-1 is of another model: the two do not both have ({message})"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert largest_difference(before, weights_of(trainer)) == 0.0


def test_a_checkpoint_of_another_adapter_is_refused(make: Make, tmp_path: Path) -> None:
    def lora(rank: int, steps: int = 3) -> Any:
        return make(
            contrasts_of(4), steps, peft_config=LoraConfig(r=rank, target_modules=["q_proj"]), learning_rate=1e-2
        )

    first = lora(2, 2)
    first.args.save_strategy, first.args.save_steps = "steps", 1
    first.train()
    checkpoint = str(tmp_path / "trainer" / "checkpoint-1")
    with pytest.raises(InputError, match=r"another model: it holds .*lora_A\.weight of shape \(2, 32\)"):
        lora(4).train(resume_from_checkpoint=checkpoint)
    lora(2).train(resume_from_checkpoint=checkpoint)


def test_the_state_that_makes_a_checkpoint_whole_is_written_last(make: Make, tmp_path: Path) -> None:
    """A save that is killed anywhere leaves no state that parses, and such a checkpoint is passed over."""
    make(contrasts_of(4), save_strategy="steps", save_steps=1).train()
    for step in (1, 2):
        files = list((tmp_path / "trainer" / f"checkpoint-{step}").iterdir())
        assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {f.name for f in files}
        assert max(files, key=lambda file: file.stat().st_mtime_ns).name == "trainer_state.json"


# Settings of the parent that would do nothing, or something else than they say.


@pytest.mark.parametrize(
    "setting",
    [{"bf16": True}, {"fp16": True}, {"torch_compile": True}, {"label_smoothing_factor": 0.1}, {"data_seed": 3}],
    ids=str,
)
def test_arguments_without_effect_are_refused(tmp_path: Path, setting: Any) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(setting))} has no place"):
        SAMIConfig(output_dir=str(tmp_path), use_cpu=True, **setting)


def test_a_launchers_mixed_precision_does_not_round_a_second_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"compute_dtype": "bfloat16", "optim": "sgd", "learning_rate": 0.1}
    plain = trained(make, contrasts_of(4), **settings)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert largest_difference(plain, trained(make, contrasts_of(4), **settings)) == 0.0
    with pytest.raises(InputError, match=r"mixed precision bf16.*compute_dtype is float32"):
        make(contrasts_of(4), compute_dtype="float32")


# The other launcher.

SCRIPT = """
    import os, sys, time
    sys.path.insert(0, {tests!r})
    import torch
    from torch.distributed.tensor import DTensor
    from transformers import Trainer
    from tests.support.tiny import random_contrast, tiny_model, tiny_tokenizer
    from sami.trainer import SAMIConfig, SAMITrainer

    save = Trainer._save_rng_state

    def slow_on_the_second(self, folder):
        time.sleep(self.args.process_index)
        save(self, folder)

    Trainer._save_rng_state = slow_on_the_second
    trainer = SAMITrainer(
        model=tiny_model("llama"),
        args=SAMIConfig(output_dir={out!r}, save_strategy="steps", save_steps=3, max_steps=3,
                        learning_rate=0.1, optim="sgd", use_cpu=True,
                        per_device_train_batch_size=2, compute_dtype="float32", report_to="none", disable_tqdm=True),
        train_dataset=[random_contrast(seed) for seed in range(8)],
        processing_class=tiny_tokenizer(chat=False),
    )
    trainer.train()
    assert trainer.args.world_size == 2
    assert all(isinstance(p, DTensor) for p in trainer.trained_model.parameters())
    trainer.save_model({out!r})
    torch.distributed.barrier()
    os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then
"""


@pytest.mark.slow
def test_accelerate_launch_trains_two_processes_to_the_weights_of_one(make: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script, out = tmp_path / "train.py", tmp_path / "two"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(ROOT), out=str(out)))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)},  # no configuration of this machine
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two: dict[str, torch.Tensor] = load_file(out / "model.safetensors")
    one = trained(make, contrasts_of(8), 3, optim="sgd", learning_rate=0.1, per_device_train_batch_size=4)
    assert largest_difference(one, two) < 1e-5
    assert largest_difference(two, dict(tiny_model("llama").state_dict())) > 1e-3
    # The checkpoint counts as whole only when the slower process has written its part.
    state, part = (out / "checkpoint-3" / name for name in ("trainer_state.json", "rng_state_1.pth"))
    assert state.stat().st_mtime_ns > part.stat().st_mtime_ns
