"""Reasoning, then answer: the answer alone as a completion of its own, cut at a token's boundary."""

from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

from sami.generation import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_of(completion: Completion, marker: str, tokenizer: "PreTrainedTokenizerBase") -> Completion:
    """What follows the marker; its ids are those that were generated, from the first token of the answer on.

    Tokens of white space between marker and answer are left out. The finish reason stays, and with it EOS.

    Args:
        tokenizer: of the model that wrote the completion.

    Returns:
        The whole completion with the finish reason "unsplit" where reasoning and answer cannot be told apart: the
        marker is missing or stands there more than once, nothing follows it, or a token holds the end of the
        marker and the answer's beginning.
    """
    ids = completion.token_ids
    whole = replace(completion, finish_reason="unsplit")

    def text(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    parts = text(ids).split(marker)
    if len(parts) != 2:
        return whole
    start = bisect_left(range(len(ids) + 1), True, key=lambda end: marker in text(ids[:end]))
    while start < len(ids) and not text(ids[start : start + 1]).strip():
        start += 1
    answer = str(tokenizer.decode(ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if not answer.strip() or text(ids[start:]).strip() != parts[1].strip():
        return whole
    return Completion(ids[start:], answer, completion.finish_reason)
