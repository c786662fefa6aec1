"""Read the files of a run for a page. An unfinished run gives what exists, and a list of what is missing.

files = read_run("runs/quickstart")
files.summary.policies, files.responses["base"], files.missing
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
from sami.evaluation import recorded_lines
from sami.evaluation.comparison import calibration_file, recorded_accuracies
from sami.evaluation.verdicts import Verdict, read_verdicts
from sami.evaluation.win_rate import agreement, win_rates
from sami.loop import summary as summaries
from sami.loop.directory import BASE, RunDirectory, policy_name
from sami.loop.results import PolicyResult, Summary
from sami.principles import Principle, load_principles
from sami.recipe import Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder. Whatever could not be read is empty and named in `missing`."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    """The values of recipe.yaml as written."""
    settings: Recipe | None
    """The same as a recipe; None where it does not fit this version of sami."""
    recipe_text: str
    principles: list[Principle]
    principles_text: str
    summary: Summary
    """summary.json; for an unfinished run, the same figures computed from the existing scores."""
    is_summary_stored: bool
    """Whether `summary` was read from the file."""
    responses: dict[str, list[Contrast]]
    """Held-out answers by policy: base, then iterations, then baselines."""
    scores: dict[str, dict[str, Any]]
    """evaluation/scores by policy."""
    metrics: dict[int, list[dict[str, Any]]]
    """Training steps by iteration."""
    verdicts: list[Verdict]
    missing: list[str] = field(default_factory=list)
    """What the run lacks, one sentence each; empty for a finished run."""

    @property
    def constitutions(self) -> int:
        """Constitutions per contrast."""
        return 2 if self.settings is None else self.settings.sampling.constitutions

    @property
    def model(self) -> str:
        """The name of the base model, empty where it is unknown."""
        return self.summary.model or ("" if self.settings is None else self.settings.model.source)

    @property
    def policies(self) -> list[PolicyResult]:
        return self.summary.policies

    @property
    def base(self) -> PolicyResult | None:
        return self.summary.base

    @property
    def last(self) -> PolicyResult | None:
        """The last iteration that was evaluated."""
        return self.summary.last


class _Reader:
    """Reads files one by one and records those that are missing or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: list[str] = []

    def required(self, file: Path, how: Callable[[Path], T]) -> T | None:
        if not file.is_file():
            self.missing.append(f"{file.relative_to(self.folder)} is missing.")
            return None
        return self.optional(file, how)

    def optional(self, file: Path, how: Callable[[Path], T]) -> T | None:
        """The contents of a file; a damaged one is recorded and does not stop the reading."""
        if not file.is_file():
            return None
        try:
            return how(file)
        except (InputError, ValueError, OSError, yaml.YAMLError) as error:
            self.missing.append(f"{file.relative_to(self.folder)} cannot be read: {one_line(error):.300}")
            return None


def read_run(folder: str | Path) -> RunFiles:
    """Read a run folder.

    Raises:
        InputError: it is not a run folder, or a file changed after it was recorded.
    """
    directory = RunDirectory(folder)
    path = directory.folder
    directory.require_run()
    _require_intact(directory)
    reader = _Reader(path)
    recipe = reader.required(path / "recipe.yaml", _yaml_mapping) or {}
    settings = _settings(recipe, reader) if recipe else None
    principles = reader.required(directory.principles, load_principles) or []
    responses = {
        name: found
        for name in _policies_in_order(directory)
        if (found := reader.required(directory.responses(name), read_contrasts))
    }
    scores = {n: scored for n in responses if (scored := reader.optional(directory.scores(n), _json_mapping))}
    verdicts = reader.optional(_verdicts_file(directory), read_verdicts) or []
    iterations = range(1, (settings.training.iterations if settings else 0) + 1)
    stored = reader.optional(directory.summary, Summary.read)
    files = RunFiles(
        folder=path,
        name=path.resolve().name,
        recipe=recipe,
        settings=settings,
        recipe_text=_text(path / "recipe.yaml"),
        principles=principles,
        principles_text=_text(directory.principles) if directory.principles.is_file() else "",
        summary=stored or _summary_so_far(directory, settings, principles, list(scores), verdicts, reader),
        is_summary_stored=stored is not None,
        responses=responses,
        scores=scores,
        metrics={i: steps for i in iterations if (steps := reader.optional(directory.metrics(i), _json_lines))},
        verdicts=verdicts,
        missing=reader.missing,
    )
    reader.missing += _unfinished(directory, files)
    return files


