"""Training on several machines: two of them, played by two commands that meet over loopback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sami import cli
from sami.errors import InputError
from sami.launch import meeting
from sami.pipeline import Pipeline
from sami.recipe import Launch, load_recipe
from test_pipeline import write_recipe

# Sums in another order, in fp32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str, bool], Path]) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("recipe"), model_folder("llama", True), training__steps=[6, 3], launch__nodes=2
    )


def losses(run: Path) -> list[float]:
    lines = (run / "iteration-1" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
def test_two_machines_train_the_trajectory_of_one_process(recipe: Path, tmp_path: Path) -> None:
    both, one = tmp_path / "both", tmp_path / "one"
    Pipeline(load_recipe(recipe), both).generate(1)
    alone = Pipeline(load_recipe(recipe, ["launch.nodes=1"]), one)
    alone.generate(1)
    alone.train(1)

    address = f"127.0.0.1:{free_port() - 1}"  # and one more for the iteration
    command = [sys.executable, "-m", "sami.cli", "train", str(recipe), "--output", str(both)]
    machines = [
        subprocess.Popen(
            [*command, f"launch.rank={rank}", f"launch.address={address}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (1, 0)
    ]
    (said_1, progress_1), (said_0, _) = [machine.communicate(timeout=240) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], progress_1
    assert said_0.strip() == str(both / "iteration-1" / "model")
    assert said_1 == ""
    assert "machine 1 of 2 waits" in progress_1

    assert len(losses(one)) == 6
    assert losses(both) == pytest.approx(losses(one), abs=TOLERANCE)
    assert max(losses(one)) - min(losses(one)) > 1000 * TOLERANCE  # a trajectory that could have differed
    ours, theirs = (load_file(run / "iteration-1" / "model" / "model.safetensors") for run in (both, one))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-3
    [step] = [json.loads((both / ".steps" / "train-1.json").read_text())]
    assert step["result"]["steps"] == 6  # recorded once, by machine 0


def test_torchrun_is_told_where_to_meet() -> None:
    first = meeting(Launch(nodes=3, rank=0, address="10.0.0.7:29500"), iteration=2)
    last = meeting(Launch(nodes=3, rank=2, address="10.0.0.7:29500"), iteration=2)
    assert first[:8] == ["--nnodes", "3", "--node-rank", "0", "--master-addr", "10.0.0.7", "--master-port", "29502"]
    assert [a for a, b in zip(first, last, strict=True) if a != b] == ["0", "timeout=1800"]
    assert meeting(Launch(), iteration=1) == ["--standalone"]


def test_several_machines_need_an_address(recipe: Path, tmp_path: Path) -> None:
    run = Pipeline(load_recipe(recipe), tmp_path / "run")
    run.generate(1)
    with pytest.raises(InputError, match=r"need an address to meet at.*launch\.rank=0 to 1"):
        run.train(1)
    assert not (tmp_path / "run" / "iteration-1" / "model").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("launch.rank=2", "the ranks 0 to 1"),
        ("launch.address=somewhere", "launch.address"),
        ("launch={nodes: 1, address: 'a:1'}", "address has no effect on one machine"),
        ("launch={nodes: 3}", "on 3 machines and training.batch_size is 4"),
        ("training.beta=0.1", "on 2 machines and training.beta"),
    ],
)
def test_machines_that_cannot_work_together_are_refused(recipe: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(recipe, [override])


def test_another_machine_than_the_first_only_trains(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("generate", "evaluate"):
        monkeypatch.setattr(sys, "argv", ["sami", command, str(recipe), "launch.rank=1"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        assert "other machines than 0 only take part in" in capsys.readouterr().err


def test_a_machine_with_another_recipe_is_refused(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Pipeline(load_recipe(recipe), run).generate(1)
    other = Pipeline(load_recipe(recipe, ["training.lr=1e-4", "launch.rank=1", "launch.address=a:1"]), run)
    with pytest.raises(InputError) as caught:
        other.directory.require_recipe(other.recipe)
    assert "training.lr" in str(caught.value)
    assert "launch" not in str(caught.value)
