"""kill -9 before any file operation of a run, again and again: the run that continues ends as if nothing happened."""

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sami.recipe import Recipe, load_recipe
from tests.support.recipes import Folder, timeless, write_recipe

KINDS: dict[str, dict[str, Any]] = {
    "weights": {},
    "adapter": {"adapter__r": 2, "adapter__merge": False},
    "merged adapter": {"adapter__r": 2, "adapter__merge": True},
}
TRAINING = {"training__iterations": 1, "training__steps": 4, "training__checkpoint_steps": 1}
BATCHES, KILLS = 10, 10  # half of the kills are aimed at checkpoints, of which two are kept and the others removed
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Through:
    """A run that was not killed, and the file operations in its folder, in order."""

    recipe: Recipe
    folder: Path
    operations: list[str]


@pytest.fixture(scope="module")
def context() -> Any:
    made = multiprocessing.get_context("forkserver")  # a clean interpreter with everything imported, forked
    made.set_forkserver_preload(["sami.pipeline", "peft", "test_kills"])
    return made


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, model_folder: Folder, context: Any) -> Callable[[str], Through]:
    made: dict[str, Through] = {}

    def get(kind: str) -> Through:
        if kind not in made:
            place = tmp_path_factory.mktemp("through")
            recipe = load_recipe(write_recipe(place, model_folder("llama", True), **TRAINING, **KINDS[kind]))
            assert _exit_of(context, recipe, place / "run", place / "operations") == 0
            operations = (place / "operations").read_text().splitlines()
            made[kind] = Through(recipe, place / "run", operations)
        return made[kind]

    return get


def _exit_of(context: Any, recipe: Recipe, folder: Path, log: Path, place: str = "", number: int = 0) -> int | None:
    process = context.Process(target=_run, args=(recipe, folder, log, place, number))
    process.start()
    process.join(timeout=300)
    exit_code: int | None = process.exitcode
    return exit_code


def _run(recipe: Recipe, folder: Path, log: Path, place: str, number: int) -> None:
    """Run, log every file operation, and die before the one of this number among those whose log contains `place`."""
    from sami import pipeline

    lines = log.open("w", buffering=1)  # before the hook sees it
    left = number

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        changes = event in CHANGING or (event == "open" and bool((arguments[2] or 0) & WRITING))
        if not changes or not isinstance(arguments[0], str | os.PathLike):
            return
        path = Path(_absolute(str(arguments[0]), arguments[-1] if event in ("os.remove", "os.rmdir") else -1))
        if not path.is_relative_to(folder):
            return
        operation = f"{event} {path.relative_to(folder)}"
        lines.write(operation + "\n")
        if place in operation:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    pipeline.run(recipe, folder)


def _absolute(path: str, directory: int) -> str:
    """A path that may be relative to an open directory, as shutil.rmtree removes files."""
    return path if directory == -1 else os.path.join(os.readlink(f"/proc/self/fd/{directory}"), path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_run_killed_at_any_file_operation_ends_with_the_summary_of_one_that_was_not(
    through: Callable[[str], Through], context: Any, tmp_path: Path, batch: int
) -> None:
    whole = through(list(KINDS)[batch % len(KINDS)])
    draw = random.Random(batch)
    for kill in range(KILLS):
        place = "checkpoint" if kill % 2 else ""
        number = draw.randint(1, sum(place in operation for operation in whole.operations))
        folder, log = tmp_path / f"run-{kill}", tmp_path / f"operations-{kill}"
        assert _exit_of(context, whole.recipe, folder, log, place, number) == -signal.SIGKILL
        at = f"batch {batch}, kill {kill}, before {log.read_text().splitlines()[-1]!r}"
        assert _exit_of(context, whole.recipe, folder, tmp_path / "rest") == 0, f"{at}: the run did not continue"
        assert _figures(folder) == _figures(whole.folder), at
        assert _files(folder) == _files(whole.folder), at


def _figures(folder: Path) -> tuple[Any, ...]:
    metrics = (folder / "iteration-1" / "metrics.jsonl").read_text().splitlines()
    steps = [{key: v for key, v in json.loads(line).items() if "runtime" not in key} for line in metrics]
    return timeless(json.loads((folder / "summary.json").read_text())), steps


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
