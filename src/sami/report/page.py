"""report.html: one self-contained file from a run directory, or from several.

    write_report([Path("runs/quickstart")])          # runs/quickstart/report.html
    write_report([Path("runs/a"), Path("runs/b")])   # comparison.html

The page asks nothing of the network, and its policy forbids it to: a browser runs the page's own script, known by
its hash, and nothing else, whatever a model wrote.
"""

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sami.errors import InputError
from sami.files import replacing
from sami.recipe import flatten
from sami.report import figures, findings, overlays
from sami.report.answers import answers
from sami.report.embedding import packed, visible
from sami.report.run_files import RunFiles, read_run
from sami.wording import NONE, difference, interval, number, rate, seconds


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the page of a run, or one that compares several.

    Args:
        output: by default report.html in the folder of the one run, comparison.html here for several.

    Returns:
        the file written.

    Raises:
        InputError: a folder is no run or comes twice, or the output is a folder.
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
    verdict = findings.verdict(run)
    return _page(
        "report.html",
        ["answers.js", "judging.js"],
        run=run,
        verdict=verdict,
        tiles=findings.tiles(run),
        policies=[_policy_row(run, p) for p in run.policies],
        pictures=figures.pictures(run),
        count=len(found["items"]),
        data=packed(found) if found["items"] else "",
        warnings=findings.health_warnings(run),
        health=findings.health_table(run),
        seeds=_seeds(run),
        timings=_timings(run),
        contrasts=run.summary.get("contrasts") or {},
        training=run.summary.get("training") or {},
        judges=[_judge_row(one) for one in run.summary.get("judges") or []],
        agreement=run.summary.get("agreement") or [],
        repeat=_command(run, f"{run.folder}-again"),
        go_on=_command(run, str(run.folder), is_continued=True),
    )


def comparison(runs: Sequence[RunFiles], folder: Path) -> str:
    """One page for several runs.

    Args:
        folder: of the page, from which it links to the runs' own reports.
    """
    names = _names(runs)
    return _page(
        "comparison.html",
        [],
        runs=[
            {
                "name": name,
                "link": _link(run, folder),
                "verdict": findings.verdict(run),
                "row": _policy_row(run, run.last) if run.last else None,
                "held_out": _held_out(run),
                "model": run.summary.get("model", run.recipe.get("model", {}).get("source", NONE)),
                "missing": run.missing,
                "folder": str(run.folder),
            }
            for run, name in zip(runs, names, strict=True)
        ],
        names=names,
        settings=_different_settings(runs),
        pictures=overlays.overlaid(runs, names),
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
        markup=Markup,
        **context,
    )


def _policy_row(run: RunFiles, policy: Mapping[str, Any]) -> dict[str, str]:
    info, verifier, health = policy["information"], policy["verifier"], policy["health"]
    cell = findings.decisive_cell(run.summary.get("win_rates") or [], policy["name"], "base")

    def share(estimate: Mapping[str, Any]) -> str:
        if estimate["value"] is None:
            return NONE
        low, high = (None if estimate[k] is None else 100 * estimate[k] for k in ("low", "high"))
        return f"{100 * estimate['value']:.0f} {interval(low, high, 0)}"

    return {
        "name": policy["name"],
        "standing": findings.standing(run, dict(policy)),
        "is_failing": "yes" if health["failures"] else "",
        "frozen": f"{number(info['base_bound'])} {interval(info['base_low'], info['base_high'])}",
        "own": f"{number(info['bound'])} {interval(info['low'], info['high'])}",
        "win_rate": NONE if cell is None else rate(cell["length_controlled"]),
        "checks": share(verifier["learned"]),
        "checks_held_out": share(verifier["held_out"]),
        "words": number(health["words"], 0),
    }


def _held_out(run: RunFiles) -> str:
    compared = run.summary.get("comparisons") or []
    return difference(compared[-1]["held_out"]["base_bound"]) if compared else NONE


def _judge_row(judge: Mapping[str, Any]) -> dict[str, str]:
    calibration = judge.get("calibration")
    return {
        "judge": judge["judge"],
        "verdicts": f"{judge['verdicts']}, {judge['unscored']} without a score",
        "calibration": NONE
        if calibration is None
        else f"{number(calibration['accuracy'], 0)} % {interval(calibration['low'], calibration['high'], 0)}",
        "cost": number(judge.get("cost"), 2),
        "versions": ", ".join(judge.get("versions") or []) or NONE,
    }


def _seeds(run: RunFiles) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in flatten(run.recipe) if key.rsplit(".", 1)[-1] == "seed"]


def _timings(run: RunFiles) -> list[tuple[str, str]]:
    timings = run.summary.get("timings") or {}
    return [*((step, seconds(value)) for step, value in timings.items())] + (
        [("all steps", seconds(sum(timings.values())))] if timings else []
    )


def _command(run: RunFiles, output: str, *, is_continued: bool = False) -> str:
    words = ["sami", "run", str(run.folder / "recipe.yaml")]
    if not is_continued:  # the recipe names the file that the principles came from; the run keeps them as they were
        words.append(f"principles={run.folder / 'principles.yaml'}")
    return shlex.join([*words, "--output", output])


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Folder names, with as many of their parents as tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return names


def _link(run: RunFiles, folder: Path) -> str:
    page = run.folder / "report.html"
    return Path(os.path.relpath(page.resolve(), folder)).as_posix() if page.is_file() else ""


def _different_settings(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Keys of the recipes whose values are not the same in all runs."""
    flat = [dict(flatten(run.recipe)) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [_setting(one[key]) if key in one else "not set" for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
