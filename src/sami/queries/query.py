"""The query, when two of them are the same, and splits that keep evaluation out of training."""

import hashlib
import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from sami.errors import InputError
from sami.text.words import caseless

# Characters that nobody sees: joiners, zero-width spaces, direction marks, soft hyphens, variation selectors, fillers.
_UNSEEN = regex.compile(r"[\p{Default_Ignorable_Code_Point}\p{Cf}]")
# Those that stay inside a text, where they can have a purpose, but not at its ends.
_UNSEEN_AT_ENDS = "\u00ad\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff"


@dataclass(frozen=True)
class Query:
    """What a model is asked: one user turn.

    Code that only needs something to show, compare or hash uses `text`, so that a query with earlier turns can become
    another field.
    """

    id: str
    """The record's own id where it has a usable one, else a hash of the text up to case, width and white space."""
    text: str
    """The user turn to answer."""


@dataclass(frozen=True)
class Splits:
    """Disjoint sets of queries."""

    train: tuple[tuple[Query, ...], tuple[Query, ...]]
    """The two halves, A and B."""
    evaluation: tuple[Query, ...]

    def for_iteration(self, iteration: int) -> tuple[Query, ...]:
        """1 -> A, 2 -> B, 3 -> A, …: a model never generates for the queries it was just trained on."""
        if iteration < 1:
            raise ValueError(f"Iterations count from 1; got {iteration}.")
        return self.train[(iteration - 1) % 2]


def strip(text: str) -> str:
    """The text without white space and unseen characters at its ends."""
    before = None
    while before != text:
        before, text = text, text.strip().strip(_UNSEEN_AT_ENDS)
    return text


def normalize(text: str) -> str:
    """The form in which two queries are the same: NFKC, without case, unseen characters and repeated white space."""
    # Folding case can leave NFKC, so it is applied again: normalize(normalize(x)) == normalize(x).
    seen = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    folded = unicodedata.normalize("NFKC", caseless(seen))
    return " ".join(folded.split())


def text_hash(text: str) -> str:
    """SHA-256 of a text up to case, width and white space, in hex.

    Unseen characters count here, because folders of earlier runs refer to queries by this hash.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return hashlib.sha256(" ".join(folded.split()).encode()).hexdigest()


def hash_queries(groups: Sequence[Sequence[Query]]) -> str:
    """SHA-256 of the queries' texts in their order and groups, in hex."""
    return hashlib.sha256(json.dumps([[q.text for q in group] for group in groups]).encode()).hexdigest()


def split_queries(queries: Sequence[Query], *, train: int, evaluation: int, seed: int) -> Splits:
    """Shuffle with the seed and take disjoint sets: first `evaluation` queries, then `train` more.

    The evaluation set depends on (queries, evaluation, seed) alone, and a larger `train` only adds queries to
    each half.

    Raises:
        InputError: fewer than 2 training or 1 evaluation queries, more than there are, or queries that repeat
            (one could then be both trained and evaluated on).
    """
    asked = f"You asked for {train} training and {evaluation} evaluation queries"
    if train < 2 or evaluation < 1:
        raise InputError(
            f"{asked}. Training needs at least 2, one for each half, and evaluation at least 1. Raise the number that "
            "is too small."
        )
    if train + evaluation > len(queries):
        raise InputError(
            f"{asked}, {train + evaluation} in all, but only {len(queries)} are usable. Ask for fewer, or "
            "give more queries."
        )
    if repeats := len(queries) - len({normalize(query.text) for query in queries}):
        raise InputError(
            f"{repeats} of the {len(queries)} queries repeat an earlier one up to case, white space and unseen "
            "characters, so that a query could be both trained and evaluated on. Drop them first, as load_queries does."
        )
    shuffled = random.Random(seed).sample(queries, len(queries))
    # Every other one, so that a larger `train` leaves the queries of each half where they were.
    half_a, half_b = (tuple(shuffled[evaluation + half : evaluation + train : 2]) for half in (0, 1))
    return Splits(train=(half_a, half_b), evaluation=tuple(shuffled[:evaluation]))
