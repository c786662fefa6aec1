"""One trajectory of losses, written down once, that every route through training must reproduce.

trajectory.json holds it at full precision. A change that is not about computation leaves it as it is. A change that is
about computation writes it anew and says so in its commit: PYTHONPATH=. python tests/training/test_invariants.py
"""

import itertools
import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.launching import launch
from tests.support.training import contrasts_of, logged, make_trainer

FILE = Path(__file__).with_name("trajectory.json")
STEPS = 8
# Sums in another order, in fp32; another computation differs by more than a hundred times that.
TOLERANCE = 1e-5
ROUTES = list(itertools.product([4, 2, 1], [True, False], [False, True]))  # of two processes


def trajectory(out, *, micro=8, steps=STEPS, resume=None, **settings):
    """Losses of the steps of one run, in every process: 8 contrasts of 3 constitutions per step, on a tiny llama."""
    trainer = make_trainer(
        out,
        contrasts_of(24, 3),
        steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // (micro * int(os.environ.get("WORLD_SIZE", "1"))),
        learning_rate=0.05,
        optim="sgd",
        **settings,
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return logged(trainer, "loss")


def written():
    return pytest.approx(json.loads(FILE.read_text()), abs=TOLERANCE)


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("gradient_cache", [False, True], ids=["whole", "cached"])
def test_every_route_gives_the_trajectory(tmp_path, micro, share_prefix, gradient_cache):
    losses = trajectory(tmp_path, micro=micro, share_prefix=share_prefix, gradient_cache=gradient_cache)
    assert losses == written()


def test_activation_checkpointing_gives_the_trajectory(tmp_path):
    assert trajectory(tmp_path, gradient_checkpointing=True) == written()


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("share_prefix", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("gradient_cache", [False, True], ids=["whole", "cached"])
def test_a_resumed_run_gives_the_trajectory(tmp_path, micro, share_prefix, gradient_cache):
    route = {"micro": micro, "share_prefix": share_prefix, "gradient_cache": gradient_cache}
    trajectory(tmp_path, steps=5, save_strategy="steps", save_steps=5, **route)
    assert trajectory(tmp_path, resume=tmp_path / "checkpoint-5", **route) == written()


# Every route of two processes in a single launch, because launching takes longer than all of them.
TWO_PROCESSES = """
    from tests.training.test_invariants import ROUTES, trajectory

    out, found = pathlib.Path(sys.argv[1]), []
    for n, (micro, share_prefix, gradient_cache) in enumerate(ROUTES):
        route = dict(micro=micro, share_prefix=share_prefix, gradient_cache=gradient_cache)
        folder = out / str(n)
        found.append(trajectory(folder, **route))
        trajectory(folder, steps=5, save_strategy="steps", save_steps=5, **route)
        found.append(trajectory(folder, resume=folder / "checkpoint-5", **route))
    if os.environ["RANK"] == "0":
        (out / "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_every_route_of_two_processes_gives_the_trajectory(tmp_path):
    launch(tmp_path, TWO_PROCESSES, tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == 2 * len(ROUTES)
    for losses in found:
        assert losses == written()


def test_another_computation_leaves_the_trajectory(tmp_path):
    expected = json.loads(FILE.read_text())
    for change in ({"contrast": "columns"}, {"per_token": False}, {"train_eos": False}, {"seed": 1}):
        losses = trajectory(tmp_path, **change)
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) > 100 * TOLERANCE, change


if __name__ == "__main__":
    FILE.write_text(json.dumps(trajectory(Path(sys.argv[1] if len(sys.argv) > 1 else "trajectory")), indent=1) + "\n")
