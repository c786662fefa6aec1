"""Pictures of the responses themselves: their lengths, and the matrix of answers and constitutions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sami.report.plots.panel import Box, Panel, columns, label_width
from sami.report.plots.picture import Picture, policy_color, short_name
from sami.report.plots.svg import LINE, WIDTH, Svg, fitted
from sami.report.run_files import RunFiles
from sami.text.words import word_count
from sami.wording import number

_MOST_BINS = 40
_CELLS_WITH_TEXT = 4  # constitutions; with more, the numbers would not fit their cells


def lengths(run: RunFiles) -> Picture | None:
    """A histogram of words in an answer for each policy."""
    words = {
        name: np.array([word_count(text) for contrast in contrasts for text in contrast.responses])
        for name, contrasts in run.responses.items()
    }
    if not words:
        return None
    longest = max(int(np.percentile(w, 99.5)) for w in words.values()) + 1
    bins = np.linspace(0, longest, min(longest, _MOST_BINS) + 1)
    svg = Svg("Length of answers by policy")
    room = label_width([short_name(name) for name in words])
    for n, (name, counted) in enumerate(words.items()):
        box = Box(room, 40.0 * n + 4, WIDTH - 8, 40.0 * n + 36)
        heights, _ = np.histogram(np.minimum(counted, longest), bins)
        panel = Panel(svg, box, (0, longest), (0, float(heights.max())))
        panel.x_axis(None if n == len(words) - 1 else [], label="" if n < len(words) - 1 else _LENGTHS_LABEL)
        svg.text(room - 7, box.bottom - 10, fitted(short_name(name), room - 8), anchor="end", kind="strong")
        middle = float(np.median(counted))
        tip = f"{name}: median {middle:.0f} words, mean {counted.mean():.1f}, {len(counted)} answers"
        with svg.group(policy_color(n), tip):
            svg.area(_stairs(panel, heights, bins), "bars")
        panel.vertical(middle)
    return Picture(
        "lengths",
        "Response lengths",
        svg.finish(40.0 * len(words) + 4 + LINE + 10),
        "Judges tend to prefer longer answers, so look at length-controlled rates where the length changes.",
        "evaluation/responses/*.parquet: responses",
        ["policy", "answers", "mean words", "5 %", "median", "95 %"],
        [
            [name, str(len(w)), f"{w.mean():.1f}", *(f"{np.percentile(w, q):.0f}" for q in (5, 50, 95))]
            for name, w in words.items()
        ],
    )


_LENGTHS_LABEL = "words in an answer; the vertical line is the median"


def _stairs(panel: Panel, heights: NDArray[Any], bins: NDArray[Any]) -> list[tuple[float, float]]:
    corners = [(float(bins[0]), 0.0)]
    for height, left, right in zip(heights, bins[:-1], bins[1:], strict=True):
        corners += [(float(left), float(height)), (float(right), float(height))]
    return [panel.at(*corner) for corner in [*corners, (float(bins[-1]), 0.0)]]


@dataclass(frozen=True)
class Scored:
    """The mean matrix of one policy's answers, by one scorer."""

    title: str
    matrix: NDArray[np.float64]
    contrasts: int

    @property
    def diagonal(self) -> float:
        return float(np.trace(self.matrix)) / len(self.matrix)

    @property
    def off_diagonal(self) -> float:
        size = len(self.matrix)
        return float((self.matrix.sum() - np.trace(self.matrix)) / (size * size - size))


def matrices(run: RunFiles) -> Picture | None:
    """The mean log-probability of each answer under each constitution, before and after."""
    shown = _scored(run)
    if not shown:
        return None
    low, high = min(one.matrix.min() for one in shown), max(one.matrix.max() for one in shown)
    size = len(shown[0].matrix)
    svg = Svg("Mean log-probability of each answer under each constitution")
    boxes = columns(Box(28, LINE + 4, WIDTH - 4, 0), len(shown), 16)
    side = min(boxes[0].right - boxes[0].left, 130.0)
    for n, (place, one) in enumerate(zip(boxes, shown, strict=True)):
        box = Box(place.left, place.top, place.left + side, place.top + side)
        panel = Panel(svg, box, (0, size), (size, 0))
        panel.title(one.title)
        for (row, column), value in np.ndenumerate(one.matrix):
            shade = 0.08 + 0.72 * (value - low) / (high - low) if high > low else 0.4
            _cell(panel, row, column, float(value), shade, one.title, has_text=size <= _CELLS_WITH_TEXT)
        names = [(i + 0.5, str(i + 1)) for i in range(size)]
        panel.x_axis(names, label="answer", grid=False)
        if n == 0:
            panel.rows(names, 26)
    return Picture(
        "matrices",
        f"The {size} × {size} matrix before and after",
        svg.finish(boxes[0].top + side + 12 + LINE + 6),
        "Mean log-probability per token of each answer (column) under each constitution (row), on learned principles. "
        "A policy that follows its constitutions is strong in color on the diagonal and pale off it.",
        "evaluation/scores/*.json: policy[].matrix, base[].matrix",
        ["scored", "diagonal", "off the diagonal", "difference, nats per token", "contrasts"],
        [
            [
                one.title,
                number(one.diagonal),
                number(one.off_diagonal),
                number(one.diagonal - one.off_diagonal),
                str(one.contrasts),
            ]
            for one in shown
        ],
    )


def _scored(run: RunFiles) -> list[Scored]:
    last = run.last.name if run.last else None
    wanted = [("base", "policy", "base, by itself")]
    if last in run.scores:
        wanted += [(last, "policy", f"{short_name(last)}, by itself"), (last, "base", f"{short_name(last)}, by base")]
    found = []
    for policy, scorer, title in wanted:
        scored = [one["matrix"] for one in run.scores.get(policy, {}).get(scorer, []) if one["learned"]]
        if scored and len({len(matrix) for matrix in scored}) == 1:
            found.append(Scored(title, np.array(scored).mean(0), len(scored)))
    return found


def _cell(panel: Panel, row: int, column: int, value: float, shade: float, title: str, *, has_text: bool) -> None:
    corners = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
    tip = f"{title}: answer {column + 1} under constitution {row + 1}: {value:.3f} nats per token"
    with panel.svg.group("accent", tip):
        panel.svg.area([panel.at(*corner) for corner in corners], "cell", shade)
        if has_text:
            x, y = panel.at(column + 0.5, row + 0.5)
            panel.svg.text(x, y + 3, f"{value:.2f}", anchor="middle", kind="strong")
