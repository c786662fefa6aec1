"""The evaluation section of a recipe: judges, baselines, and what is measured.

A judge's settings are a section here and a tag in `Judge`; the judge itself is a class in `sami.evaluation.judges`.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sami.recipe.answering import Prompt
from sami.recipe.endpoint import Endpoint
from sami.recipe.roles import Role
from sami.recipe.sections import MOST_SEED, Model, Section, as_model


class JudgeSection(Section):
    """Settings of one judge. The class that judges by them is found by `kind`, in `sami.evaluation.judges.JUDGES`."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The judge's name in verdicts and tables."""


class VerifierJudge(JudgeSection):
    kind: Literal["verifier"]
    """The verifiers of the principles."""

    @property
    def label(self) -> str:
        return self.kind


class LocalJudge(JudgeSection):
    kind: Literal["local"]
    """A causal language model in this process, which prefers the label with the higher log-probability."""
    model: Annotated[Model, BeforeValidator(as_model)]
    """The model: a source, or a section like the recipe's `model`."""
    name: str | None = None
    """The judge's name in verdicts; null takes the model's name."""
    batch_size: int = Field(default=8, ge=1, le=100_000)
    """Questions per forward pass."""

    @property
    def label(self) -> str:
        return self.name or f"local:{self.model.source.rstrip('/').split('/')[-1]}"


class EndpointJudge(Endpoint, JudgeSection):
    kind: Literal["endpoint"]
    """A server that speaks the OpenAI chat protocol."""
    name: str | None = None
    """The judge's name in verdicts; null takes the model's name."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    """Sampling temperature; 0 asks for the likeliest answer."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Sampling seed that is sent to the server."""
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    """Maximum number of tokens in an answer."""
    log_probs: bool = True
    """Request token log-probs, and read the verdict from them where the server returns them."""
    prompt_price: float = Field(default=0.0, ge=0.0, le=1e9)
    """Price of a million prompt tokens, in any currency."""
    completion_price: float = Field(default=0.0, ge=0.0, le=1e9)
    """Price of a million generated tokens."""
    budget: float | None = Field(default=None, gt=0.0, le=1e12)
    """Maximum cost of this judge in this run, in the currency of the prices."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> Self:
        if self.budget is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("budget has no effect without prompt_price and completion_price; set these too")
        return self

    @property
    def label(self) -> str:
        return self.name or f"endpoint:{self.model.rstrip('/').split('/')[-1]}"


class HumanJudge(JudgeSection):
    kind: Literal["human"]
    """People, whose verdicts are read from a file."""
    path: Annotated[str, Role.PATH] = Field(min_length=1)
    """JSONL with query_id, candidate, baseline and score, and optionally constitution_id and order."""
    name: str | None = None
    """The judge's name in verdicts; null takes the file's name."""

    @property
    def label(self) -> str:
        return self.name or f"human:{Path(self.path).stem}"


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Judge = Annotated[
    Annotated[VerifierJudge, Tag("verifier")]
    | Annotated[LocalJudge, Tag("local")]
    | Annotated[EndpointJudge, Tag("endpoint")]
    | Annotated[HumanJudge, Tag("human")],
    Discriminator(_kind),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]


class Baseline(Section):
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The baseline's name in verdicts and tables."""
    model: Annotated[Model, BeforeValidator(as_model)] | None = None
    """A model that answers the held-out queries with the recipe's prompt."""
    run: Annotated[str | None, Role.PATH] = None
    """Folder of an earlier run, whose last trained model answers the held-out queries."""
    responses: Annotated[str | None, Role.PATH] = None
    """JSONL with id, constitution and response for each held-out query and constitution."""
    train: Literal["sft", "dpo"] | None = None
    """Train the base model with TRL on the last iteration's contrasts: sft on each response, dpo on the pairs."""

    prompt: Prompt | None = None
    """Prompt of a model that needs another one than the recipe's; null takes the recipe's."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.model, self.run, self.responses, self.train)) != 1:
            raise ValueError("give a baseline exactly one of model, run, responses and train")
        if self.prompt is not None and self.model is None and self.run is None:
            raise ValueError("prompt only has an effect on a baseline with model or run; remove it")
        if self.name == "base" or self.name.startswith("iteration-"):
            raise ValueError(f"the name {self.name!r} belongs to a policy of the run; choose another one")
        return self


class Evaluation(Section):
    judges: Annotated[list[Judge], Role.JUDGING] = Field(default=[VerifierJudge(kind="verifier")])
    """Who compares responses: verifier, or sections with `kind` local, endpoint or human."""
    baselines: Annotated[list[Baseline], Role.JUDGING] = Field(default=[])
    """Policies that every iteration is compared with, in addition to base."""
    order: Annotated[Literal["both", "random"], Role.JUDGING] = "both"
    """Which response a judge reads first: each of them once, or one drawn for each pair."""
    slope: Annotated[Literal["policy", "shared"], Role.JUDGING] = "policy"
    """Length slope of the length-controlled win rate: one per policy, or one shared by all policies of a judge."""
    unscored_limit: Annotated[float, Role.JUDGING] = Field(default=5.0, ge=0.0, le=100.0)
    """The command fails if more than this share of a judge's verdicts is unscored, or of the constitutions in files of
    responses is not made of the principles given; in percent."""
    calibration_pairs: Annotated[int, Role.JUDGING] = Field(default=60, ge=10, le=100_000)
    """Pairs with a known answer on which a judge is measured before it is asked about others."""
    force: Annotated[bool, Role.JUDGING] = False
    """Use judges that calibration does not show to be above chance; their win rates are marked."""
    principles_per_query: int = Field(default=3, ge=1, le=1000)
    """Contrasts per held-out query, at most one per principle; principles take turns, held-out ones included."""
    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000)
    """Resamples of the queries behind every 95 % interval."""
    health_queries: int = Field(default=40, ge=2, le=100_000)
    """Queries on which relevance and forgetting are measured, with forward passes of their own."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the evaluation contrasts, the order of responses and the bootstrap."""

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for kind, names in (
            ("judges", [judge.label for judge in self.judges]),
            ("baselines", [baseline.name for baseline in self.baselines]),
        ):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are called {repeated[0]!r}; give each of them a `name`")
        return self
