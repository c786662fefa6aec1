"""Several runs in the same pictures, with one color per run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import PolicyResult
from sami.report.plots.panel import Box, Panel, limits, span, ticks
from sami.report.plots.picture import Picture
from sami.report.plots.svg import LINE, WIDTH, Key, Svg, series
from sami.report.run_files import RunFiles
from sami.wording import estimate

NOTHING = Estimate(None, None, None, 0)


@dataclass(frozen=True)
class Measure:
    """A figure of a policy that is drawn over iterations."""

    key: str
    title: str
    unit: str
    figure: Callable[[PolicyResult, RunFiles], Estimate]
    caption: str
    source: str
    digits: int = 3


def _checks(policy: PolicyResult, run: RunFiles) -> Estimate:
    rate = policy.verifier.learned
    value, low, high = (None if x is None else 100 * x for x in (rate.value, rate.low, rate.high))
    return Estimate(value, low, high, rate.n)


def _win_rate(policy: PolicyResult, run: RunFiles) -> Estimate:
    if policy.iteration == 0:
        return Estimate(50.0, None, None, 0) if run.summary.win_rates else NOTHING
    cell = run.summary.decisive_rate(policy.name, "base")
    return NOTHING if cell is None else cell.length_controlled.estimate


MEASURES = (
    Measure(
        "overlay-base",
        "Under the frozen base, learned principles",
        "nats",
        lambda policy, run: policy.information.frozen,
        "What the base model before training reads from the answers. This figure decides.",
        "summary.json: policies[].information",
    ),
    Measure(
        "overlay-held-out",
        "Under the frozen base, held-out principles",
        "nats",
        lambda policy, run: policy.information_held_out.frozen,
        "The same on principles that were never trained on.",
        "summary.json: policies[].information_held_out",
    ),
    Measure(
        "overlay-checks",
        "Own checks passed, learned principles",
        "percent",
        _checks,
        "Share of answers that pass their principle's check.",
        "summary.json: policies[].verifier.learned",
        1,
    ),
    Measure(
        "overlay-winrates",
        "Win rate against base, length-controlled",
        "percent",
        _win_rate,
        "By the first judge of each run, on learned principles. 50 is no difference.",
        "summary.json: win_rates",
        1,
    ),
    Measure(
        "overlay-own",
        "Bound by the policy itself, learned principles",
        "nats",
        lambda policy, run: policy.information.own,
        "Code words can raise this bound, so it is not evidence by itself.",
        "summary.json: policies[].information",
    ),
)


def overlaid(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Picture]:
    """Every picture for which at least one run has figures."""
    made = [*(_over_iterations(runs, names, measure) for measure in MEASURES), _training(runs, names)]
    return [one for one in made if one is not None]


def _over_iterations(runs: Sequence[RunFiles], names: Sequence[str], measure: Measure) -> Picture | None:
    found = [
        [(p, f) for p in run.policies if p.iteration is not None and (f := measure.figure(p, run)).value is not None]
        for run in runs
    ]
    figures = [figure for of_run in found for _, figure in of_run]
    if not figures:
        return None
    svg, panel = _panel(measure.title, names, (-0.4, _last(runs) + 0.4), span(limits(figures)))
    panel.x_axis([(i, f"iteration {i}" if i else "base") for i in range(_last(runs) + 1)], grid=False)
    for n, (name, of_run) in enumerate(zip(names, found, strict=True)):
        shift = 0.08 * (n - (len(runs) - 1) / 2)
        places = [((p.iteration or 0) + shift, f) for p, f in of_run]
        panel.curve([(x, f.value) for x, f in places if f.value is not None], series(n), kind="thin")
        for x, figure in places:
            panel.estimate(x, figure, series(n), f"{name}: {estimate(figure, measure.digits)} {measure.unit}")
    rows = [
        [name, policy.name, estimate(figure, measure.digits)]
        for name, of_run in zip(names, found, strict=True)
        for policy, figure in of_run
    ]
    return Picture(
        measure.key,
        measure.title,
        svg.finish(panel.box.bottom + 18),
        f"{measure.caption} In {measure.unit}.",
        measure.source,
        ["run", "policy", measure.unit],
        rows,
    )


def _training(runs: Sequence[RunFiles], names: Sequence[str]) -> Picture | None:
    lines = [
        (n, name, iteration, [float(step["bound"]) for step in steps])
        for n, (run, name) in enumerate(zip(runs, names, strict=True))
        for iteration, steps in run.metrics.items()
        if steps
    ]
    if not lines:
        return None
    most = max(sum(len(bounds) for m, *_, bounds in lines if m == n) for n in range(len(runs)))
    values = [bound for *_, bounds in lines for bound in bounds]
    svg, panel = _panel("Bound while training", names, (0.5, max(most, 2) + 0.5), span(values))
    panel.x_axis(ticks(1, max(most, 2), whole=True), grid=False, label="optimizer step, one iteration after another")
    ends = [0] * len(runs)
    for n, name, iteration, bounds in lines:
        tip = f"{name}, iteration {iteration}: {bounds[-1]:.3f} nats at the last step"
        panel.curve([(ends[n] + i, bound) for i, bound in enumerate(bounds, start=1)], series(n), tip)
        ends[n] += len(bounds)
    return Picture(
        "overlay-training",
        "Bound while training",
        svg.finish(panel.box.bottom + 32),
        "In nats, on the contrasts that each step trains on. A line breaks where the next iteration begins.",
        "iteration-*/metrics.jsonl: bound",
        ["run", "iteration", "steps", "first step", "last step"],
        [[name, str(i), str(len(bounds)), f"{bounds[0]:.3f}", f"{bounds[-1]:.3f}"] for _, name, i, bounds in lines],
    )


def _panel(label: str, names: Sequence[str], x: tuple[float, float], y: tuple[float, float]) -> tuple[Svg, Panel]:
    """A picture with a legend of runs above one panel."""
    svg = Svg(label)
    top = svg.legend([Key(name, series(n), is_line=True) for n, name in enumerate(names)], 0) + LINE / 2
    panel = Panel(svg, Box(32, top, WIDTH - 6, top + 140), x, y)
    panel.y_axis()
    return svg, panel


def _last(runs: Sequence[RunFiles]) -> int:
    return max((p.iteration or 0 for run in runs for p in run.policies), default=0)
