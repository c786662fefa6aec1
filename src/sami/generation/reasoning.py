"""Reasoning, then answer: the answer alone as a completion of its own, cut at a token's boundary.

Reasoning comes from a chain of thought that the recipe asks for, or from a thinking model by itself. It is kept as
text, to be shown. It is never trained on, verified or judged.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sami.generation import Completion
from sami.prompts import PromptBuilder
from sami.recipe import ChainOfThought

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_alone(
    completion: Completion, prompt: Sequence[int], prompts: PromptBuilder, chain_of_thought: ChainOfThought | None
) -> Completion:
    """A completion without the reasoning of a thinking model and without the chain of thought that was asked for.

    Args:
        prompt: the ids that the completion was generated from.
        prompts: of the model that wrote it.
    """
    if prompts.thinking is not None:
        completion = without_thinking(
            completion, prompts.thinking, prompts.tokenizer, opened=prompts.opens_reasoning(prompt)
        )
    if chain_of_thought is not None and completion.finish_reason != "unsplit":
        completion = answer_of(completion, chain_of_thought.marker, prompts.tokenizer)
    return completion


def without_thinking(
    completion: Completion, markers: tuple[str, str], tokenizer: "PreTrainedTokenizerBase", *, opened: bool
) -> Completion:
    """What follows the reasoning of a thinking model; the whole completion where the model did not reason.

    A model that never ends its reasoning has answered nothing: its text is empty, and its ids stay whole.

    Args:
        markers: text that opens and closes reasoning.
        opened: the prompt ends with the opening one.
    """
    opening, closing = markers
    text = _text(completion.token_ids, tokenizer)
    if not opened and opening not in text and closing not in text:
        return completion
    answer = answer_of(completion, closing, tokenizer)
    if answer.finish_reason == "unsplit":
        answer = replace(answer, text="", reasoning=completion.text)
    return replace(answer, reasoning=answer.reasoning.strip().removeprefix(opening).strip())


def answer_of(completion: Completion, marker: str, tokenizer: "PreTrainedTokenizerBase") -> Completion:
    """What follows the marker; its ids are those that were generated, from the first token of the answer on.

    Tokens of white space between marker and answer are left out. The finish reason stays, and with it the end token.

    Args:
        tokenizer: of the model that wrote the completion.

    Returns:
        The whole completion with the finish reason "unsplit" where reasoning and answer cannot be separated: the
        marker is missing or occurs more than once, nothing follows it, or one token holds both the end of the
        marker and the beginning of the answer.
    """
    ids = completion.token_ids
    whole = replace(completion, finish_reason="unsplit")
    parts = _text(ids, tokenizer).split(marker)
    if len(parts) != 2:
        return whole
    start = bisect_left(range(len(ids) + 1), True, key=lambda end: marker in _text(ids[:end], tokenizer))
    while start < len(ids) and not _text(ids[start : start + 1], tokenizer).strip():
        start += 1
    answer = str(tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if not answer.strip() or _text(ids[start:], tokenizer).strip() != parts[1].strip():
        return whole
    before = "\n\n".join(part for part in (completion.reasoning, parts[0].strip()) if part)
    return Completion(ids[start:], answer, completion.finish_reason, before)


def _text(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