def _require_intact(directory: RunDirectory) -> None:
    """Refuse changed files, since a page must not show figures that were edited. Weights are not read."""
    for name in _policies_in_order(directory):
        directory.require_intact(f"respond-{name}", directory.responses(name))
        directory.require_intact(f"score-{name}", directory.scores(name))
    for iteration in directory.trained():
        directory.require_intact(f"train-{iteration}", directory.metrics(iteration))
    for file in (_verdicts_file(directory), calibration_file(directory.evaluation)):
        recorded_lines.require_unchanged(file)


def _settings(recipe: dict[str, Any], reader: _Reader) -> Recipe | None:
    try:
        return Recipe.model_validate(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reader.missing.append(f"recipe.yaml does not fit this version of sami: {key}: {one_line(first['msg']):.200}.")
        return None


def _policies_in_order(directory: RunDirectory) -> list[str]:
    found = {file.stem for file in (directory.evaluation / "responses").glob("[!.]*.parquet")}
    own = [BASE, *(policy_name(i) for i in range(1, len(found) + 1))]
    return [name for name in own if name in found] + sorted(found.difference(own))


def _summary_so_far(
    directory: RunDirectory,
    settings: Recipe | None,
    principles: list[Principle],
    scored: list[str],
    verdicts: list[Verdict],
    reader: _Reader,
) -> Summary:
    """The figures of the policies that are scored, computed as the finished run would."""
    own = [BASE, *(policy_name(i) for i in range(1, len(scored) + 1))]
    own = [name for name in own if name in scored]
    if BASE not in own or not principles or settings is None:
        return Summary(policies=[])
    try:
        judged = _judged_so_far(directory, settings, verdicts, reader)
        return summaries.summarize(directory, settings, principles, own, judged=judged)
    except (ValidationError, KeyError, TypeError) as error:  # scores of another version of sami
        reader.missing.append(
            f"This version of sami cannot summarize the scores of this run ({type(error).__name__}). "
            "Its answers are shown without figures."
        )
        return Summary(policies=[])


def _judged_so_far(
    directory: RunDirectory, settings: Recipe, verdicts: list[Verdict], reader: _Reader
) -> dict[str, Any] | None:
    """What judges have said, with the sampling and the length model of the recipe; None without a scored verdict."""
    if all(verdict.score is None for verdict in verdicts):
        return None
    sampling = summaries.sampling_of(settings)
    accuracies = reader.optional(_verdicts_file(directory), lambda file: recorded_accuracies(file, **sampling)) or {}
    rates = win_rates(verdicts, **sampling, slope=settings.evaluation.slope, judge_accuracy=accuracies)
    return {"win_rates": rates, "agreement": agreement(verdicts)}


def _verdicts_file(directory: RunDirectory) -> Path:
    return directory.evaluation / "verdicts.jsonl"


def _unfinished(directory: RunDirectory, files: RunFiles) -> list[str]:
    """What a run does not have yet, in the order in which it would be made."""
    said = []
    if BASE not in files.responses:
        said.append("base has not answered the held-out queries yet, so there is nothing to compare with.")
    elif BASE not in files.scores:
        said.append("base has answered and is not scored yet.")
    if files.settings is not None:
        iterations = range(1, files.settings.training.iterations + 1)
        said += [line for i in iterations if (line := _unfinished_iteration(directory, files, files.settings, i))]
    if not files.is_summary_stored:
        said.append("summary.json is missing, so the run did not finish.")
    elif known := [name for name in files.scores if name not in {p.name for p in files.policies}]:
        said.append(f"{', '.join(known)} is scored but not in summary.json, which is older.")
    if files.scores and not files.summary.win_rates:
        said.append("No judge has compared the answers, so there are no win rates.")
    return said


def _unfinished_iteration(directory: RunDirectory, files: RunFiles, settings: Recipe, iteration: int) -> str:
    name = policy_name(iteration)
    if not directory.contrasts(iteration).is_file():
        return f"Iteration {iteration} has not started: it has no contrasts."
    if directory.record(f"train-{iteration}") is None:
        done, steps = len(files.metrics.get(iteration, [])), settings.training.steps_of(iteration)
        return f"Iteration {iteration} is not trained: {done} of {steps} steps are recorded."
    if name not in files.responses:
        return f"{name} is trained and has not answered the held-out queries."
    return "" if name in files.scores else f"{name} has answered and is not scored."


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _yaml_mapping(file: Path) -> dict[str, Any]:
    return _mapping(yaml.safe_load(_text(file)))


def _json_mapping(file: Path) -> dict[str, Any]:
    return _mapping(json.loads(file.read_text(encoding="utf-8")))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it does not contain a mapping of names to values")
    return value


def _json_lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines; a last line that a kill cut off is left out."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.strip()]
