"""The evaluation section of a recipe: judges, baselines, and what is measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from sami.recipe.endpoint import Endpoint
from sami.recipe.sections import MOST_SEED, Model, Prompt, Section, as_model


class VerifierJudge(Section):
    kind: Literal["verifier"]
    """The principles' own checks."""

    @property
    def label(self) -> str:
        return self.kind


class LocalJudge(Section):
    kind: Literal["local"]
    """A causal language model in this process; it prefers the label with the higher log-probability."""
    model: Annotated[Model, BeforeValidator(as_model)]
    """Which model: a source, or a section as in the recipe's `model`."""
    name: str | None = None
    """As the judge is called in verdicts; null: the model's name."""
    batch_size: int = Field(default=8, ge=1, le=100_000)
    """Questions in one forward pass."""

    @property
    def label(self) -> str:
        return self.name or f"local:{self.model.source.rstrip('/').split('/')[-1]}"


class EndpointJudge(Endpoint):
    kind: Literal["endpoint"]
    """A server that speaks the OpenAI chat protocol."""
    name: str | None = None
    """As the judge is called in verdicts; null: the model's name."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    """0 asks for the likeliest answer."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed that the server is asked to sample with."""
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    """Longest answer of the judge."""
    log_probs: bool = True
    """Ask for token log-probs, and take the verdict from them where the server gives them."""
    prompt_price: float = Field(default=0.0, ge=0.0, le=1e9)
    """Price of a million prompt tokens, in any currency."""
    completion_price: float = Field(default=0.0, ge=0.0, le=1e9)
    """Price of a million answer tokens."""
    budget: float | None = Field(default=None, gt=0.0, le=1e12)
    """Most that this judge may cost in this run, in the currency of the prices."""

    @model_validator(mode="after")
    def _budget_has_prices(self) -> Self:
        if self.budget is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("budget has no effect without prompt_price and completion_price; give these")
        return self

    @property
    def label(self) -> str:
        return self.name or f"endpoint:{self.model.rstrip('/').split('/')[-1]}"


class HumanJudge(Section):
    kind: Literal["human"]
    """People, whose verdicts are in a file."""
    path: str = Field(min_length=1)
    """JSONL with query_id, candidate, baseline, score, and where they matter constitution_id and order."""
    name: str | None = None
    """As the judge is called in verdicts; null: the file's name."""

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
    """As the baseline is called in verdicts and tables."""
    model: Annotated[Model, BeforeValidator(as_model)] | None = None
    """A model that answers the held-out queries, prompted as the recipe says."""
    run: str | None = None
    """Folder of an earlier run, whose last trained model answers them."""
    responses: str | None = None
    """JSONL with id, constitution and response for each held-out query and constitution."""
    train: Literal["sft", "dpo"] | None = None
    """The base model trained through TRL on the last iteration's contrasts: sft on each response, dpo on the pairs."""

    prompt: Prompt | None = None
    """How a model of another kind than the recipe's is prompted; null: as the recipe says."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.model, self.run, self.responses, self.train)) != 1:
            raise ValueError("give a baseline exactly one of model, run, responses and train")
        if self.prompt is not None and self.model is None and self.run is None:
            raise ValueError("prompt has an effect on a baseline with model or run only; remove it")
        if self.name == "base" or self.name.startswith("iteration-"):
            raise ValueError(f"the name {self.name!r} is that of a policy of the run; choose another")
        return self


class Evaluation(Section):
    judges: list[Judge] = Field(default=[VerifierJudge(kind="verifier")])
    """Who compares responses: verifier, or sections with `kind` local, endpoint or human."""
    baselines: list[Baseline] = Field(default=[])
    """What every iteration is compared with besides base."""
    order: Literal["both", "random"] = "both"
    """Which response a judge reads first: each once, or one drawn for each pair."""
    slope: Literal["policy", "shared"] = "policy"
    """Length slope of the length-controlled win rate: one for each policy, or one for all that a judge compared."""
    unscored_limit: float = Field(default=5.0, ge=0.0, le=100.0)
    """The command fails if a judge leaves more than this share of verdicts unscored, in percent."""
    calibration_pairs: int = Field(default=60, ge=10, le=100_000)
    """Pairs with a known answer on which a judge is measured before it is asked."""
    force: bool = False
    """Use judges that calibration does not find above chance; their win rates say so."""
    principles_per_query: int = Field(default=3, ge=1, le=1000)
    """Contrasts per held-out query, at most one for each principle, which take turns, held-out ones included."""
    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000)
    """Resamples of the queries behind every 95 % interval."""
    health_queries: int = Field(default=40, ge=2, le=100_000)
    """Queries behind relevance and forgetting, which cost forward passes of their own."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of evaluation contrasts, of the order of responses and of the bootstrap."""

    def with_paths(self, absolute: Callable[[str], str]) -> "Evaluation":
        """The same with every path of a judge or baseline passed through `absolute`."""

        def resolved(section: Any) -> Any:
            changes: dict[str, Any] = {}
            if isinstance(section, LocalJudge | Baseline) and section.model is not None:
                changes["model"] = section.model.model_copy(update={"source": absolute(section.model.source)})
            for name in ("path", "run", "responses"):
                if getattr(section, name, None) is not None:
                    changes[name] = absolute(getattr(section, name))
            return section.model_copy(update=changes)

        return self.model_copy(
            update={"judges": list(map(resolved, self.judges)), "baselines": list(map(resolved, self.baselines))}
        )

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        for kind, names in (
            ("judges", [judge.label for judge in self.judges]),
            ("baselines", [baseline.name for baseline in self.baselines]),
        ):
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two {kind} are called {repeated[0]!r}; give them a `name` each")
        return self
