"""Layouts of records: where each keeps the query. A new layout is one new entry in `FORMATS`."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sami.errors import InputError, quoted
from sami.queries.query import strip

Record = Mapping[str, object]


@dataclass(frozen=True)
class Format:
    """A layout of records."""

    fields: tuple[str, ...]
    """The fields that it reads; empty where the user names one."""
    extract: Callable[[str, Record, str], tuple[object, str | None]]
    """(place, record, field) to the record's id and its query; None where a transcript opens with no human turn."""


def _named_field(place: str, record: Record, field: str) -> tuple[object, str | None]:
    value = record[field]
    if isinstance(value, list):
        return record.get("id"), _only_user_turn(place, field, value)
    return record.get("id"), text_of(place, field, value)


def _only_user_turn(place: str, field: str, messages: list[object]) -> str:
    """The user turn of a conversation that has one, as `messages` and `prompt` columns of TRL have them.

    An answer after it is the data set's own and not used.
    """
    where = f"{place} has in its field {field!r}"
    roles: list[str] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise InputError(
                f"{where} a list that is not a conversation: {quoted(messages)}. Queries are text, or lists of "
                "messages with `role` and `content`."
            )
        roles.append(message["role"])
    if "system" in roles or "developer" in roles:
        raise InputError(
            f"{where} a conversation with a system turn of its own, and all queries share one. Remove that turn, and "
            "set `prompt.system` in the recipe."
        )
    if roles not in (["user"], ["user", "assistant"]):
        raise InputError(
            f"{where} a conversation of the turns {quoted(roles)}. A query is one user turn, with at most an answer "
            "after it. Shorten the conversation."
        )
    return _content(place, field, messages[0])


def _content(place: str, field: str, message: object) -> str:
    content = message["content"] if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return text_of(place, f"{field}[0].content", content)
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    if None in texts:
        raise InputError(f"{place} has content that is not text in its field {field!r}: {quoted(content)}. Remove it.")
    return text_of(place, f"{field}[0].content", "\n".join(map(str, texts)))


# A turn ends where the next one starts, as in "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: …".
_FIRST_HUMAN_TURN = re.compile(r"\s*Human:(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def _first_human_turn(place: str, record: Record, field: str) -> tuple[object, str | None]:
    """The turn that `chosen` opens with, or else `rejected`, since both answer the same; None where neither does."""
    for name in ("chosen", "rejected"):
        if turn := _FIRST_HUMAN_TURN.match(text_of(place, name, record[name])):
            return record.get("id"), strip(turn[1])
    return None, None


def _reddit_post(place: str, record: Record, field: str) -> tuple[object, str | None]:
    """The post that was summarized; records of news articles have none and count as empty."""
    info = record["info"]
    if not isinstance(info, dict) or "post" not in info:
        raise InputError(
            f"{place} has no `post` in its field 'info': {quoted(info)}. Format tldr reads records of "
            "summarize_from_feedback; for others use format text with the `field` of the query."
        )
    return info.get("id"), text_of(place, "info.post", info["post"])


def text_of(place: str, field: str, value: object) -> str:
    """A field's text, stripped; "" for a missing value, as nullable columns and pandas have them.

    Raises:
        InputError: the value is not text.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    try:
        text = value.decode() if isinstance(value, bytes) else value  # some writers of Parquet store text as bytes
        if not isinstance(text, str):
            raise InputError(
                f"{place} has a value of type {type(value).__name__} in the field {field!r}: {quoted(value)}. Queries "
                "are text. Name another field, or convert the values."
            )
        text.encode()
    except UnicodeError as error:
        broken = "half a surrogate pair" if isinstance(error, UnicodeEncodeError) else "bytes that are not UTF-8"
        raise InputError(
            f"{place} has {broken} in the field {field!r}, which no tokenizer can read. Repair or remove the record."
        ) from None
    return strip(text)


FORMATS = {
    "text": Format((), _named_field),
    "hh": Format(("chosen", "rejected"), _first_human_turn),
    "tldr": Format(("info",), _reddit_post),
}
