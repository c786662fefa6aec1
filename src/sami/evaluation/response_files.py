"""Policies from files of responses, one `{"id", "constitution", "response"}` per line.

Constitutions match up to white space and Unicode normalization, with each other and with the principles they are
made of.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sami.console import say
from sami.errors import InputError, quoted
from sami.evaluation.json_lines import read_objects
from sami.evaluation.pairs import Item, Policy, Response
from sami.principles import Principle
from sami.text.words import token_count

FIELDS = ("constitution", "response")
NEEDED = "Each line needs id, constitution and response."
_ENTRY = re.compile(r"^[ \t]*\d+[.)][ \t]+", re.MULTILINE)  # the number before each principle of a constitution


def from_file(
    path: Path, queries: Mapping[str, str] | None, principles: Sequence[Principle] = (), *, dropped: str = ""
) -> Policy:
    """A policy with the name of its file of responses.

    Args:
        path: JSONL; an id may be a whole number.
        queries: query id to text; None if the ids are those of a run, see `answering`.
        principles: principles that constitutions are made of. An item whose constitution contains anything else has
            `principles` None.
        dropped: why the file of queries has records that are not in `queries`, as in "duplicates 1"; for messages.

    Raises:
        InputError: the file or a line cannot be read, an id is not the id of a query, or an item occurs twice.
    """
    meanings = {_matched(p.text(positive)): (p, positive) for p in principles for positive in (True, False)}
    some_held_out = any(p.held_out for p in principles)  # otherwise it is not known what was trained on
    responses: dict[Item, Response] = {}
    lines: dict[tuple[str, str], int] = {}
    for number, record in read_objects(path, "responses"):
        place = f"Line {number} of {path}"
        query_id, constitution, response = _id(place, record), *(_text(place, record, name) for name in FIELDS)
        if queries is not None and query_id not in queries:
            raise InputError(_unknown(place, query_id, queries, dropped))
        known = _principles(constitution, meanings)
        item = Item(
            query_id=query_id,
            query=queries[query_id] if queries is not None else "",
            constitution_id=hashlib.sha256(constitution.encode()).hexdigest()[:12],
            constitution=constitution,
            principles=tuple((p.id, positive) for p, positive in known) or None,
            learned=not any(p.held_out for p, _ in known) if known and some_held_out else None,
        )
        if (first := lines.setdefault(_key(item), number)) != number:
            raise InputError(
                f"Lines {first} and {number} of {path} both answer the query {quoted(query_id)} under the same "
                f"constitution. Keep one of them."
            )
        responses[item] = Response(response, token_count(response))
    if not responses:
        raise InputError(f"{path} contains no responses. {NEEDED}")
    return Policy(path.stem, responses)


def aligned(policies: Sequence[Policy]) -> list[Policy]:
    """The same policies, with the first one's items wherever another one's are the same up to white space."""
    first, *others = policies
    items = {_key(item): item for item in first.responses}
    return [
        first,
        *(
            replace(policy, responses={items.get(_key(item), item): r for item, r in policy.responses.items()})
            for policy in others
        ),
    ]


def answering(policy: Policy, items: Iterable[Item], name: str) -> Policy:
    """The responses of a file to a run's items, found by the query's id and the constitution's text.

    Responses to anything else are left out, which is announced.

    Raises:
        InputError: the file lacks one of the items.
    """
    by_text = {_key(item): response for item, response in policy.responses.items()}
    wanted = {item: _key(item) for item in items}
    if missing := [item for item, key in wanted.items() if key not in by_text]:
        raise InputError(
            f"The responses of the baseline {name} lack {len(missing)} of the run's {len(wanted)} pairs of query and "
            f"constitution, first the query {quoted(missing[0].query_id)} under {quoted(missing[0].constitution)}. "
            f"Add them to the file."
        )
    if others := len(by_text.keys() - set(wanted.values())):
        say(f"{name}: {others} of {len(by_text)} responses answer nothing that this run evaluates, and are left out.")
    return Policy(name, {item: by_text[key] for item, key in wanted.items()})


def first_queries(policy: Policy, count: int) -> Policy:
    """The responses to the first `count` queries, in the file's order."""
    kept = set(list(dict.fromkeys(item.query_id for item in policy.responses))[:count])
    return replace(policy, responses={item: r for item, r in policy.responses.items() if item.query_id in kept})


def check_matches(items: Sequence[Item], principles: Path, limit: float) -> None:
    """Announce items whose constitution is not made of the principles, and refuse them above a share.

    Judges that need principles skip such items, so a win rate would rest on the others without saying so.

    Args:
        principles: the file of principles, for messages.
        limit: the largest share that is accepted, in percent.

    Raises:
        InputError: the share is above the limit.
    """
    unmatched = [item for item in items if item.principles is None]
    if not unmatched:
        return
    share = 100 * len(unmatched) / len(items)
    words = (
        f"{len(unmatched)} of {len(items)} responses ({share:.1f} %) have a constitution that is not made of the "
        f"principles in {principles}. The first one is {quoted(unmatched[0].constitution)}, for the query "
        f"{quoted(unmatched[0].query_id)}"
    )
    if share > limit:
        raise InputError(
            f"{words}; evaluation.unscored_limit is {limit:g} %. Correct the constitutions or the principles, or leave "
            f"out --principles to compare without them."
        )
    say(f"warning: {words}. Judges that need principles leave them out.")


def _id(place: str, record: dict[str, Any]) -> str:
    value = record.get("id")
    if type(value) is int or (isinstance(value, float) and value.is_integer()):  # pandas makes floats of integers
        return str(int(value))
    if isinstance(value, str):
        return value
    raise InputError(f"{place} has {quoted(value)} in 'id', which must be a text or a whole number. {NEEDED}")


def _text(place: str, record: dict[str, Any], name: str) -> str:
    if not isinstance(value := record.get(name), str):
        has = f"has {quoted(value)} instead of a text" if name in record else "has no text"
        raise InputError(f"{place} {has} in {name!r}. {NEEDED}")
    return value


def _unknown(place: str, query_id: str, queries: Mapping[str, str], dropped: str) -> str:
    found = f"{place} answers the query {quoted(query_id)}, which is not among the {len(queries)} queries given"
    if dropped:
        return (
            f"{found}. Some records of their file were not used when it was read ({dropped}): if this query is one of "
            f"them, correct it there, or remove its responses."
        )
    return f"{found}. Correct the id, or add the query."


def _principles(constitution: str, meanings: Mapping[str, tuple[Principle, bool]]) -> Sequence[tuple[Principle, bool]]:
    """The principles that a constitution is made of; none if a part of it is anything else.

    A constitution is one principle, a numbered list of principles, or one principle per line.
    """
    for parts in _partings(constitution):
        keys = [key for part in parts if (key := _matched(part))]
        if keys and all(key in meanings for key in keys):
            return [meanings[key] for key in keys]
    return []


def _partings(constitution: str) -> Iterator[list[str]]:
    yield [constitution]
    yield _ENTRY.split(constitution)
    yield constitution.splitlines()


def _key(item: Item) -> tuple[str, str]:
    return item.query_id, _matched(item.constitution)


def _matched(text: str) -> str:
    """The form in which two texts are the same: compatible characters alike, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
