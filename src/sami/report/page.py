"""report.html: one self-contained file about one run, or about several.

    write_report([Path("runs/quickstart")])          # runs/quickstart/report.html
    write_report([Path("runs/a"), Path("runs/b")])   # comparison.html

The page loads nothing from the network, and its content security policy forbids it to. A browser runs only the
page's own script, which the policy names by its hash, whatever a model wrote.
"""

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sami.errors import InputError
from sami.evaluation.bootstrap import Estimate
from sami.files import replacing
from sami.loop.results import JudgeAccount, PolicyResult
from sami.recipe import flatten
from sami.report import plots
from sami.report.answers import answers
from sami.report.embedding import packed, visible
from sami.report.health_table import health_table
from sami.report.run_files import RunFiles, read_run
from sami.report.tiles import tiles
from sami.report.verdict import standing_in_words, verdict
from sami.report.warnings import warnings
from sami.wording import NONE, interval, number, seconds, signed


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the page of a run, or one that compares several.

    Args:
        folders: run folders.
        output: file to write. The default is report.html in the folder of the one run, or comparison.html in the
            working directory for several.

    Returns:
        The file that was written.

    Raises:
        InputError: a folder is not a run folder or is given twice, or the output is a folder.
    """
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError("The same run is given twice. Name each run once.")
    runs = [read_run(folder) for folder in folders]
    target = Path(output) if output else runs[0].folder / "report.html" if len(runs) == 1 else Path("comparison.html")
    if target.is_dir():
        raise InputError(f"The output {target} is a folder. Name the file of the page, such as {target}/report.html.")
    html = report(runs[0]) if len(runs) == 1 else comparison(runs, target.resolve().parent)
    with replacing(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def report(run: RunFiles) -> str:
    """The page of one run."""
    found = answers(run)
    return _page(
        "report.html",
        ["answers.js", "judging.js"],
        run=run,
        verdict=verdict(run),
        tiles=tiles(run),
        policies=[_policy_row(run, policy) for policy in run.policies],
        pictures=plots.pictures(run),
        count=len(found["items"]),
        data=packed(found) if found["items"] else "",
        warnings=warnings(run),
        health=health_table(run),
        seeds=_seeds(run),
        timings=_timings(run),
        judges=[_judge_row(one) for one in run.summary.judges],
        repeat=_command(run, f"{run.folder}-again"),
        resume=_command(run, str(run.folder), is_resumed=True),
    )


def comparison(runs: Sequence[RunFiles], folder: Path) -> str:
    """One page for several runs.

    Args:
        folder: the folder of the page, for its links to the runs' own reports.
    """
    names = _names(runs)
    return _page(
        "comparison.html",
        [],
        runs=[
            {
                "name": name,
                "link": _link(run, folder),
                "verdict": verdict(run),
                "row": _policy_row(run, run.last) if run.last else None,
                "held_out": _held_out(run),
                "model": run.model or NONE,
                "missing": run.missing,
                "folder": str(run.folder),
            }
            for run, name in zip(runs, names, strict=True)
        ],
        names=names,
        settings=_different_settings(runs),
        pictures=plots.overlaid(runs, names),
    )


def _page(template: str, scripts: Sequence[str], **context: Any) -> str:
    parts = files("sami.report").joinpath("templates")
    script = "\n".join(parts.joinpath(name).read_text(encoding="utf-8") for name in ["page.js", *scripts])
    style = parts.joinpath("style.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("sami.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sami_version=version("sami"),
        none=NONE,
        **context,
    )


@dataclass(frozen=True)
class Cell:
    """A figure of a table, with the interval that stands below it."""

    value: str
    interval: str = ""


def _cell(figure: Estimate, digits: int = 3, *, scale: float = 1) -> Cell:
    value, low, high = (None if x is None else scale * x for x in (figure.value, figure.low, figure.high))
    return Cell(number(value, digits), interval(low, high, digits))


def _policy_row(run: RunFiles, policy: PolicyResult) -> dict[str, Any]:
    rate = run.summary.decisive_rate(policy.name, "base")
    return {
        "name": policy.name,
        "standing": standing_in_words(run, policy),
        "is_failing": "yes" if policy.health.failures else "",
        "frozen": _cell(policy.information.frozen),
        "own": _cell(policy.information.own),
        "win_rate": Cell(NONE) if rate is None else _cell(rate.length_controlled.estimate, 1),
        "checks": _cell(policy.verifier.learned, 0, scale=100),
        "checks_held_out": _cell(policy.verifier.held_out, 0, scale=100),
        "words": number(policy.health.words, 0),
    }


def _held_out(run: RunFiles) -> Cell:
    if not run.summary.comparisons:
        return Cell(NONE)
    gain = run.summary.comparisons[-1].held_out.base_bound
    return Cell(signed(gain.value), interval(gain.low, gain.high, is_signed=True))


def _judge_row(judge: JudgeAccount) -> list[str]:
    known = judge.calibration
    return [
        judge.judge,
        f"{judge.verdicts}, {judge.unscored} not scored",
        NONE if known is None else f"{number(known.accuracy, 0)} % {interval(known.low, known.high, 0)}",
        number(judge.cost, 2),
        ", ".join(judge.versions) or NONE,
    ]


def _seeds(run: RunFiles) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in flatten(run.recipe) if key.rsplit(".", 1)[-1] == "seed"]


def _timings(run: RunFiles) -> list[tuple[str, str]]:
    timings = run.summary.timings
    total = [("all steps", seconds(sum(timings.values())))] if timings else []
    return [(step, seconds(value)) for step, value in timings.items()] + total


def _command(run: RunFiles, output: str, *, is_resumed: bool = False) -> str:
    words = ["sami", "run", str(run.folder / "recipe.yaml")]
    if not is_resumed:  # the recipe names the file that the principles came from, which may have changed since
        words.append(f"principles={run.folder / 'principles.yaml'}")
    return shlex.join([*words, "--output", output])


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Folder names, with as many of their parents as needed to make them different."""
    parts = [run.folder.resolve().parts for run in runs]
    names: list[str] = []
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names


def _link(run: RunFiles, folder: Path) -> str:
    page = run.folder / "report.html"
    return Path(os.path.relpath(page.resolve(), folder)).as_posix() if page.is_file() else ""


def _different_settings(runs: Sequence[RunFiles]) -> list[list[str]]:
    """Keys of the recipes whose values are not the same in all runs, with the value of each run."""
    flat = [dict(flatten(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [_setting(one[key]) if key in one else "not set" for one in flat]) for key in keys]
    return [[key, *values] for key, values in rows if len(set(values)) > 1]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
