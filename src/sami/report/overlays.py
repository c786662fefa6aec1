"""Several runs in the same pictures, a colour for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from sami.report.drawing import drawing, series, whole_numbers
from sami.report.figures import Picture
from sami.report.findings import decisive_cell
from sami.report.run_files import RunFiles
from sami.wording import interval, number

Figure = tuple[float | None, float | None, float | None]  # value, low, high


@dataclass(frozen=True)
class Measure:
    """A figure of a policy that is drawn over iterations."""

    key: str
    title: str
    unit: str
    figure: Callable[[dict[str, Any], RunFiles], Figure]
    caption: str
    source: str


def _information(section: str, prefix: str) -> Callable[[dict[str, Any], RunFiles], Figure]:
    def figure(policy: dict[str, Any], run: RunFiles) -> Figure:
        info = policy[section]
        return info[f"{prefix}bound"], info[f"{prefix}low"], info[f"{prefix}high"]

    return figure


def _checks(policy: dict[str, Any], run: RunFiles) -> Figure:
    value, low, high = (policy["verifier"]["learned"][key] for key in ("value", "low", "high"))
    return (None, None, None) if value is None else (100 * value, 100 * low, 100 * high)


def _win_rate_of(policy: dict[str, Any], run: RunFiles) -> Figure:
    if policy["iteration"] == 0:
        return 50.0 if run.summary.get("win_rates") else None, None, None
    cell = decisive_cell(run.summary.get("win_rates") or [], policy["name"], "base")
    if cell is None:
        return None, None, None
    shown = cell["length_controlled"]
    return shown["rate"], shown["low"], shown["high"]


MEASURES = (
    Measure(
        "overlay-base",
        "Under the frozen base, learned principles",
        "nats",
        _information("information", "base_"),
        "What the base model before training finds in the answers: the figure that decides.",
        "summary.json: policies[].information",
    ),
    Measure(
        "overlay-held-out",
        "Under the frozen base, held-out principles",
        "nats",
        _information("information_held_out", "base_"),
        "The same on principles that were never trained on.",
        "summary.json: policies[].information_held_out",
    ),
    Measure(
        "overlay-checks",
        "Own checks passed, learned principles",
        "percent",
        _checks,
        "Answers that pass the check of their principle.",
        "summary.json: policies[].verifier.learned",
    ),
    Measure(
        "overlay-winrates",
        "Win rate against base, length-controlled",
        "percent",
        _win_rate_of,
        "By the first judge of each run, learned principles. 50 is no difference.",
        "summary.json: win_rates",
    ),
    Measure(
        "overlay-own",
        "Bound by the policy itself, learned principles",
        "nats",
        _information("information", ""),
        "Code words can raise it, so it is no evidence by itself.",
        "summary.json: policies[].information",
    ),
)


def overlaid(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Picture]:
    """Every picture for which at least one run has figures."""
    made = [*(_over_iterations(runs, names, measure) for measure in MEASURES), _training_overlaid(runs, names)]
    return [one for one in made if one is not None]


def _over_iterations(runs: Sequence[RunFiles], names: Sequence[str], measure: Measure) -> Picture | None:
    own = [[p for p in run.policies if p["iteration"] is not None] for run in runs]
    rows = []
    with drawing(measure.key, measure.title, 2.6) as d:
        (axes,) = d.axes()
        for n, (run, name, policies) in enumerate(zip(runs, names, own, strict=True)):
            shift = 0.08 * (n - (len(runs) - 1) / 2)
            found = [(policy, *measure.figure(policy, run)) for policy in policies]
            points = [(p["iteration"] + shift, value, low, high) for p, value, low, high in found if value is not None]
            axes.plot([p[0] for p in points], [p[1] for p in points], color=series(n), linewidth=1.2, label=name)
            for x, value, low, high in points:
                tip = f"{name}: {number(value)} {interval(low, high)} {measure.unit}"
                d.estimate(axes, x, value, (low, high), tip, colour=series(n))
            rows += [
                [name, p["name"], f"{number(value)} {interval(low, high)}"]
                for p, value, low, high in found
                if value is not None
            ]
        if not rows:
            return None
        whole_numbers(axes, lambda n: "base" if n == 0 else f"iteration {n}", max(map(len, own)))
        axes.set_ylabel(measure.unit)
        d.figure.legend(loc="outside upper left", ncols=min(4, len(runs)), handlelength=1.4)
        svg = d.svg()
    header = ["run", "policy", measure.unit]
    return Picture(measure.key, measure.title, svg, measure.caption, measure.source, header, rows)


def _training_overlaid(runs: Sequence[RunFiles], names: Sequence[str]) -> Picture | None:
    if not any(run.metrics for run in runs):
        return None
    rows = []
    with drawing("overlay-training", "Bound while training", 2.6) as d:
        (axes,) = d.axes()
        for n, (run, name) in enumerate(zip(runs, names, strict=True)):
            at = 0
            axes.plot([], [], color=series(n), label=name)
            for iteration, steps in run.metrics.items():
                bounds = [step["bound"] for step in steps]
                (line,) = axes.plot(range(at + 1, at + 1 + len(bounds)), bounds, color=series(n))
                d.tip(line, f"{name}, iteration {iteration}: {bounds[-1]:.3f} nats at the last step")
                rows.append([name, str(iteration), str(len(bounds)), f"{bounds[0]:.3f}", f"{bounds[-1]:.3f}"])
                at += len(bounds)
        axes.set_xlabel("step, iterations one after the other")
        axes.set_ylabel("nats")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        d.figure.legend(loc="outside upper left", ncols=min(4, len(runs)), handlelength=1.4)
        svg = d.svg()
    return Picture(
        "overlay-training",
        "Bound while training",
        svg,
        "On the contrasts that each step trains on. A line breaks where an iteration starts anew from base.",
        "iteration-*/metrics.jsonl: bound",
        ["run", "iteration", "steps", "first step", "last step"],
        rows,
    )
