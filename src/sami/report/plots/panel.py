"""One coordinate system inside a picture: scales, ticks, grid lines, and marks placed by their data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sami.evaluation.bootstrap import Estimate
from sami.report.plots.svg import LINE, WIDTH, Svg, fitted, text_width

Tick = tuple[float, str]


@dataclass(frozen=True)
class Box:
    """A rectangle of the picture in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def columns(box: Box, count: int, gap: float = 14.0) -> list[Box]:
    """The box divided into equal boxes side by side."""
    width = (box.right - box.left - gap * (count - 1)) / count
    return [
        Box(box.left + n * (width + gap), box.top, box.left + n * (width + gap) + width, box.bottom)
        for n in range(count)
    ]


def label_width(labels: Sequence[str], most: float = 0.36 * WIDTH) -> float:
    """Room for labels at the left of a panel."""
    return min(max(map(text_width, labels), default=0.0), most) + 8


def span(values: Sequence[float], *, margin: float = 0.08, include: Sequence[float] = ()) -> tuple[float, float]:
    """The range of some values, a little wider; never empty."""
    low, high = min([*values, *include]), max([*values, *include])
    room = margin * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def limits(estimates: Sequence[Estimate]) -> list[float]:
    """Every value and interval end that a panel has to hold."""
    return [x for one in estimates for x in (one.value, one.low, one.high) if x is not None]


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[Tick]:
    """Round numbers between two values with their labels, at most `most` of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, math.ceil(step))
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if round(step / power, 6) == 2.5 and step < 10 else 0)
    first = math.ceil(low / step - 1e-9)
    values = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value if abs(value) > step / 2 else 0:.{digits}f}") for value in values]


class Panel:
    """A box with a linear scale in each direction.

    Args:
        x: values at the left and at the right edge.
        y: values at the lower and at the upper edge.
    """

    def __init__(self, svg: Svg, box: Box, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.svg, self.box, self._x, self._y = svg, box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies in the picture."""
        (left, right), (low, high), box = self._x, self._y, self.box
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return box.left + across * (box.right - box.left), box.bottom + up * (box.top - box.bottom)

    def title(self, text: str) -> None:
        self.svg.text(self.box.left, self.box.top - 6, fitted(text, self.box.right - self.box.left), kind="strong")

    def x_axis(self, marks: Sequence[Tick] | None = None, *, label: str = "", grid: bool = True) -> None:
        """Ticks along the lower edge; labels that would overlap are left out."""
        marks = ticks(min(self._x), max(self._x)) if marks is None else marks
        box, free = self.box, -math.inf
        for value, text in marks:
            x, _ = self.at(value, self._y[0])
            if grid:
                self.svg.line([(x, box.top), (x, box.bottom)], "grid")
            half = text_width(text) / 2
            if x - half > free:
                self.svg.text(min(x, WIDTH - half), box.bottom + 12, text, anchor="middle")
                free = x + half + 2
        self.svg.line([(box.left, box.bottom), (box.right, box.bottom)], "axis")
        if label:
            middle = min((box.left + box.right) / 2, WIDTH - text_width(label) / 2)
            self.svg.text(middle, box.bottom + 12 + LINE, label, anchor="middle")

    def y_axis(self, marks: Sequence[Tick] | None = None, *, grid: bool = True, labels: bool = True) -> None:
        """Ticks along the left edge."""
        marks = ticks(min(self._y), max(self._y), 4) if marks is None else marks
        for value, text in marks:
            _, y = self.at(self._x[0], value)
            if grid:
                self.svg.line([(self.box.left, y), (self.box.right, y)], "grid")
            if labels:
                self.svg.text(self.box.left - 5, y + 3, text, anchor="end")

    def rows(self, labels: Sequence[Tick], room: float) -> None:
        """Names at the left of rows, shortened to `room`."""
        for value, text in labels:
            _, y = self.at(self._x[0], value)
            self.svg.text(self.box.left - 7, y + 3, fitted(text, room - 8), anchor="end")

    def vertical(self, x: float, kind: str = "reference") -> None:
        self.svg.line([self.at(x, self._y[0]), self.at(x, self._y[1])], kind)

    def horizontal(self, y: float, kind: str = "reference") -> None:
        self.svg.line([self.at(self._x[0], y), self.at(self._x[1], y)], kind)

    def curve(self, points: Sequence[tuple[float, float]], color: str, tip: str = "", kind: str = "curve") -> None:
        """A line through points, each marked where there are few."""
        if not points:
            return
        places = [self.at(*point) for point in points]
        with self.svg.group(color, tip):
            self.svg.line(places, kind)
            if kind == "curve" and len(points) <= 30:
                for place in places:
                    self.svg.point(*place, radius=1.4)

    def estimate(
        self,
        place: float,
        estimate: Estimate,
        color: str,
        tip: str,
        *,
        is_horizontal: bool = False,
        is_hollow: bool = False,
    ) -> None:
        """A value with its interval; it runs along x where `is_horizontal`, and `place` is its other coordinate."""
        if estimate.value is None:
            return

        def at(value: float) -> tuple[float, float]:
            return self.at(value, place) if is_horizontal else self.at(place, value)

        with self.svg.group(color, tip):
            if estimate.low is not None and estimate.high is not None:
                ends = [at(estimate.low), at(estimate.high)]
                self.svg.line(ends, "hit")
                self.svg.line(ends, "range")
            self.svg.point(*at(estimate.value), is_hollow=is_hollow)
