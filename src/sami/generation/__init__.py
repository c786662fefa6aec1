"""The engine interface: token ids in, token ids out.

An engine gets prompts as ids and gives completions as ids. Text is made from ids, never the reverse.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sami.contrasts import FinishReason

# Called while an engine works: the share of the work that is done, and the tokens generated so far.
OnProgress = Callable[[float, int], None]


@dataclass(frozen=True)
class SamplingSettings:
    """How to generate. Temperature 0 is greedy; `stop` strings end a response and are not part of it."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: Sequence[str] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One response.

    `token_ids` end with the end token that was generated where `finish_reason` is "stop"; where a stop string
    ended the response they are the longest prefix of the generated ids before that string, plus the tokenizer's
    EOS. `text` is what they decode to.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason


class Engine(Protocol):
    """What generates: one completion for each prompt, in the order of the prompts."""

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_progress: OnProgress | None = None
    ) -> list[Completion]: ...
