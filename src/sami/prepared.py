"""A recipe with its data: everything that is known before the first response is generated.

    prepared = prepare(load_recipe("quickstart"))
    prepared.training_plan(1)[0].query

`plan`, `probe` and `inspect` need nothing more. Nothing here writes a file or knows a run's folder.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sami.console import say
from sami.contrast_plan import Planned, check_sampling, evaluation_plan, training_plan
from sami.errors import InputError
from sami.generation import first_iteration
from sami.generation.engines import with_engine
from sami.models import adapters, devices, loading, quantization, structure
from sami.objective import require_objective
from sami.principle_writing import files as principle_files
from sami.principles import Principle, load_principles
from sami.prompts import PromptBuilder
from sami.prompts.check import PromptCheck
from sami.queries import LoadedQueries, Splits, load_queries, split_queries
from sami.recipe import Model, Recipe


class Prepared:
    """A resolved recipe, its principles, and what follows from them; each part is read when it is first used.

    Args:
        recipe: with a dtype and an engine rather than "auto" (`prepare` resolves them).
        principles: learned and held-out ones.
    """

    def __init__(self, recipe: Recipe, principles: Sequence[Principle]) -> None:
        self.recipe = recipe
        self.principles = list(principles)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of compute, generation and saved weights."""
        return devices.resolve_dtype(self.recipe.model.dtype)

    @property
    def learned(self) -> list[Principle]:
        return [p for p in self.principles if not p.held_out]

    @property
    def held_out(self) -> list[Principle]:
        return [p for p in self.principles if p.held_out]

    @property
    def iterations(self) -> range:
        """The numbers of the recipe's iterations, from 1."""
        return range(1, self.recipe.training.iterations + 1)

    @cached_property
    def tokenizer(self) -> Any:
        return loading.load_tokenizer(self.recipe.model)

    @cached_property
    def prompts(self) -> PromptBuilder:
        return PromptBuilder(self.tokenizer, self.recipe.prompt, self.recipe.generation.chain_of_thought)

    @cached_property
    def loaded(self) -> LoadedQueries:
        """The recipe's queries, with a count of the records that hold no usable one."""
        q = self.recipe.queries
        return load_queries(
            q.path,
            format=q.format,
            field=q.field,
            split=q.split,
            config=q.config,
            data_dir=q.data_dir,
            revision=q.revision,
            min_chars=q.min_chars,
            max_chars=q.max_chars,
        )

    @cached_property
    def splits(self) -> Splits:
        """Training and held-out queries."""
        q = self.recipe.queries
        return split_queries(self.loaded.queries, train=q.train, evaluation=q.evaluation, seed=q.seed)

    @cached_property
    def imported(self) -> Callable[[PromptBuilder], first_iteration.Written] | None:
        """The first iteration's contrasts where the recipe takes them from a file."""
        file = self.recipe.generation.first_contrasts
        if file is None:
            return None
        return first_iteration.written_in_file(Path(file), self.principles, self.splits.evaluation, self.recipe)

    def training_plan(self, iteration: int) -> list[Planned]:
        """The contrasts to generate for an iteration."""
        return training_plan(self.recipe, self.learned, self.splits.for_iteration(iteration), iteration)

    def evaluation_plan(self) -> list[Planned]:
        """The contrasts on which every policy is evaluated."""
        return evaluation_plan(self.recipe, self.principles, self.splits.evaluation)

    def adapter_weights(self) -> int:
        """Number of weights of the recipe's adapter, 0 without one.

        Raises:
            InputError: modules that do not exist or cannot have an adapter.
        """
        if self.recipe.adapter is None:
            return 0
        empty = loading.empty_model(self.recipe.model)
        return adapters.trained_weights(self.recipe.adapter, self.recipe.model, empty)

    def require_room(self) -> None:
        """Refuse prompts that leave no room for a response in the model's context, or in the first writer's.

        Raises:
            InputError: the first such prompt.
        """
        plans = [self.evaluation_plan(), *(self.training_plan(i) for i in self.iterations)]
        new = self.recipe.generation.max_new_tokens
        require_room(self.recipe.model, self.prompts, itertools.chain.from_iterable(plans), new)
        writer = self.recipe.generation.first_model
        if writer is not None:
            require_room(writer, first_iteration.prompts_of(writer, self.recipe), self.training_plan(1), new)

    def require_distinct_constitutions(self) -> None:
        """Refuse more constitutions per contrast than the principles allow."""
        check_sampling(self.learned, self.recipe.sampling)


def prepare(recipe: Recipe, written: Path | None = None) -> Prepared:
    """Read and check what a recipe names.

    Args:
        written: principles that a model wrote for this recipe, where it asks for that and they exist.

    Raises:
        InputError: anything in the recipe, the principles, the queries or the model that cannot work.
    """
    require_objective(recipe.training.contrast, recipe.training.estimator)
    recipe = _resolved(recipe)
    _require_whole_weights(recipe.model)
    if recipe.adapter is not None and recipe.adapter.quantize:
        quantization.require_bitsandbytes()
    prepared = Prepared(recipe, _principles(recipe, written))
    _ = prepared.splits, prepared.imported  # both are read and checked here
    prepared.require_distinct_constitutions()
    return prepared


def require_room(model: Model, prompts: PromptBuilder, plan: Iterable[Planned], new_tokens: int) -> None:
    """Refuse a prompt that does not show all that it should, or leaves no room for `new_tokens` more in the context.

    Raises:
        InputError: the first such prompt of the plan.
    """
    context = structure.context_length(loading.load_config(model))
    for notice in prompts.notices:
        say(f"{model.source}: {notice}")
    check = PromptCheck(prompts, model.source)
    # Many steps go through the same queries again, so that most of a long plan repeats itself.
    distinct = {(planned.query, tuple(c.text for c in planned.constitutions)): planned for planned in plan}
    for planned in distinct.values():
        for longest in map(len, check(planned.query, planned.constitutions)):
            if context and longest + new_tokens > context:
                raise InputError(
                    f"The prompt for the query {planned.query[:60]!r} has {longest} tokens and the response may have "
                    f"{new_tokens} more, but the context of {model.source} is {context} tokens. Lower "
                    f"queries.max_chars or generation.max_new_tokens."
                )


def _resolved(recipe: Recipe) -> Recipe:
    """The recipe with this machine's dtype and engine in place of "auto"."""
    dtype = devices.resolve_dtype(recipe.model.dtype)
    resolved = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
            "generation": with_engine(recipe.generation),
        }
    )
    if reason := resolved.conflict():
        raise InputError(f"model.dtype={recipe.model.dtype} means {dtype} on this machine. {reason}")
    return resolved


def _require_whole_weights(model: Model) -> None:
    if adapters.base_of(Path(model.source).expanduser()) is not None:
        raise InputError(
            f"The model {model.source} is an adapter, but a run must start from whole weights. Merge the adapter into "
            f"its model first (peft's merge_and_unload) and give the folder of the merged model."
        )


def _principles(recipe: Recipe, written: Path | None) -> list[Principle]:
    """Those of the recipe's file, or those that its writer wrote; until then, placeholders to plan with."""
    given = recipe.principles
    if isinstance(given, str):
        return load_principles(given)
    return (
        load_principles(written) if written is not None and written.is_file() else principle_files.placeholders(given)
    )
