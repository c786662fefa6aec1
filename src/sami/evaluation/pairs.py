"""Responses of policies to the same held-out queries and constitutions, paired for a judge."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sami.contrasts import Contrast
from sami.errors import InputError, quoted
from sami.text.words import word_count


@dataclass(frozen=True)
class Item:
    """A held-out query under one constitution."""

    query_id: str
    query: str
    constitution_id: str
    constitution: str
    principles: tuple[tuple[str, bool], ...] | None = None
    """(id, positive) of the constitution's principles; positive is False for an antithesis. None: not known."""
    learned: bool | None = None
    """Whether all its principles were trained on."""


@dataclass(frozen=True)
class Response:
    text: str
    tokens: int
    """Tokens of the policy's tokenizer; in files of responses, words and punctuation marks."""


@dataclass(frozen=True)
class Policy:
    """The responses of one policy."""

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
        InputError: a policy is compared with itself, or one of the two has an item that the other one lacks.
    """
    if candidate.name == baseline.name:
        raise InputError(f"{quoted(candidate.name)} cannot be compared with itself. Name another baseline.")
    for one, other in ((candidate, baseline), (baseline, candidate)):
        if missing := [item for item in one.responses if item not in other.responses]:
            first = missing[0]
            raise InputError(
                f"{one.name} and {other.name} cannot be compared: {other.name} has no response to "
                f"{len(missing)} of the {len(one.responses)} pairs of query and constitution that {one.name} "
                f"answered, first to the query {quoted(first.query_id)} under {quoted(first.constitution)}. Both must "
                f"answer the same queries under the same constitutions."
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
        held_out: ids of the principles that are not trained on.
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
