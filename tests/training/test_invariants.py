"""One trajectory of losses, written down once, that every route through training must reproduce.

The file beside this one holds it at full precision. A change that is not about computation leaves it as it is; one
that is about computation writes it anew, and says so in its commit: python tests/test_invariants.py
"""

import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.tiny import random_contrast, tiny_model, tiny_tokenizer

FILE = Path(__file__).with_name("trajectory.json")
STEPS = 8
# Sums in another order, in fp32; another computation differs by more than a hundred times that.
TOLERANCE = 1e-5


def trajectory(out: Path, *, micro: int = 8, steps: int = STEPS, resume: Path | None = None, **settings: Any) -> Any:
    """Losses of the steps of one run: 8 contrasts of 3 constitutions a step, on a tiny llama, in every process."""
    trainer = SAMITrainer(
        model=tiny_model("llama"),
        args=SAMIConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=8 // (micro * int(os.environ.get("WORLD_SIZE", "1"))),
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


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("gradient_cache", [False, True], ids=["whole", "cached"])
def test_a_resumed_run_gives_the_trajectory(
    tmp_path: Path, micro: int, share_prefix: bool, gradient_cache: bool
) -> None:
    route: dict[str, Any] = {"micro": micro, "share_prefix": share_prefix, "gradient_cache": gradient_cache}
    trajectory(tmp_path, steps=5, save_strategy="steps", save_steps=5, **route)
    losses = trajectory(tmp_path, resume=tmp_path / "checkpoint-5", **route)
    assert losses == pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


# Every route of two processes in one launch, which takes longer than all of them.
TWO_PROCESSES = """
    import itertools, json, os, pathlib, sys
    sys.path.insert(0, {tests!r})
    import torch
    from tests.training.test_invariants import ROUTES, trajectory

    out, found = pathlib.Path({out!r}), []
    for n, (micro, share_prefix, gradient_cache) in enumerate(ROUTES):
        route = dict(micro=micro, share_prefix=share_prefix, gradient_cache=gradient_cache)
        folder = out / str(n)
        found.append(trajectory(folder, **route))
        trajectory(folder, steps=5, save_strategy="steps", save_steps=5, **route)
        found.append(trajectory(folder, resume=folder / "checkpoint-5", **route))
    if os.environ["RANK"] == "0":
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then
"""
ROUTES = list(itertools.product([4, 2, 1], [True, False], [False, True]))


@pytest.mark.slow
def test_every_route_of_two_processes_gives_the_trajectory(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES).format(tests=str(FILE.parent), out=str(tmp_path)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2 * len(ROUTES)
    for losses in found:
        assert losses == pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


def test_the_trajectory_would_show_another_computation(tmp_path: Path) -> None:
    written = json.loads(FILE.read_text())
    for change in ({"contrast": "columns"}, {"per_token": False}, {"train_eos": False}, {"seed": 1}):
        losses = trajectory(tmp_path, **change)
        assert max(abs(a - b) for a, b in zip(losses, written, strict=True)) > 100 * TOLERANCE, change


if __name__ == "__main__":
    FILE.write_text(json.dumps(trajectory(Path(sys.argv[1] if len(sys.argv) > 1 else "trajectory")), indent=1) + "\n")
