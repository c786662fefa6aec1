"""`sami winrate`: win rates from a file of verdicts."""

from pathlib import Path
from typing import Literal

from sami.console import show, show_json, warn
from sami.evaluation import alpaca, comparison, recorded_lines, win_rate, win_rate_table
from sami.evaluation.verdicts import read_verdicts

SAMPLES = 2000  # of the bootstrap of a judge's recorded calibration


def show_win_rates(verdicts: Path, slope: Literal["policy", "shared"], *, as_json: bool) -> None:
    """Print win rates with intervals, raw and corrected for length, and how far judges agree."""
    recorded_lines.require_unchanged(verdicts)
    judged = read_verdicts(verdicts)
    accuracies = comparison.recorded_accuracies(verdicts, samples=SAMPLES, seed=0)
    rates = win_rate.win_rates(judged, slope=slope, judge_accuracy=accuracies)
    if as_json:
        show_json(rates)
    else:
        for table in win_rate_table.tables(rates):
            show(table)
        for pair in win_rate.agreement(judged):
            show(win_rate_table.agreement_sentence(pair))
    for warning in win_rate_table.warnings(rates):
        warn(warning)


def export(verdicts: Path) -> None:
    """Print verdicts as annotations of alpaca_eval."""
    recorded_lines.require_unchanged(verdicts)
    show_json(alpaca.annotations(read_verdicts(verdicts)))
