"""A recipe as a whole, and what its sections forbid each other."""

from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from sami.recipe.judging import Evaluation
from sami.recipe.sections import (
    Adapter,
    Filters,
    Generation,
    Health,
    Launch,
    Model,
    Prompt,
    Queries,
    Sampling,
    Section,
    Training,
    as_model,
)
from sami.recipe.writing import PrinciplesSource, WrittenPrinciples

MOST_CONTRASTS = 1_000_000  # in all iterations; the paper's largest recipe here needs 4,608


class Recipe(Section):
    """A run: model, queries and principles are required, everything else has a default."""

    model: Annotated[Model, BeforeValidator(as_model)]
    """Where the weights come from: a source, or a section with `source` and options."""
    queries: Queries
    """Where the queries come from and how many are used."""
    principles: PrinciplesSource
    """YAML file of principles, relative to the recipe; the name of one that comes with sami; or who writes them."""
    prompt: Prompt = Prompt()
    """How a constitution and a query become a prompt."""
    sampling: Sampling = Sampling()
    """How constitutions are drawn from the principles."""
    generation: Generation = Generation()
    """How responses are generated."""
    filters: Filters = Filters()
    """Which contrasts are dropped before training."""
    training: Training = Training()
    """How the model is trained."""
    adapter: Adapter | None = None
    """A LoRA adapter to train in place of all weights; {} takes the defaults, null trains everything."""
    evaluation: Evaluation = Evaluation()
    """What is measured on held-out queries."""
    health: Health = Health()
    """Limits against base; a policy beyond one of them is never called better."""
    launch: Launch = Launch()
    """How many processes run."""

    @model_validator(mode="after")
    def _work_is_bounded(self) -> Self:
        steps = sum(self.training.steps_of(i) for i in range(1, self.training.iterations + 1))
        contrasts = steps * self.training.batch_size * (1 + self.generation.surplus)
        if contrasts > MOST_CONTRASTS:
            raise ValueError(
                f"{steps:,} steps of {self.training.batch_size:,} contrasts with a surplus of "
                f"{self.generation.surplus:g} need {contrasts:,.0f} contrasts, and a run generates at most "
                f"{MOST_CONTRASTS:,}; lower training.steps, training.batch_size or generation.surplus"
            )
        return self

    @model_validator(mode="after")
    def _some_things_need_one_process(self) -> Self:
        if self.training.beta and self.launch.total > 1:
            raise ValueError(
                f"{self.launch.described} and training.beta is {self.training.beta:g}; the divergence "
                f"from a reference is computed in one process only"
            )
        if self.adapter is not None and self.launch.total > 1:
            raise ValueError(
                f"{self.launch.described} and there is an adapter, which a run trains in one "
                f"process; set launch.processes and launch.nodes to 1, or remove the adapter"
            )
        return self

    @model_validator(mode="after")
    def _contrasts_have_their_principles(self) -> Self:
        if self.generation.first_contrasts is not None and isinstance(self.principles, WrittenPrinciples):
            raise ValueError(
                "generation.first_contrasts names contrasts that were written under principles of their own, and "
                "`principles` has others written by a model; give the file of those principles, see sami "
                "import-principles"
            )
        return self

    @model_validator(mode="after")
    def _reasoning_comes_first(self) -> Self:
        if self.generation.chain_of_thought is not None and self.prompt.response_prefix:
            raise ValueError(
                f"prompt.response_prefix is {self.prompt.response_prefix!r} and generation.chain_of_thought is on; a "
                f"response cannot start from the prefix and from reasoning, so remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _narrow_masters_are_possible(self) -> Self:
        if self.training.master_weights == "bfloat16":
            if self.adapter is not None:
                raise ValueError("an adapter trains in float32 beside a narrow base; remove training.master_weights")
            if self.model.dtype == "float32":
                raise ValueError("model.dtype is float32 and training.master_weights bfloat16; set both alike")
            if self.launch.total > 1:
                raise ValueError(
                    f"{self.launch.described}, which divide float32 weights between them; set "
                    f"training.master_weights to float32"
                )
        return self

    @model_validator(mode="after")
    def _processes_share_a_step(self) -> Self:
        if self.training.batch_size % self.launch.total:
            raise ValueError(
                f"{self.launch.described} and training.batch_size is {self.training.batch_size}; a "
                f"step's contrasts must fall evenly to the processes"
            )
        return self
