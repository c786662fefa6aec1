"""`sami probe --both-places`: does the base model follow principles better in the user's turn or in the system turn?

found = probe_places(load_recipe("quickstart"), queries=24)
print(advice(found))
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from rich.table import Table

from sami.commands.probe import RULE, Link, Probe, cautions, cells, empty_table, name_of, probe
from sami.console import say, show, show_json
from sami.errors import InputError
from sami.prepared import prepare
from sami.recipe import Recipe

Place = Literal["user", "system"]  # a value of `prompt.constitution_in`
PLACES: tuple[Place, Place] = ("user", "system")
NAMES = {"user": "the user's turn", "system": "the system turn"}


def probe_places(recipe: Recipe, queries: int) -> dict[Place, Probe]:
    """Probe a recipe with its constitutions in each of the two places.

    Args:
        queries: training queries to measure each principle on, the same in both places.

    Raises:
        InputError: the model has no system role, or whatever `sami probe` refuses.
    """
    if not prepare(recipe).prompts.has_system_role:
        raise InputError(
            f"You passed --both-places, but {recipe.model.source} has no system turn to put a constitution in: its "
            f"prompts are plain, or its chat template has no system role. Probe without the option."
        )
    found: dict[Place, Probe] = {}
    for place in PLACES:
        say(f"constitutions in {NAMES[place]}:")
        prompt = recipe.prompt.model_copy(update={"constitution_in": place})
        found[place] = probe(recipe.model_copy(update={"prompt": prompt}), queries)
    return found


def show_places(found: Mapping[Place, Probe], *, as_json: bool) -> None:
    """Print one table for both places, and which place to use."""
    if as_json:
        show_json({place: one.as_json() for place, one in found.items()} | {"advice": advice(found)})
        return
    show(table(found))
    for sentence in [advice(found), *cautions(found["user"])]:
        show(sentence)
    show(f"Rule: {RULE}.")


def table(found: Mapping[Place, Probe]) -> Table:
    """The links of each principle in the two places, one below the other."""
    shown = empty_table(found["user"].queries, "principle", "turn")
    for first in [*found["user"].links, found["user"].control]:
        for place, one in found.items():
            link = _link(one, first.principle.id)
            shown.add_row(name_of(first) if place == "user" else "", place, *cells(link, one.control))
    return shown


def advice(found: Mapping[Place, Probe]) -> str:
    """Which place to use, in a sentence: the one in which more principles are worth training."""
    worth = {p: sum(link.verdict(one.control) == "worth training" for link in one.links) for p, one in found.items()}
    bounds = {place: float(np.mean([link.bound.value or 0.0 for link in one.links])) for place, one in found.items()}
    figures = ", ".join(
        f"{worth[place]} of {len(one.links)} with a mean bound of {bounds[place]:.3f} nats in {NAMES[place]}"
        for place, one in found.items()
    )
    if worth["user"] == worth["system"]:
        return (
            f"As many principles are worth training in both places ({figures}): set prompt.constitution_in to the "
            f"place in which the model will get its instructions when it is deployed."
        )
    better: Place = max(PLACES, key=lambda place: worth[place])
    return f"More principles are worth training in {NAMES[better]} ({figures}): set prompt.constitution_in={better}."


def _link(found: Probe, name: str) -> Link:
    return next(link for link in [*found.links, found.control] if link.principle.id == name)
