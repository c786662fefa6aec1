"""A recipe as a whole, and the rules between its sections."""

from typing import Annotated, Self

from pydantic import BeforeValidator, model_validator

from sami.recipe.answering import Generation, Prompt
from sami.recipe.compatibility import TrainingSetup
from sami.recipe.judging import Evaluation
from sami.recipe.roles import Role
from sami.recipe.sections import Filters, Health, Model, Queries, Sampling, Section, as_model
from sami.recipe.training import Adapter, Launch, Training
from sami.recipe.writing import PrinciplesSource, WrittenPrinciples

MOST_CONTRASTS = 100_000  # in all iterations; the paper's largest recipe here needs 4,608


class Recipe(Section):
    """A run: model, queries and principles are required, everything else has a default."""

    model: Annotated[Model, BeforeValidator(as_model)]
    """Where the weights come from: a source, or a section with `source` and options."""
    queries: Queries
    """Where the queries come from and how many are used."""
    principles: Annotated[PrinciplesSource, Role.PATH]
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
    launch: Annotated[Launch, Role.MACHINE] = Launch()
    """How many processes run."""

    def conflict(self, processes: int | None = None) -> str | None:
        """Why this recipe cannot be trained, in whole sentences; None where it can.

        Args:
            processes: that train in place of the recipe's own.
        """
        count = self.launch.total if processes is None else processes
        launched = self.launch.described if processes is None else f"{count} processes train"
        if self.adapter is not None and count > 1:
            return (
                f"The recipe has an adapter, and {launched}. A run trains an adapter in one process. Set "
                f"launch.processes and launch.nodes to 1, or remove the adapter."
            )
        if self.training.batch_size % count:
            return (
                f"training.batch_size is {self.training.batch_size}, and {launched}. Every process takes the same "
                f"number of a step's contrasts. Choose a batch size that {count} divides, or launch fewer processes."
            )
        return TrainingSetup(
            processes=count,
            launched=launched,
            beta=self.training.beta,
            adapter=self.adapter is not None,
            master_weights=self.training.master_weights,
            compute_dtype=self.model.dtype,
        ).conflict()

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
    def _can_be_trained(self) -> Self:
        if reason := self.conflict():
            raise ValueError(reason.removesuffix("."))
        return self

    @model_validator(mode="after")
    def _contrasts_have_their_principles(self) -> Self:
        if self.generation.first_contrasts is not None and isinstance(self.principles, WrittenPrinciples):
            raise ValueError(
                "generation.first_contrasts names contrasts that were generated under principles of their own, and "
                "`principles` asks a model to write others; set `principles` to the file of the contrasts' principles "
                "(sami import-principles writes one)"
            )
        return self

    @model_validator(mode="after")
    def _reasoning_comes_first(self) -> Self:
        if self.generation.chain_of_thought is not None and self.prompt.response_prefix:
            raise ValueError(
                f"prompt.response_prefix is {self.prompt.response_prefix!r} and generation.chain_of_thought is on; a "
                f"response cannot start with both the prefix and reasoning; remove one of them"
            )
        return self
