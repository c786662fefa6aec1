"""Which query is answered under which constitutions: the contrasts of a run before their responses.

Everything is drawn from seeds of the recipe, so a plan is made again rather than stored.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from sami.principles import Constitution, Principle
from sami.queries import Query
from sami.recipe import Recipe, Sampling
from sami.schemes import SCHEMES, require_enough, sample_constitutions


@dataclass(frozen=True)
class Planned:
    """A contrast before its responses: a query and the constitutions to answer it under."""

    id: str
    query: str
    constitutions: list[Constitution]


def training_plan(
    recipe: Recipe, principles: Sequence[Principle], queries: Sequence[Query], iteration: int
) -> list[Planned]:
    """The contrasts to generate for an iteration: what its steps need, and the surplus for the filters.

    Args:
        principles: those to learn.
        queries: of this iteration; they are gone through as often as needed, in a new order each time.
    """
    needed = recipe.training.steps_of(iteration) * recipe.training.batch_size
    rng = random.Random(f"constitutions of iteration {iteration}, seed {recipe.sampling.seed}")
    order = list(queries)
    groups = SCHEMES[recipe.sampling.scheme].turns(principles, recipe.sampling.principles_per_constitution, rng)
    planned = []
    for number in range(math.ceil(needed * (1 + recipe.generation.surplus))):
        if number % len(order) == 0:
            rng.shuffle(order)
        constitutions = _sample(next(groups), recipe.sampling, rng)
        planned.append(Planned(f"{iteration}-{number:05d}", order[number % len(order)].text, constitutions))
    return planned


def evaluation_plan(recipe: Recipe, principles: Sequence[Principle], queries: Sequence[Query]) -> list[Planned]:
    """Held-out queries with the principles in turns, held-out principles included."""
    rng = random.Random(f"constitutions of evaluation, seed {recipe.evaluation.seed}")
    turns = itertools.cycle(rng.sample(principles, len(principles)))
    each = min(recipe.evaluation.principles_per_query, len(principles))
    planned = []
    for query in queries:
        for principle in itertools.islice(turns, each):
            constitutions = _sample(_around(principle, principles, recipe.sampling, rng), recipe.sampling, rng)
            planned.append(Planned(f"{query.id}-{principle.id}", query.text, constitutions))
    return planned


def _around(
    principle: Principle, principles: Sequence[Principle], sampling: Sampling, rng: random.Random
) -> list[Principle]:
    """The principle with as few others as a contrast needs, so that every contrast involves it.

    The others are of its own kind, learned or held out, as long as there are enough of those.
    """
    others = [p for p in principles if p is not principle]
    rng.shuffle(others)
    others.sort(key=lambda p: p.held_out != principle.held_out)
    for size in range(len(others) + 1):
        k = sampling.principles_per_constitution
        possible = SCHEMES[sampling.scheme].count(size + 1, k) if k <= size + 1 else 0
        if possible >= sampling.constitutions:
            break
    return [principle, *others[:size]]


def _sample(principles: Sequence[Principle], sampling: Sampling, rng: random.Random) -> list[Constitution]:
    return sample_constitutions(
        principles,
        scheme=sampling.scheme,
        constitutions=sampling.constitutions,
        principles_per_constitution=sampling.principles_per_constitution,
        rng=rng,
    )


def check_sampling(principles: Sequence[Principle], sampling: Sampling) -> None:
    """Raise InputError if the principles cannot give the distinct constitutions that a recipe asks for."""
    require_enough(principles, sampling.scheme, sampling.constitutions, sampling.principles_per_constitution)
