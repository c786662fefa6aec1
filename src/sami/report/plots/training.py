"""The picture of training curves."""

import math

from sami.report.plots.panel import Box, Panel, columns, span, ticks
from sami.report.plots.picture import Picture, policy_color
from sami.report.plots.svg import LINE, WIDTH, Key, Svg
from sami.report.run_files import RunFiles
from sami.wording import NONE

_MOST_ROWS = 60  # of the table under the picture
_MEASURES = (
    ("bound", "Bound, nats"),
    ("loss", "Loss, nats"),
    ("column_accuracy", "Column accuracy"),
    ("grad_norm", "Gradient norm"),
    ("kl", "KL from base, nats per token"),
    ("weights_changed", "Weights changed, share"),
)
_HEIGHT = 104.0  # of one panel with its labels
_PANEL = 68.0


def training_curves(run: RunFiles) -> Picture | None:
    """What each optimizer step recorded."""
    every = [(iteration, step) for iteration, steps in run.metrics.items() for step in steps]
    if not every:
        return None
    keys = [(key, title) for key, title in _MEASURES if any(step.get(key) is not None for _, step in every)]
    svg = Svg("Training curves")
    top = svg.legend([Key(f"iteration {i}", policy_color(i), is_line=True) for i in run.metrics], 0)
    last = max(step["step"] for _, step in every)
    for n, (key, title) in enumerate(keys):
        above = top + _HEIGHT * (n // 2) + LINE
        box = columns(Box(32, above, WIDTH - 6, above + _PANEL), 2, 40)[n % 2]
        curves = {
            i: [(float(step["step"]), float(step[key])) for step in steps if step.get(key) is not None]
            for i, steps in run.metrics.items()
        }
        values = [y for points in curves.values() for _, y in points]
        panel = Panel(svg, box, (0.5, max(last, 2) + 0.5), span(values))
        panel.title(title)
        panel.y_axis()
        panel.x_axis(ticks(1, max(last, 2), whole=True), grid=False)
        for iteration, points in curves.items():
            if points:
                ends = ", ".join(f"{value:.3g} at step {step:.0f}" for step, value in (points[0], points[-1]))
                panel.curve(points, policy_color(iteration), f"iteration {iteration}: {ends}")
    below = top + _HEIGHT * math.ceil(len(keys) / 2)
    svg.text(WIDTH / 2, below + 4, "optimizer step", anchor="middle")
    stride = max(1, math.ceil(len(every) / _MOST_ROWS))
    return Picture(
        "training",
        "Training curves",
        svg.finish(below + 10),
        "One point per optimizer step. This bound is measured on the contrasts that the step trains on, so it says "
        "nothing about new queries." + (f" The table shows every {stride}th step." if stride > 1 else ""),
        "iteration-*/metrics.jsonl",
        ["iteration", "step", *(title for _, title in keys), "learning rate"],
        [
            [str(i), str(s["step"]), *(_figure(s.get(k)) for k, _ in keys), _figure(s.get("learning_rate"))]
            for i, s in every[::stride]
        ],
    )


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"
