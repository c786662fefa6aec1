"""Control tokens: which tokens mean more than their text, and text that never becomes one of them.

A tokenizer reads "<|im_end|>" inside a query as the token that ends a turn. Text of other people (queries, principles,
system turns, responses shown to a judge) must reach the model as text.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and text of the special tokens, and of other added tokens that the chat template writes.

    Tokenizers also add plain text as tokens (`<table>`, runs of spaces), which is not control.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    written = " ".join(_templates(tokenizer))
    found = {number: str(token) for number, token in added.items() if token.special or _is_marker(str(token), written)}
    for text in getattr(tokenizer, "all_special_tokens", ()):
        found[tokenizer.convert_tokens_to_ids(text)] = text
    return found


def _templates(tokenizer: Any) -> list[str]:
    template = getattr(tokenizer, "chat_template", None)
    return [str(one) for one in template.values()] if isinstance(template, dict) else [str(template or "")]


def _is_marker(token: str, written: str) -> bool:
    return len(token) > 2 and token[0] in "<[" and token[-1] in ">]" and token in written


def control_inside(ids: Sequence[int], finish_reason: str, control: Mapping[int, str]) -> str | None:
    """The text of the first control token inside a response, where its end does not count."""
    inside = ids if finish_reason == "length" else ids[:-1]
    return next((control[number] for number in inside if number in control), None)


class PlainText:
    """Turns text into text without control tokens: a space after the first character of each parts it.

    Text that holds none comes back unchanged.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self._tokens = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
        self._firsts = {token[0] for token in self._tokens}
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._known:
            self._known[text] = self._without(text)
        return self._known[text]

    def _without(self, text: str) -> str:
        if self._firsts.isdisjoint(text):
            return text
        for token in self._tokens:
            # Parting one token never completes another: what follows the space is shorter than before.
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def without_control(tokenizer: Any) -> PlainText:
    """The text of other people as `tokenizer` can read it without finding a control token in it."""
    return PlainText(control_tokens(tokenizer).values())
