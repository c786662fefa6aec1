"""Matplotlib figures as SVG that takes its colours and type from the page, light or dark.

Each colour of a figure is a placeholder that becomes a CSS variable, text stays text, and every mark may carry a
tooltip. The object interface is used throughout: no pyplot, no global state, no window.
"""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT = "#a00001", "#a00002", "#a00003", "#a00004"
SERIES = [f"#b0000{n}" for n in range(8)]
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent"} | {
    colour: f"--series-{n}" for n, colour in enumerate(SERIES)
}
WIDTH = 4.7  # inches: 338 points, about the width of a phone, so that type keeps its size there

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def series(number: int) -> str:
    return SERIES[number % len(SERIES)]


class Drawing:
    """One figure under construction.

    Args:
        name: unique on the page; ids inside the SVG start with it.
        label: what a screen reader says of the picture.
        height: in inches.
    """

    def __init__(self, name: str, label: str, height: float) -> None:
        self.name = name
        self.label = label
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        self._tips: list[str] = []

    def axes(self, rows: int = 1, columns: int = 1, **how: Any) -> list[Axes]:
        return list(self.figure.subplots(rows, columns, squeeze=False, **how).ravel())

    def tip(self, artist: Any, text: str) -> None:
        """Say `text` where the pointer rests on the artist."""
        artist.set_gid(f"{self.name}-tip{len(self._tips)}")
        self._tips.append(text)

    def estimate(
        self,
        axes: Axes,
        x: float,
        y: float,
        interval: tuple[float | None, float | None],
        tip: str,
        *,
        colour: str,
        is_horizontal: bool = False,
        is_hollow: bool = False,
        marker: str = "o",
    ) -> None:
        """A point with its interval, which runs along x where `is_horizontal`."""
        low, high = interval
        if low is not None and high is not None:
            ends = ([low, high], [y, y]) if is_horizontal else ([x, x], [low, high])
            (line,) = axes.plot(*ends, color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
            self.tip(line, tip)
        face = "none" if is_hollow else colour
        (point,) = axes.plot([x], [y], marker, color=colour, markerfacecolor=face, markeredgewidth=1.6, zorder=4)
        self.tip(point, tip)

    def svg(self) -> str:
        """The picture as an element to stand in a page."""
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of glyphs that the measuring font lacks; the browser has its own
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
        view = re.search(r'viewBox="[^"]*"', text)
        assert view is not None
        head = f'<svg class="plot" {view.group()} role="img" aria-label="{html.escape(self.label)}"'
        text = re.sub(r"<svg\b[^>]*", head, text, count=1)
        for placeholder, variable in _VARIABLES.items():
            text = text.replace(placeholder, f"var({variable})")
        text = re.sub(r"font: (?:[a-z]+ )*([\d.]+)px [^;\"]*", r"font-size: \1px", text)
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
        text = re.sub(rf'<g id="{re.escape(self.name)}-tip(\d+)">', self._with_title, text)
        used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))  # clips and marks; other ids would clash
        return re.sub(r' id="([^"]*)"', lambda match: match.group() if match.group(1) in used else "", text)

    def _with_title(self, match: re.Match[str]) -> str:
        return f"<g><title>{html.escape(self._tips[int(match.group(1))])}</title>"


@contextmanager
def drawing(name: str, label: str, height: float) -> Iterator[Drawing]:
    """A drawing in the page's style."""
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        yield Drawing(name, label, height)


def whole_numbers(axes: Axes, labels: Callable[[int], str], count: int) -> None:
    """Ticks 0 … count - 1 along x with a name each."""
    axes.set_xticks(range(count), [labels(n) for n in range(count)])
    axes.set_xlim(-0.35, count - 0.65)
    axes.grid(visible=False, axis="x")
