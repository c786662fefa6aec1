"""How a constitution and a query become a prompt, and how responses are generated."""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from sami.recipe.roles import Role
from sami.recipe.sections import MOST_SEED, Model, Section, as_model


def as_iso_date(value: Any) -> Any:
    """YAML reads an unquoted date as one."""
    return value.isoformat() if isinstance(value, date) else value


class Thinking(Section):
    open: str = Field(default="<think>", min_length=1)
    """Text that starts a model's reasoning."""
    close: str = Field(default="</think>", min_length=1)
    """Text that ends a model's reasoning; the answer follows it."""


# Arguments of `apply_chat_template` that are not for the template.
_NOT_OF_THE_TEMPLATE = {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"}
_NOT_OF_THE_TEMPLATE |= {"continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"}
_NOT_OF_THE_TEMPLATE |= {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"}


class Prompt(Section):
    style: Literal["auto", "chat", "plain"] = "auto"
    """chat: the model's chat template; plain: text for a base model; auto: chat where a template exists."""
    system: str | None = None
    """System turn (chat) or first line (plain), as text or as a Jinja template; null keeps the default."""
    constitution_in: Literal["user", "system"] = "user"
    """Turn that states the constitution. A model without a system role gets the system text in the user turn."""
    generation_template: str | None = None
    """Jinja template of the user turn over `query`, `constitution`, `principles`, `system`; null keeps the default."""
    training_template: str | None = None
    """The same for training; null: the generation template (chat), or the default without example (plain)."""
    template_kwargs: dict[str, Any] | None = None
    """Arguments of the model's chat template, such as {enable_thinking: false}; null: none."""
    thinking: Thinking | None = None
    """Text around the reasoning of a thinking model, which is never trained on or judged; null: the chat template's."""
    date: Annotated[str | None, BeforeValidator(as_iso_date)] = None
    """Date (YYYY-MM-DD) that chat templates show; null: the day on which the run began, which is recorded."""
    response_prefix: str = ""
    """Text that every response starts from; it counts as prompt in generation and in training."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Strings that end a response besides EOS and the template's end of turn; null: none (chat), next turn (plain)."""

    @field_validator("template_kwargs")
    @classmethod
    def _for_the_template(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted((value or {}).keys() & _NOT_OF_THE_TEMPLATE):
            raise ValueError(f"{reserved[0]} is set by sami itself and is not an argument of a template; remove it")
        return value

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{value!r} is not a date; write it as YYYY-MM-DD") from None
        return value


class VLLM(Section):
    tensor_parallel: int = Field(default=1, ge=1, le=1024)
    """GPUs that together hold one copy of the weights."""
    data_parallel: int = Field(default=1, ge=1, le=1024)
    """Copies of the weights on this machine; each one answers a part of the prompts."""
    ray: bool = False
    """Use the GPUs of the Ray cluster that this machine belongs to, so that one copy may span several machines."""
    memory: float = Field(default=0.9, gt=0.0, le=1.0)
    """Share of each GPU's memory for weights and cache; on CPU, VLLM_CPU_KVCACHE_SPACE applies instead."""
    eager: bool = False
    """Do not compile the model: it starts sooner and generates more slowly."""
    largest_gap: float | None = Field(default=None, gt=0.0, le=1e3)
    """Largest mean gap between the log-probs of vLLM and the trainer, in nats per token; null: 0.1, or 0.01 in fp32."""
    any_version: bool = False
    """Allow a version of vLLM that was not tested with this package."""


class ChainOfThought(Section):
    instruction: str = Field(
        default='First reason about the question in a few sentences. Then write "{marker}" and after it the answer '
        "alone.",
        min_length=1,
    )
    """Instruction that asks for reasoning; {marker} is replaced by the marker."""
    marker: str = Field(default="Answer:", min_length=1)
    """Text between reasoning and answer; a response must contain it exactly once to be split."""

    @model_validator(mode="after")
    def _asks_for_the_marker(self) -> Self:
        if not self.marker.strip():
            raise ValueError("marker is white space, which reasoning contains as well; use a word such as Answer:")
        if "{marker}" not in self.instruction and self.marker not in self.instruction:
            raise ValueError(f"instruction does not ask for the marker {self.marker!r}; put {{marker}} into it")
        return self

    @property
    def text(self) -> str:
        """The instruction as the model reads it."""
        return self.instruction.replace("{marker}", self.marker)


class Generation(Section):
    engine: str = Field(default="auto", min_length=1)
    """Engine that generates: auto, transformers or vllm. auto uses vllm on a GPU if a tested version is installed."""
    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000)
    """Longest response in tokens."""
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Probability mass of nucleus sampling; it has an effect only at temperature > 0."""
    batch_size: int = Field(default=128, ge=1, le=100_000)
    """Sequences that are generated together."""
    surplus: float = Field(default=0.1, ge=0.0, le=100.0)
    """Share of contrasts generated in addition to those that the steps need, to make up for filtered ones."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of sampling."""
    chain_of_thought: ChainOfThought | None = None
    """Ask for reasoning before each answer and keep the answer only; true uses the defaults, null asks for none."""
    first_model: Annotated[Model | None, BeforeValidator(as_model)] = None
    """Another model that writes the contrasts of the first iteration; null: the base model writes them."""
    first_contrasts: Annotated[str | None, Role.PATH] = None
    """File with the contrasts of the first iteration, in the format of the paper's code; null: they are generated."""
    vllm: Annotated[VLLM, Role.MACHINE] = VLLM()
    """How vLLM runs; these settings do not identify a run."""

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> Self:
        if self.temperature == 0 and self.top_p < 1:
            raise ValueError("top_p has no effect at temperature 0; raise temperature or remove top_p")
        if self.engine not in ("auto", "vllm") and self.vllm != VLLM():
            raise ValueError(f"vllm has no effect on engine {self.engine!r}; set engine to vllm or auto, or remove it")
        if self.first_model is not None and self.first_contrasts is not None:
            raise ValueError("first_model and first_contrasts are both given; the first iteration takes one of them")
        return self
