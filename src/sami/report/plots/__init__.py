"""The pictures of a page, each with its caption, the files it comes from, and its numbers as a table."""

from sami.report.plots.information import bounds, learned_and_held_out, principles
from sami.report.plots.judging import win_rates
from sami.report.plots.overlays import overlaid
from sami.report.plots.picture import Picture
from sami.report.plots.responses import lengths, matrices
from sami.report.plots.training import training_curves
from sami.report.run_files import RunFiles

__all__ = ["overlaid", "pictures"]

_PICTURES = (bounds, win_rates, learned_and_held_out, principles, lengths, matrices, training_curves)


def pictures(run: RunFiles) -> list[Picture]:
    """Every picture for which the run has figures, in the page's order."""
    return [made for draw in _PICTURES if (made := draw(run)) is not None]
