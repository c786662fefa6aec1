"""What the files of a run say, read for a page; a run that is not finished gives what there is, and what is missing.

files = read_run("runs/quickstart")
files.summary["policies"], files.responses["base"], files.missing
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sami.contrasts import Contrast, read_contrasts
from sami.errors import InputError, one_line
from sami.evaluation.verdicts import Verdict, read_verdicts
from sami.evaluation.win_rate import win_rates
from sami.loop import summary as summaries
from sami.loop.directory import BASE, RunDirectory, policy_name
from sami.principles import Principle, load_principles
from sami.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run directory. Whatever could not be read is empty and named in `missing`."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    """recipe.yaml as it stands."""
    recipe_text: str
    principles: list[Principle]
    principles_text: str
    summary: dict[str, Any]
    """summary.json; of an unfinished run, the same figures from the scores that are there."""
    is_summary_stored: bool
    """Whether `summary` is the file's, rather than made from the scores of an unfinished run."""
    responses: dict[str, list[Contrast]]
    """Held-out answers by policy, base first, then iterations, then baselines."""
    scores: dict[str, dict[str, Any]]
    """evaluation/scores by policy."""
    metrics: dict[int, list[dict[str, Any]]]
    """Training steps by iteration."""
    verdicts: list[Verdict]
    missing: list[str] = field(default_factory=list)
    """What the run lacks, a sentence each; empty for a finished run."""

    @property
    def iterations(self) -> int:
        """How many the recipe asks for."""
        return int(self.recipe.get("training", {}).get("iterations", 0))

    @property
    def policies(self) -> list[dict[str, Any]]:
        return list(self.summary.get("policies", []))

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The entries of the run's own iterations after base."""
        return [p for p in self.policies if p["iteration"]]

    @property
    def base(self) -> dict[str, Any] | None:
        return next((p for p in self.policies if p["iteration"] == 0), None)

    @property
    def last(self) -> dict[str, Any] | None:
        """The entry of the last iteration that is evaluated."""
        return self.trained[-1] if self.trained else None


def read_run(folder: str | Path) -> RunFiles:
    """Read a run directory.

    Raises:
        InputError: the folder is no run.
    """
    directory = RunDirectory(folder)
    path = directory.folder
    if not path.is_dir():
        raise InputError(f"There is no folder {path}. Give the folder of a run, such as runs/quickstart.")
    if not (path / "recipe.yaml").is_file():
        raise InputError(
            f"The folder {path} holds no recipe.yaml, so it is no run. Give the folder that `sami run` wrote."
        )
    missing: list[str] = []

    def read(file: Path, how: Callable[[Path], T]) -> T | None:
        """What a file holds; one that is damaged or not there is told of, not fatal."""
        if not file.is_file():
            missing.append(f"{file.relative_to(path)} is not there.")
            return None
        try:
            return how(file)
        except (InputError, ValueError, OSError, yaml.YAMLError) as error:
            missing.append(f"{file.relative_to(path)} cannot be read: {one_line(error):.300}")
            return None

    def read_if_there(file: Path, how: Callable[[Path], T]) -> T | None:
        return read(file, how) if file.is_file() else None

    recipe = read(path / "recipe.yaml", _yaml_mapping) or {}
    principles_file = path / "principles.yaml"
    principles = read(principles_file, load_principles) or []
    responses = {
        n: found for n in _policies_in_order(directory) if (found := read(directory.responses(n), read_contrasts))
    }
    scores = {n: scored for n in responses if (scored := read_if_there(directory.scores(n), _json_mapping))}
    verdicts = read_if_there(directory.evaluation / "verdicts.jsonl", read_verdicts) or []
    iterations = range(1, int(recipe.get("training", {}).get("iterations", 0)) + 1)
    metrics = {i: steps for i in iterations if (steps := read_if_there(directory.metrics(i), _json_lines))}
    stored = read_if_there(directory.summary, _json_mapping)
    files = RunFiles(
        folder=path,
        name=path.resolve().name,
        recipe=recipe,
        recipe_text=_text(path / "recipe.yaml"),
        principles=principles,
        principles_text=_text(principles_file) if principles_file.is_file() else "",
        summary=stored or _summary_so_far(directory, recipe, principles, scores, verdicts, missing),
        is_summary_stored=bool(stored),
        responses=responses,
        scores=scores,
        metrics=metrics,
        verdicts=verdicts,
        missing=missing,
    )
    missing += _unfinished(directory, files)
    return files


