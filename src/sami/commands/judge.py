"""`sami judge`: judges asked about a run, or about files of responses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sami.commands.run import show_judging
from sami.console import show, show_json
from sami.evaluation import comparison, win_rate_table
from sami.evaluation.calibration import Calibration
from sami.evaluation.file_comparison import Comparison, Files
from sami.loop.results import Judged
from sami.loop.summary_text import length_table
from sami.pipeline import Pipeline
from sami.recipe import Evaluation, Recipe
from sami.report import write_report


def of_run(recipe: Recipe, folder: Path, *, calibrate: bool, as_json: bool) -> None:
    """Judge the responses of a run and renew its report, or only calibrate its judges."""
    pipeline = Pipeline(recipe, folder)
    if calibrate:
        _show_calibrations(pipeline.calibrate(), as_json)
        return
    _show_verdicts(pipeline.judge(), folder / "evaluation", as_json)
    write_report([folder])


def of_files(files: Files, settings: Evaluation, folder: Path, *, calibrate: bool, as_json: bool) -> None:
    """Judge files of responses, or only calibrate the judges on them."""
    compared = Comparison(files, settings, folder)
    if calibrate:
        _show_calibrations(compared.calibrate(), as_json)
    else:
        _show_verdicts(compared.judge(), folder, as_json)


def _show_verdicts(value: dict[str, Any], folder: Path, as_json: bool) -> None:
    comparison.require_win_rates(value)
    if as_json:
        show_json(value)
        return
    judged = Judged.model_validate(value)
    rates = [one.as_json() for one in judged.win_rates]
    for table in win_rate_table.tables(rates):
        show(table)
    if judged.lengths:
        show(length_table(judged.lengths))
    show_judging(judged)
    if judged.verdict:
        show(judged.verdict)
    show(f"All verdicts: {folder / 'verdicts.jsonl'}.")


def _show_calibrations(calibrations: Sequence[Calibration], as_json: bool) -> None:
    if as_json:
        show_json({calibration.judge: calibration.as_json() for calibration in calibrations})
        return
    for calibration in calibrations:
        show(calibration.sentence())
    if not calibrations:
        show("No judge needs calibration: verifiers define the answer, and the verdicts of people are given.")
