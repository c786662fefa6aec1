"""What a recipe generates, trains on and scores: its planned contrasts and their numbers of tokens.

Tokens are counted with the model's tokenizer on the recipe's queries. If the hub that has them cannot be reached, they
are estimated from characters.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template

from sami.contrast_plan import Planned, check_sampling, evaluation_plan, training_plan
from sami.costs.shape import Lengths, Shape
from sami.errors import InputError
from sami.models import adapters, loading
from sami.models.known import family_of, known_config
from sami.prepared import prepare
from sami.principle_writing.files import placeholders
from sami.principles import Principle, load_principles
from sami.prompts import PromptBuilder
from sami.queries import Query, load_queries
from sami.recipe import Generation, Recipe

CHARACTERS_PER_TOKEN = 4.2  # of SmolLM2's tokenizer on Reddit posts (4.22) and on HH-RLHF's first turns (4.31)
# Characters of the queries of known data sets, at 5, 15, … 95 %: 1,500 first turns of helpful-base, 150 posts of TL;DR.
QUERY_CHARACTERS = {
    "hh": (24, 32, 37, 42, 47, 53, 60, 72, 92, 135),
    "tldr": (677, 869, 1011, 1134, 1240, 1357, 1523, 1648, 1767, 1943),
}
SAMPLE = 100  # contrasts of each kind whose prompts are counted


@dataclass(frozen=True)
class Workload:
    """The contrasts of a run and the size of model and prompts."""

    shape: Shape
    training: list[list[Planned]]
    """For each iteration."""
    evaluation: list[Planned]
    training_queries: int
    evaluation_queries: int
    mean_prompt: float
    """Tokens of a training prompt."""
    generation: Generation
    """The recipe's section with its engine resolved, if it can be."""
    longest: Lengths
    adapter_weights: int
    estimated: str | None
    """Why lengths are estimated from characters; None if they were counted."""

    @property
    def contrasts(self) -> list[int]:
        """Contrasts generated for each iteration; those read from a file are not counted."""
        from_file = self.generation.first_contrasts is not None
        return [0 if from_file and i == 0 else len(plan) for i, plan in enumerate(self.training)]


def workload(recipe: Recipe, *, hub: bool) -> Workload:
    """The workload of a recipe, from its data and model, or without a hub from what is known about them.

    Args:
        hub: whether a hub can be reached.

    Raises:
        InputError: whatever a run would refuse about the recipe, its data or its model.
    """
    try:
        return _counted(recipe)
    except InputError as error:
        config = None if hub else known_config(recipe.model)
        if config is None:
            raise
        principles = principles_before_writing(recipe)
        queries = _queries(recipe, error)
    learned = [p for p in principles if not p.held_out]
    check_sampling(learned, recipe.sampling)
    prompts = PromptBuilder(_CharacterCounter(recipe), recipe.prompt, recipe.generation.chain_of_thought)  # type: ignore[arg-type]
    evaluation = evaluation_plan(recipe, principles, queries[: recipe.queries.evaluation])
    training = [
        training_plan(recipe, learned, queries[: recipe.queries.train // 2], i)
        for i in range(1, recipe.training.iterations + 1)
    ]
    adapter, base = recipe.adapter, recipe.model
    return _with_lengths(
        recipe,
        prompts,
        Shape.of(config),
        training,
        evaluation,
        (recipe.queries.train, recipe.queries.evaluation),
        adapter_weights=0 if adapter is None else adapters.trained_weights(adapter, base, loading.empty_of(config)),
        estimated="no hub can be reached, so the model's shape is looked up by its name, and tokens are estimated at "
        f"{CHARACTERS_PER_TOKEN} characters each",
    )


def principles_before_writing(recipe: Recipe) -> list[Principle]:
    """The principles of the recipe's file, or placeholders for those that a model will write."""
    given = recipe.principles
    return load_principles(given) if isinstance(given, str) else placeholders(given)


def _counted(recipe: Recipe) -> Workload:
    prepared = prepare(recipe)
    prepared.require_room()
    splits = prepared.splits
    return _with_lengths(
        prepared.recipe,
        prepared.prompts,
        Shape.of(loading.load_config(recipe.model), recipe.model.trust_remote_code),
        [prepared.training_plan(i) for i in prepared.iterations],
        prepared.evaluation_plan(),
        (sum(map(len, splits.train)), len(splits.evaluation)),
        adapter_weights=prepared.adapter_weights(),
        estimated=None,
    )


def _with_lengths(
    recipe: Recipe,
    prompts: PromptBuilder,
    shape: Shape,
    training: list[list[Planned]],
    evaluation: list[Planned],
    queries: tuple[int, int],
    *,
    adapter_weights: int,
    estimated: str | None,
) -> Workload:
    sample = [*training[0][:SAMPLE], *evaluation[:SAMPLE]]
    asked = [(p.query, c.texts, c.text) for p in sample for c in p.constitutions]
    lengths = [len(prompts.training_prompt(*one)) for one in asked]
    generation = [len(prompts.generation_prompt(*one)) for one in asked]
    return Workload(
        shape=shape,
        training=training,
        evaluation=evaluation,
        training_queries=queries[0],
        evaluation_queries=queries[1],
        mean_prompt=sum(lengths) / len(lengths),
        generation=recipe.generation,
        longest=Lengths(max(lengths), max(generation), recipe.generation.max_new_tokens),
        adapter_weights=adapter_weights,
        estimated=estimated,
    )


def _queries(recipe: Recipe, error: InputError) -> list[Query]:
    """A file's queries, or for a known data set texts of the lengths that its queries have."""
    q = recipe.queries
    if Path(q.path).exists():
        return load_queries(
            q.path, format=q.format, field=q.field, min_chars=q.min_chars, max_chars=q.max_chars
        ).queries
    if q.format not in QUERY_CHARACTERS:
        raise error
    lengths = itertools.cycle(min(n, q.max_chars) for n in QUERY_CHARACTERS[q.format])
    return [Query(f"{number}", "x" * next(lengths)) for number in range(max(q.train, q.evaluation))]


class _CharacterCounter:
    """In place of a tokenizer that cannot be loaded: as many ids as the text has tokens on average."""

    eos_token_id = -1

    def __init__(self, recipe: Recipe) -> None:
        chat = family_of(recipe.model).chat
        turns = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}<|assistant|>\n"
        self.chat_template = turns if chat else None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * math.ceil(len(text) / CHARACTERS_PER_TOKEN)}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return Template(str(self.chat_template)).render(messages=messages)