def _policies_in_order(directory: RunDirectory) -> list[str]:
    found = {file.stem for file in (directory.evaluation / "responses").glob("[!.]*.parquet")}
    own = [BASE, *(policy_name(i) for i in range(1, len(found) + 1))]
    return [name for name in own if name in found] + sorted(found.difference(own))


def _summary_so_far(
    directory: RunDirectory,
    recipe: dict[str, Any],
    principles: list[Principle],
    scores: dict[str, Any],
    verdicts: list[Verdict],
    missing: list[str],
) -> dict[str, Any]:
    """The figures of the policies that are scored, as the finished run would state them."""
    scored = [BASE, *(policy_name(i) for i in range(1, len(scores) + 1))]
    scored = [name for name in scored if name in scores]
    if BASE not in scored or not principles:
        return {}
    try:
        value = summaries.summarise(directory, Recipe.model_validate(recipe), principles, scored)
        return {**value, "win_rates": win_rates(verdicts) if any(v.score is not None for v in verdicts) else []}
    except (ValidationError, KeyError, TypeError) as error:  # of another version of sami
        missing.append(
            f"The scores of this run cannot be summed up by this version of sami ({type(error).__name__}). "
            "Its answers are shown as they are."
        )
        return {}


def _unfinished(directory: RunDirectory, files: RunFiles) -> list[str]:
    """What a run does not have yet, in the order in which it would come."""
    said = []
    if BASE not in files.responses:
        said.append("base has not answered the held-out queries yet, so there is nothing to compare with.")
    elif BASE not in files.scores:
        said.append("base has answered and is not scored yet.")
    for iteration in range(1, files.iterations + 1):
        name = policy_name(iteration)
        if not directory.contrasts(iteration).is_file():
            said.append(f"Iteration {iteration} has not started: it has no contrasts.")
        elif directory.record(f"train-{iteration}") is None:
            done, steps = len(files.metrics.get(iteration, [])), _steps(files.recipe, iteration)
            said.append(f"Iteration {iteration} is not trained: {done} of {steps} steps are recorded.")
        elif name not in files.responses:
            said.append(f"{name} is trained and has not answered the held-out queries.")
        elif name not in files.scores:
            said.append(f"{name} has answered and is not scored.")
    if not files.is_summary_stored:
        said.append("There is no summary.json, so the run did not come to its end.")
    elif known := [name for name in files.scores if name not in {p["name"] for p in files.policies}]:
        said.append(f"{', '.join(known)} is scored and not in summary.json, which is older.")
    if files.scores and not files.summary.get("win_rates"):
        said.append("No judge has compared the answers, so there are no win rates.")
    return said


def _steps(recipe: dict[str, Any], iteration: int) -> int | str:
    steps = recipe.get("training", {}).get("steps")
    if isinstance(steps, list) and steps:
        return int(steps[iteration - 1] if 1 < len(steps) >= iteration else steps[0])
    return steps if isinstance(steps, int) else "?"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _yaml_mapping(file: Path) -> dict[str, Any]:
    value = yaml.safe_load(_text(file))
    return _mapping(value)


def _json_mapping(file: Path) -> dict[str, Any]:
    return _mapping(json.loads(file.read_text(encoding="utf-8")))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no mapping of names to values")
    return value


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; a last one that a kill cut off is left out."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]
