"""A run on disk: its lock, its resolved recipe, and a record for each finished step.

A step is redone only if it never finished. It records what it was made from, and a run whose recipe or data
changed is refused with the difference, so that no file of a run is ever mistaken for something else.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic_core import to_jsonable_python

from sami.errors import InputError, one_line
from sami.files import file_hash, read_yaml, replacing, write_json
from sami.recipe import Recipe, dump_recipe, flatten
from sami.recipe.roles import Role, keys_with
from sami.recipe.sections import Section

# Paths may change between calls, content may not: steps record content hashes.
_PATHS = keys_with(Role.PATH, Recipe)
_MACHINES = keys_with(Role.MACHINE, Recipe)
JUDGING = keys_with(Role.JUDGING, Recipe)

BASE = "base"
"""The policy of iteration 0: the model as it was."""


def policy_name(iteration: int) -> str:
    """ "base", "iteration-1", …, as policies are called in files and tables."""
    return BASE if iteration == 0 else f"iteration-{iteration}"


class RunDirectory:
    """Paths and records of one run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._intact: set[tuple[str, str]] = set()  # (step, output) pairs that this process has checked

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def principles(self) -> Path:
        return self.folder / "principles.yaml"

    def contrasts(self, iteration: int) -> Path:
        return self._iteration(iteration) / "contrasts.parquet"

    def model(self, iteration: int) -> Path:
        return self._iteration(iteration) / "model"

    def baseline_model(self, name: str) -> Path:
        return self.folder / "baselines" / name / "model"

    def shards(self, iteration: int) -> Path:
        return self._iteration(iteration) / "shards"

    def metrics(self, iteration: int) -> Path:
        return self._iteration(iteration) / "metrics.jsonl"

    def checkpoints(self, iteration: int) -> Path:
        return self._iteration(iteration) / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    def responses(self, policy: str) -> Path:
        return self.evaluation / "responses" / f"{policy}.parquet"

    def scores(self, policy: str) -> Path:
        return self.evaluation / "scores" / f"{policy}.json"

    def trained(self) -> list[int]:
        """Iterations whose training is finished, in order and without a gap."""
        return list(itertools.takewhile(lambda i: self.record(f"train-{i}") is not None, itertools.count(1)))

    def models(self) -> dict[int, Path]:
        """The models of iterations that are in the folder, by iteration in order."""
        folders = self.folder.glob("iteration-*/model")
        numbers = sorted(
            int(number) for path in folders if (number := path.parent.name.removeprefix("iteration-")).isdigit()
        )
        return {number: self.model(number) for number in numbers}

    def last_model(self) -> Path:
        """The model of the last iteration that has one.

        Raises:
            InputError: none has.
        """
        if not (models := self.models()):
            raise InputError(
                f"{self.folder} is not a run with a trained model: it has no iteration-*/model. Give the folder of a "
                f"run that has trained at least one iteration."
            )
        return models[max(models)].resolve()

    def require_run(self) -> None:
        """Refuse a folder that `sami run` did not make.

        Raises:
            InputError: it has no recipe.yaml.
        """
        if not self.recipe.is_file():
            raise InputError(
                f"{self.folder} is not a run folder: recipe.yaml is missing. Give the folder that `sami run` wrote, "
                f"such as runs/quickstart."
            )

    def _iteration(self, iteration: int) -> Path:
        return self.folder / f"iteration-{iteration}"

    @contextmanager
    def open(self, recipe: Recipe, principles: str | None, wait: float = 0.0) -> Iterator[None]:
        """Hold the run's lock, and write or compare its recipe.

        A recipe under which no step was finished is replaced.

        Args:
            principles: text of the principles file, kept beside the recipe; None where a step writes it.
            wait: seconds to wait for another process that holds the lock.

        Raises:
            InputError: the folder belongs to another recipe, to no run at all, or is in use.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"You passed --output {self.folder}, which is a file. Give a folder.")
        if self.folder.is_dir() and not self._records.is_dir():
            strangers = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if strangers:
                raise InputError(
                    f"{self.folder} is not a run folder, but it holds other files "
                    f"({', '.join(sorted(strangers)[:3])}). Give a new folder with --output."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise InputError(
                f"Another process is writing to the run {self.folder}. Wait for it to end, or give another --output."
            ) from None
        try:
            self._records.mkdir(exist_ok=True)
            if any(self._records.glob("*.json")):
                recorded = self.require_recipe(recipe)
                if recorded.get("evaluation") != recipe.model_dump()["evaluation"]:
                    self._write_recipe(recipe)
            else:
                self._write_recipe(recipe)
                if principles is not None:
                    with replacing(self.principles) as temporary:
                        temporary.write_text(principles, encoding="utf-8")
            yield
        finally:
            lock.release()

    @contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Hold the lock of one file, for work that does not need the whole run.

        Raises:
            InputError: another process writes that file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"Another process is writing to {path}. Wait for it to end.") from None
        try:
            yield
        finally:
            lock.release()

    def step(
        self,
        name: str,
        inputs: dict[str, Any],
        outputs: Sequence[Path],
        work: Callable[[], dict[str, Any]],
        *,
        may_be_edited: bool = False,
        logs: Sequence[Path] = (),
    ) -> dict[str, Any]:
        """Do a step unless it is done, and return what it reported.

        Args:
            inputs: what the step is made from, as JSON values; compared with the record.
            outputs: files and folders that must exist for the step to count as done. Their hashes are recorded.
            work: writes the outputs, each under its final name only when whole, and returns JSON values.
            logs: files that the work writes on the way, which are hashed too and may be missing later.
            may_be_edited: whether users may change the outputs, so that no hashes are recorded.

        Raises:
            InputError: the step was done with other inputs, or an output changed since.
        """
        record = self.record(name)
        if record is not None:
            changed = differences(record["inputs"], inputs)
            if changed:
                raise InputError(
                    f"The step {name} of {self.folder} was made from other inputs:\n{changed}\n"
                    f"Start a new run with another --output, or restore the inputs."
                )
            if all(path.exists() for path in outputs):
                self.require_intact(name)
                return dict(record["result"])
        started = time.perf_counter()
        result = work()
        seconds = round(time.perf_counter() - started, 2)
        hashed = [] if may_be_edited else [*outputs, *logs]
        hashes = {path.relative_to(self.folder).as_posix(): content_hash(path) for path in hashed}
        write_json(self._record_file(name), {"inputs": inputs, "seconds": seconds, "result": result, "outputs": hashes})
        self._intact |= {(name, relative) for relative in hashes}
        return result

    def record(self, name: str) -> dict[str, Any] | None:
        """The record of a finished step; None for one that never finished.

        Raises:
            InputError: the record is damaged.
        """
        file = self._record_file(name)
        if not file.is_file():
            return None
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            _ = value["inputs"], value["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The record {file} of the step {name} is damaged ({one_line(error)[:200]}). Delete it to do the step "
                f"again, or restore it from a copy of the run."
            ) from None
        return dict(value)

    def require_intact(self, name: str, only: Path | None = None) -> None:
        """Refuse outputs of a finished step that changed since it wrote them; each is read once per process.

        Args:
            only: the one output to check, by default all of them.

        Raises:
            InputError: the first one that differs from its record.
        """
        for relative, recorded in ((self.record(name) or {}).get("outputs") or {}).items():
            path = self.folder / relative
            if (name, relative) in self._intact or only not in (None, path):
                continue
            if path.exists() and content_hash(path) != recorded:
                raise InputError(
                    f"{path} changed after the step {name} wrote it, so figures made from it would be wrong. Restore "
                    f"it from a copy, or delete it and {self._record_file(name)} to do the step again."
                )
            self._intact.add((name, relative))

    def require_intact_model(self, iteration: int) -> None:
        """Refuse the weights of an iteration if they changed after training wrote them.

        Raises:
            InputError: they changed.
        """
        self.require_intact(f"train-{iteration}", self.model(iteration))

    def require(self, name: str, command: str) -> dict[str, Any]:
        """The record of a step that another one needs."""
        record = self.record(name)
        if record is None:
            raise InputError(f"The step {name} of {self.folder} has not been done yet. Run `{command}` first.")
        return record

    @property
    def _records(self) -> Path:
        """The folder of step records, which marks the run's folder as ours."""
        return self.folder / ".steps"

    def _record_file(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def recorded_recipe(self) -> dict[str, Any] | None:
        """The resolved recipe of the run in this folder; None if there is no run yet."""
        if not self.recipe.is_file():
            return None
        recorded: dict[str, Any] = read_yaml(
            self.recipe, f"The recipe {self.recipe}", "Restore it from a copy of the run."
        )
        return recorded

    def require_recipe(self, recipe: Recipe) -> dict[str, Any]:
        """Refuse a run of another recipe; returns the run's own, which may differ in its judging.

        Raises:
            InputError: with the difference.
        """
        recorded = self.recorded_recipe()
        assert recorded is not None
        now = recipe.model_dump()
        moved = _PATHS & _given(recorded) & _given(now)
        changed = differences(recorded, now, ignore=moved | _MACHINES | JUDGING)
        if changed:
            raise InputError(
                f"The folder {self.folder} holds a run of another recipe:\n{changed}\n"
                f"Give another --output, or undo the change."
            )
        return recorded

    def _write_recipe(self, recipe: Recipe) -> None:
        with replacing(self.recipe) as temporary:
            temporary.write_text(dump_recipe(recipe), encoding="utf-8")


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the files in a folder with their names, without model cards and temporary files."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != "README.md" and not file.name.startswith("."):
            digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def _given(values: dict[str, Any]) -> set[str]:
    """Keys of a nested mapping that have a value."""
    return {key for key, value in flatten(values) if value is not None}


def differences(before: dict[str, Any], after: dict[str, Any], ignore: set[str] | frozenset[str] = frozenset()) -> str:
    """Where two nested mappings differ, a line for each key; empty where they do not.

    A recipe key that `before` lacks was added later, and had the effect of its default.
    """
    old, new = dict(flatten(before)), dict(flatten(after))
    earlier = _defaults() | old
    return "\n".join(
        f"- {key}: {earlier.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if key not in ignore and earlier.get(key) != new.get(key)
    )


@cache
def _defaults() -> dict[str, Any]:
    """What the keys of a recipe are where it does not give them, as YAML and JSON hold it."""
    values = {
        name: {
            key: inner.get_default(call_default_factory=True)
            for key, inner in section.annotation.model_fields.items()
            if not inner.is_required()
        }
        for name, section in Recipe.model_fields.items()
        if isinstance(section.annotation, type) and issubclass(section.annotation, Section)
    }
    return dict(flatten(to_jsonable_python(values)))
