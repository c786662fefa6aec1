"""A writer of SVG elements. Colors and type come from the page's style sheet, in light and dark, by class names.

Lengths are CSS pixels at the width of a phone; a wider card scales the picture up.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from markupsafe import Markup

from sami.report.embedding import visible

WIDTH = 338.0
FONT = 9.0
LINE = 14.0  # height of a line of text

SERIES = 8
MUTED = "muted"


def series(number: int) -> str:
    """The class of the n-th color."""
    return f"series-{number % SERIES}"


def text_width(text: str) -> float:
    """About how wide a text is drawn; a browser's font is not known here."""
    return sum(FONT if unicodedata.east_asian_width(c) in "WF" else 0.56 * FONT for c in visible(text))


def fitted(text: str, width: float) -> str:
    """The text, shortened with an ellipsis where it is wider than `width`."""
    text = visible(text)
    if text_width(text) <= width + 0.5:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text + "…"


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    color: str
    is_hollow: bool = False
    is_line: bool = False


class Svg:
    """A picture under construction.

    Args:
        label: what a screen reader says of the picture.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._parts: list[Markup] = []

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points; `kind` is the class that styles it."""
        path = "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
        self._parts.append(Markup('<path class="{}" d="{}"/>').format(kind, path))

    def area(self, points: Sequence[tuple[float, float]], kind: str, opacity: float = 1.0) -> None:
        path = "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points) + "Z"
        shade = Markup(' fill-opacity="{:.2f}"').format(opacity) if opacity < 1 else ""
        self._parts.append(Markup('<path class="{}" d="{}"{}/>').format(kind, path, shade))

    def point(self, x: float, y: float, *, is_hollow: bool = False, radius: float = 2.6) -> None:
        kind = "point hollow" if is_hollow else "point"
        self._parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, _short(x), _short(y), _short(radius))
        )

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> None:
        """Text whose baseline is at y; anchor is start, middle or end."""
        placed = Markup('<text x="{}" y="{}"').format(_short(x), _short(y))
        placed += Markup(' class="{}"').format(kind) if kind else ""
        placed += Markup(' text-anchor="{}"').format(anchor) if anchor != "start" else ""
        self._parts.append(placed + Markup(">{}</text>").format(visible(text)))

    @contextmanager
    def group(self, color: str, tip: str = "") -> Iterator[None]:
        """Elements of one color; `tip` is shown where the pointer rests on any of them."""
        title = Markup("<title>{}</title>").format(visible(tip)) if tip else ""
        self._parts.append(Markup('<g class="{}">').format(color) + title)
        yield
        self._parts.append(Markup("</g>"))

    def legend(self, keys: Sequence[Key], top: float) -> float:
        """Draw a legend from the left edge, wrapped to the width; returns where it ends below."""
        x = 0.0
        for key in keys:
            label = fitted(key.label, WIDTH - 20)
            width = text_width(label) + 26
            if x > 0 and x + width > WIDTH:
                x, top = 0.0, top + LINE
            with self.group(key.color):
                if key.is_line:
                    self.line([(x, top + 6), (x + 12, top + 6)], "curve")
                else:
                    self.point(x + 6, top + 6, is_hollow=key.is_hollow)
            self.text(x + 16, top + 9, label, kind="strong")
            x += width
        return top + LINE + 4

    def finish(self, height: float) -> Markup:
        """The element, as tall as given."""
        head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">')
        whole = head.format(_short(WIDTH), _short(height), self._label)
        return whole + Markup("").join(self._parts) + Markup("</svg>")


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
