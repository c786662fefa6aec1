"""The engine interface: token ids in, token ids out.

An engine takes prompts as ids and returns completions as ids. Text is made from ids, never the reverse.

    engines              which engine a recipe means; the registry of engines
    transformers_engine  generation in this process
    vllm_engine          generation by vLLM in processes of its own
    endings              where a response ends, the same for every engine
    reasoning            an answer without the reasoning before it
    respond              planned contrasts to contrasts
    first_iteration      contrasts that another model or a file provides
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from sami.contrasts import FinishReason
from sami.prompts import PromptBuilder
from sami.recipe import Generation

# Called while an engine works, with the share of the work that is done and the number of tokens generated so far.
OnProgress = Callable[[float, int], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How to generate.

    Attributes:
        temperature: 0 is greedy.
        stop: strings that end a response and are not part of it.
        end_id: token that closes a response which a stop string ended; None: the tokenizer's EOS.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0
    end_id: int | None = None

    @classmethod
    def of(cls, generation: Generation, prompts: PromptBuilder) -> Self:
        """What a recipe says, for the prompts of one model."""
        return cls(
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            stop=prompts.stop,
            seed=generation.seed,
            end_id=prompts.end_id,
        )


@dataclass(frozen=True)
class Completion:
    """One response.

    `token_ids` end with the end token that was generated where `finish_reason` is "stop". Where a stop string
    ended the response, they are the longest prefix of the generated ids before that string, plus the end token of
    the settings. `text` is what they decode to, and `reasoning` the text that was written before it.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    reasoning: str = ""


class Engine(Protocol):
    """Generates one completion for each prompt, in the order of the prompts."""

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_progress: OnProgress | None = None
    ) -> list[Completion]: ...
