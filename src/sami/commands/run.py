"""`sami run`: the whole loop, or its smoke run, and what is printed at the end."""

from pathlib import Path
from typing import Any

from sami.commands.smoke import smoked
from sami.console import say, show, show_json, warn
from sami.evaluation import win_rate_table
from sami.loop.results import Judged, Summary
from sami.loop.summary_text import sentences, table
from sami.pipeline import Pipeline
from sami.recipe import Recipe
from sami.report import write_report


def run(recipe: Recipe, folder: Path, *, as_json: bool = False) -> None:
    """Run a recipe, or continue its run; on a machine of a higher rank, train along with machine 0."""
    pipeline = Pipeline(recipe, folder)
    if recipe.launch.rank > 0:
        pipeline.assist(pipeline.context.prepared.iterations)
        return
    finish(pipeline.run(), folder, as_json=as_json)


def smoke(recipe: Recipe, folder: Path, *, as_json: bool = False) -> None:
    """Run a recipe in miniature."""
    with smoked(recipe, folder / ".smoke") as tiny:
        finish(Pipeline(tiny, folder).run(), folder, as_json=as_json)
    say("This was a smoke run: tiny random models and scripted judges, so its figures mean nothing.")


def finish(value: dict[str, Any], folder: Path, *, as_json: bool) -> None:
    """Write the report of a run and print the value of its summary.json."""
    page = write_report([folder])
    if as_json:
        show_json(value)
        return
    summary = Summary.model_validate(value)
    show(table(summary))
    if summary.win_rates:
        show(win_rate_table.tables([one.as_json() for one in summary.win_rates])[0])
        show_judging(summary)
    for sentence in sentences(summary):
        show(sentence)
    show(f"All figures: {folder / 'summary.json'}. To read and share: {page}.")


def show_judging(judged: Summary | Judged) -> None:
    """Print how far judges agree, and warn of what makes their win rates unreliable."""
    for pair in judged.agreement:
        show(win_rate_table.agreement_sentence(pair.as_json()))
    for warning in win_rate_table.warnings([one.as_json() for one in judged.win_rates]):
        warn(warning)
