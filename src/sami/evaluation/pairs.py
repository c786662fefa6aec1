"""Responses of policies to the same held-out queries and constitutions, paired for a judge."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sami.contrasts import Contrast
from sami.errors import InputError, one_line
from sami.principles import Principle
from sami.text.words import token_count, word_count

_NUMBERED = re.compile(r"\d+\.\s*")


@dataclass(frozen=True)
class Item:
    """A held-out query under one constitution."""

    query_id: str
    query: str
    constitution_id: str
    constitution: str
    principles: tuple[tuple[str, bool], ...] | None = None
    """(id, is it the definition) of the constitution's principles; None where they are not known."""
    learned: bool | None = None
    """Whether all its principles were trained on."""


@dataclass(frozen=True)
class Response:
    text: str
    tokens: int
    """Ids of the policy's tokenizer; in files of responses, words and punctuation marks."""


@dataclass(frozen=True)
class Policy:
    """What one policy answered."""

    name: str
    responses: Mapping[Item, Response]

    @property
    def words(self) -> float:
        """Mean length in words."""
        return sum(word_count(r.text) for r in self.responses.values()) / len(self.responses)


@dataclass(frozen=True)
class Pair:
    """A candidate's and a baseline's response to one item."""

    item: Item
    candidate: str
    baseline: str
    candidate_response: Response
    baseline_response: Response


def pair_up(candidate: Policy, baseline: Policy) -> list[Pair]:
    """One pair for each item, in the candidate's order.

    Raises:
        InputError: one of the two has an item that the other lacks.
    """
    for one, other in ((candidate, baseline), (baseline, candidate)):
        if missing := [item for item in one.responses if item not in other.responses]:
            first = missing[0]
            raise InputError(
                f"{one.name} and {other.name} cannot be compared: {other.name} has no response to "
                f"{len(missing)} of the {len(one.responses)} pairs of query and constitution that {one.name} "
                f"answered, first to query {first.query_id!r} under {first.constitution[:60]!r}. Both must answer "
                f"the same queries under the same constitutions."
            )
    return [
        Pair(item, candidate.name, baseline.name, response, baseline.responses[item])
        for item, response in candidate.responses.items()
    ]


def from_contrasts(
    name: str, contrasts: Iterable[Contrast], query_ids: Mapping[str, str], held_out: Iterable[str]
) -> Policy:
    """A policy of a run, from its held-out responses.

    Args:
        query_ids: query text to id.
        held_out: ids of principles that are not trained on.
    """
    unseen = set(held_out)
    responses = {}
    for contrast in contrasts:
        names = {name for constitution in contrast.principles for name, _ in constitution}
        for number, constitution in enumerate(contrast.constitutions):
            item = Item(
                query_id=query_ids[contrast.query],
                query=contrast.query,
                constitution_id=f"{contrast.id}/{number}",
                constitution=constitution,
                principles=tuple((name, positive) for name, positive in contrast.principles[number]),
                learned=not names & unseen,
            )
            responses[item] = Response(contrast.responses[number], len(contrast.response_ids[number]))
    return Policy(name, responses)


def from_file(path: Path, queries: Mapping[str, str] | None, principles: Sequence[Principle] = ()) -> Policy:
    """A policy from a file of responses, one `{"id", "constitution", "response"}` a line; named as the file.

    Args:
        queries: query id to text; None where the ids are those of a run, see `answering`.
        principles: those that constitutions are made of, found by their texts; others stay unknown.

    Raises:
        InputError: the file or a line cannot be read, an id is no query, or a response comes twice.
    """
    meanings = {p.text(positive): (p, positive) for p in principles for positive in (True, False)}
    some_held_out = any(p.held_out for p in principles)  # else nothing is known of what was trained on
    responses: dict[Item, Response] = {}
    for place, record in _records(path):
        if queries is not None and record["id"] not in queries:
            raise InputError(f"{place} answers the query {record['id']!r}, which is not among the queries given.")
        lines = [_NUMBERED.sub("", line, count=1) for line in record["constitution"].split("\n")]
        found = [meanings[line] for line in lines if line in meanings]
        known = found if len(found) == len(lines) else []
        item = Item(
            query_id=record["id"],
            query=queries[record["id"]] if queries is not None else "",
            constitution_id=hashlib.sha256(record["constitution"].encode()).hexdigest()[:12],
            constitution=record["constitution"],
            principles=tuple((p.id, positive) for p, positive in known) or None,
            learned=not any(p.held_out for p, _ in known) if known and some_held_out else None,
        )
        if item in responses:
            raise InputError(f"{place} answers {record['id']!r} under the same constitution a second time.")
        responses[item] = Response(record["response"], token_count(record["response"]))
    if not responses:
        raise InputError(f"{path} holds no responses. Each line needs id, constitution and response.")
    return Policy(path.stem, responses)


def answering(policy: Policy, items: Iterable[Item], name: str) -> Policy:
    """The responses of a file to a run's items, found by query id and the constitution's text.

    Raises:
        InputError: the file lacks one of the items.
    """
    by_text = {(item.query_id, item.constitution): response for item, response in policy.responses.items()}
    wanted = list(items)
    if missing := [item for item in wanted if (item.query_id, item.constitution) not in by_text]:
        raise InputError(
            f"The responses of the baseline {name} lack {len(missing)} of the run's {len(wanted)} pairs of query and "
            f"constitution, first query {missing[0].query_id!r} under {missing[0].constitution[:60]!r}."
        )
    return Policy(name, {item: by_text[item.query_id, item.constitution] for item in wanted})


def first_queries(policy: Policy, count: int) -> Policy:
    """The responses to the first `count` queries, in the file's order."""
    kept = set(list(dict.fromkeys(item.query_id for item in policy.responses))[:count])
    return replace(policy, responses={item: r for item, r in policy.responses.items() if item.query_id in kept})


def _records(path: Path) -> Iterable[tuple[str, dict[str, str]]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The responses {path} cannot be read: {one_line(error)}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place} is not valid JSON ({error}).") from None
        for field in ("id", "constitution", "response"):
            if not isinstance(record, dict) or not isinstance(record.get(field), str):
                raise InputError(f"{place} has no text in {field!r}. Each line needs id, constitution and response.")
        yield place, record
