"""`sami plan`: what a recipe will cost, and whether it fits."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from sami.commands.smoke import smoked
from sami.console import show, show_json
from sami.costs import tables
from sami.costs.estimate import Costs, Gpus, plan
from sami.errors import InputError
from sami.recipe import Recipe


def show_plan(recipe: Recipe, gpus: Gpus | None, *, smoke: bool, hub: bool, as_json: bool) -> None:
    """Print the plan of a recipe, for the GPUs given or for this machine.

    Raises:
        InputError: whatever `sami run` would refuse, or a recipe that does not fit into the GPUs given.
    """
    with ExitStack() as stack:
        if smoke:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sami-smoke-")))
            recipe = stack.enter_context(smoked(recipe, place))
        costs = plan(recipe, gpus, hub=hub)
    if as_json:
        show_json({"recipe": costs.recipe.model_dump(), **costs.as_json()})
    else:
        _show_tables(costs)
    if gpus and costs.misfits:
        raise InputError(" ".join(costs.misfits))


def _show_tables(costs: Costs) -> None:
    for table in (tables.recipe_table(costs.recipe), tables.cost_table(costs), tables.memory_table(costs)):
        show(table)
    if costs.estimated:
        show(f"note: {costs.estimated}.")
    for warning in [*costs.warnings, *costs.misfits]:
        show(f"warning: {warning}")
