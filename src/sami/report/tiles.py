"""The five numbers behind a verdict."""

import math
from dataclasses import dataclass, replace

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import PolicyResult
from sami.report.run_files import RunFiles
from sami.wording import NONE, estimate, interval, number, percent, reading, signed


@dataclass(frozen=True)
class Strip:
    """Positions of an interval and of zero on a scale, in percent of the width."""

    zero: float
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Tile:
    """One of the numbers behind a verdict."""

    label: str
    value: str
    unit: str
    interval: str
    n: str
    change: str
    """The figure of base and of the last iteration."""
    reading: str
    source: str
    strip: Strip | None = None


def tiles(run: RunFiles) -> list[Tile]:
    """The five numbers; none where no iteration is evaluated."""
    base, last, comparisons = run.base, run.last, run.summary.comparisons
    if base is None or last is None or not comparisons:
        return []
    change = comparisons[-1]
    own = _information(
        change.learned.bound,
        (base.information.bound, last.information.bound),
        "Bound by the policy itself",
        "comparisons[].learned.bound",
    )
    return [
        _information(
            change.learned.base_bound,
            (base.information.base_bound, last.information.base_bound),
            "Information under the frozen base",
            "comparisons[].learned.base_bound",
        ),
        _win_rate(run, last.name),
        _checks(change.learned.verifier_rate, base, last),
        _information(
            change.held_out.base_bound,
            (base.information_held_out.base_bound, last.information_held_out.base_bound),
            "Held-out principles, frozen base",
            "comparisons[].held_out.base_bound",
        ),
        replace(own, reading=f"cap {math.log(run.constitutions):.3f}; code words can raise it, so it is not evidence"),
    ]


def _information(gain: Estimate, ends: tuple[float | None, float | None], label: str, source: str) -> Tile:
    return Tile(
        label,
        signed(gain.value),
        "nats",
        interval(gain.low, gain.high, is_signed=True),
        f"{gain.n} contrasts",
        f"{number(ends[0])} → {number(ends[1])}" if gain.value is not None else "",
        reading(gain),
        source,
        _strip(gain),
    )


def _win_rate(run: RunFiles, name: str) -> Tile:
    label = "Win rate against base, equal length"
    cell = run.summary.decisive_rate(name, "base")
    if cell is None:
        return Tile(label, NONE, "", "", "", "", "no judge was asked", "win_rates")
    shown = cell.length_controlled
    return Tile(
        label,
        number(shown.rate, 1),
        "%",
        interval(shown.low, shown.high, 1),
        f"{cell.queries} queries",
        f"length-controlled; raw {estimate(cell.raw.estimate, 1)}",
        f"{reading(shown.above_half)}; by {cell.judge}"
        + (", the principles' own checks" if cell.judge == "verifier" else ""),
        "win_rates[].length_controlled",
        _strip(shown.above_half),
    )


def _checks(gain: Estimate, base: PolicyResult, last: PolicyResult) -> Tile:
    before, after = base.verifier.learned.value, last.verifier.learned.value
    is_measured = gain.value is not None and before is not None and after is not None
    return Tile(
        "Principles' own checks passed",
        signed(gain.value, 1),
        "points",
        interval(gain.low, gain.high, 1, is_signed=True),
        f"{gain.n} answers",
        f"{percent(before)} → {percent(after)}" if is_measured else "",
        reading(gain) if is_measured else "no learned principle has a check",
        "comparisons[].learned.verifier_rate",
        _strip(gain),
    )


def _strip(gain: Estimate) -> Strip | None:
    if gain.value is None or gain.low is None or gain.high is None:
        return None
    left, right = min(0.0, gain.low), max(0.0, gain.high)
    room = 0.12 * (right - left) or 1.0
    left, right = left - room, right + room

    def place(x: float) -> float:
        return round(100 * (x - left) / (right - left), 2)

    return Strip(place(0), place(gain.low), place(gain.value), place(gain.high))
