"""Layouts of records: where each keeps the query. A new layout is one new entry in `FORMATS`."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sami.errors import InputError, quoted
from sami.queries.conversation import Asked, Conversation, Message, as_asked
from sami.queries.query import strip

Record = Mapping[str, object]


@dataclass(frozen=True)
class Format:
    """A layout of records."""

    fields: tuple[str, ...]
    """The fields that it reads; empty where the user names one."""
    extract: Callable[[str, Record, str], tuple[object, Asked | None]]
    """(place, record, field) to the record's id and its query; None where a transcript opens with no human turn."""


def _named_field(place: str, record: Record, field: str) -> tuple[object, Asked | None]:
    value = record[field]
    if isinstance(value, list):
        return record.get("id"), conversation_of(place, field, value)
    return record.get("id"), text_of(place, field, value)


def conversation_of(place: str, field: str, messages: Sequence[object]) -> Asked:
    """What is asked by messages as `messages` and `prompt` columns of TRL have them.

    An answer after the last user turn is the data set's own and not used. What remains is plain text if it is a
    single user turn, and "" if it has no turn or an empty one. An empty system turn is left out.

    Raises:
        InputError: not a list of messages, content that is not text, or turns that are not a conversation to continue.
    """
    turns = [_turn(place, f"{field}[{number}]", message) for number, message in enumerate(messages)]
    _require_roles(place, field, [turn["role"] for turn in turns])
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if turns and turns[0] == {"role": "system", "content": ""}:
        turns.pop(0)
    return as_asked(Conversation.of(turns)) if turns and all(turn["content"] for turn in turns) else ""


_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _turn(place: str, field: str, message: object) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        raise InputError(
            f"{place} has in {field!r} a value that is not a message: {quoted(message)}. Queries are text, or lists of "
            "messages with `role` and `content`."
        )
    role = message["role"]
    if role in ("tool", "function") or message.get("tool_calls"):
        raise InputError(
            f"{place} has in {field!r} a call of a tool or its result: {quoted(dict(message))}. Queries are "
            "conversations of text alone. Remove the record, or these messages."
        )
    if role not in _ROLES:
        raise InputError(
            f"{place} has in {field!r} the role {quoted(role)}. The turns of a conversation are those of system, user "
            "and assistant. Rename the role, or remove the record."
        )
    return {"role": _ROLES[role], "content": _content(place, f"{field}.content", message["content"])}


def _require_roles(place: str, field: str, roles: Sequence[str]) -> None:
    if "system" in roles[1:]:
        raise InputError(
            f"{place} has in its field {field!r} a system turn after other turns: {quoted(list(roles))}. Chat "
            "templates take one system turn, which comes first. Move it there, or remove it."
        )
    if roles and "user" not in roles:
        raise InputError(
            f"{place} has in its field {field!r} a conversation without a user turn, so there is nothing to answer: "
            f"{quoted(list(roles))}. Add one, or remove the record."
        )


def _content(place: str, field: str, content: object) -> str:
    if not isinstance(content, list):
        return text_of(place, field, content)
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    if None in texts:
        raise InputError(f"{place} has content that is not text in the field {field!r}: {quoted(content)}. Remove it.")
    return text_of(place, field, "\n".join(map(str, texts)))


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
