"""One trajectory of losses, written down once, that every route through training must reproduce.

The file beside this one holds it at full precision. A change that is not about computation leaves it as it is; one
that is about computation writes it anew, and says so in its commit: python tests/test_invariants.py
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sami.trainer import SAMIConfig, SAMITrainer
from tiny import random_contrast, tiny_model, tiny_tokenizer

FILE = Path(__file__).with_name("trajectory.json")
STEPS = 8
# Sums in another order, in fp32; another computation differs by more than a hundred times that.
TOLERANCE = 1e-5


def trajectory(out: Path, *, micro: int = 8, steps: int = STEPS, resume: Path | None = None, **settings: Any) -> Any:
    """Losses of the steps of one run: 8 contrasts of 3 constitutions a step, on a tiny llama."""
    trainer = SAMITrainer(
        model=tiny_model("llama"),
        args=SAMIConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // micro,
            learning_rate=0.05,
            optim="sgd",
            compute_dtype="float32",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=[random_contrast(seed, 3) for seed in range(24)],
        processing_class=tiny_tokenizer(chat=False),
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("gradient_cache", [False, True], ids=["whole", "cached"])
def test_every_route_gives_the_trajectory(tmp_path: Path, micro: int, share_prefix: bool, gradient_cache: bool) -> None:
    losses = trajectory(tmp_path, micro=micro, share_prefix=share_prefix, gradient_cache=gradient_cache)
    assert losses == pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


def test_activation_checkpointing_gives_the_trajectory(tmp_path: Path) -> None:
    losses = trajectory(tmp_path, gradient_checkpointing=True)
    assert losses == pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


def test_a_resumed_run_gives_the_trajectory(tmp_path: Path) -> None:
    trajectory(tmp_path, micro=4, steps=5, save_strategy="steps", save_steps=5)
    losses = trajectory(tmp_path, micro=4, resume=tmp_path / "checkpoint-5")
    assert losses == pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


def test_the_trajectory_would_show_another_computation(tmp_path: Path) -> None:
    written = json.loads(FILE.read_text())
    for change in ({"contrast": "columns"}, {"per_token": False}, {"train_eos": False}, {"seed": 1}):
        losses = trajectory(tmp_path, **change)
        assert max(abs(a - b) for a, b in zip(losses, written, strict=True)) > 100 * TOLERANCE, change


if __name__ == "__main__":
    FILE.write_text(json.dumps(trajectory(Path(sys.argv[1] if len(sys.argv) > 1 else "trajectory")), indent=1) + "\n")
