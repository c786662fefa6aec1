"""How the constitutions of one contrast are drawn from the principles.

    SCHEMES["opposite"].sample(principles, constitutions=2, k=1, rng=random.Random(0))

A new scheme is a class here and a line in `SCHEMES`; `sampling.scheme` in a recipe names it.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from sami.errors import InputError
from sami.principles import Constitution, Principle


class Scheme(ABC):
    """Draws C distinct constitutions of k principles each."""

    @abstractmethod
    def sample(
        self, principles: Sequence[Principle], constitutions: int, k: int, rng: random.Random
    ) -> list[Constitution]:
        """The constitutions of one contrast; there are at least k principles, and `count` allows that many."""

    @abstractmethod
    def count(self, principles: int, k: int) -> int:
        """How many distinct constitutions a contrast can have if there are at least k principles."""

    def refusal(self, constitutions: int, k: int) -> str | None:
        """Why the scheme cannot give C constitutions of k principles, whatever the principles; None if it can."""
        return None

    def turns(self, principles: Sequence[Principle], k: int, rng: random.Random) -> Iterator[list[Principle]]:
        """The principles to draw each contrast from, without end.

        They come k at a time from a shuffled deck, so that all get their share.
        """
        while True:
            deck = rng.sample(list(principles), len(principles))
            yield from (deck[start : start + k] for start in range(0, len(deck) - k + 1, k))


class Opposite(Scheme):
    """k principles with random polarities against their exact opposite."""

    def sample(
        self, principles: Sequence[Principle], constitutions: int, k: int, rng: random.Random
    ) -> list[Constitution]:
        chosen = rng.sample(list(principles), k)
        polarities = [rng.random() < 0.5 for _ in chosen]
        return [
            Constitution(tuple(zip(chosen, polarities, strict=True))),
            Constitution(tuple((p, not positive) for p, positive in zip(chosen, polarities, strict=True))),
        ]

    def count(self, principles: int, k: int) -> int:
        return 2

    def refusal(self, constitutions: int, k: int) -> str | None:
        if constitutions == 2:
            return None
        return (
            f"scheme 'opposite' contrasts exactly 2 constitutions, and constitutions is {constitutions}; use scheme "
            f"'independent' or 'positive_vs_negative'"
        )


class PositiveVsNegative(Scheme):
    """k principles as they are against lists of the same principles with at least one antithesis."""

    def sample(
        self, principles: Sequence[Principle], constitutions: int, k: int, rng: random.Random
    ) -> list[Constitution]:
        chosen = rng.sample(list(principles), k)
        # The bits of a number say which principles are turned into their antitheses: to list all would take 2**k.
        turned = [0, *rng.sample(range(1, 2**k), constitutions - 1)]
        drawn = [tuple(not number >> (k - 1 - place) & 1 for place in range(k)) for number in turned]
        return [Constitution(tuple(zip(chosen, polarities, strict=True))) for polarities in drawn]

    def count(self, principles: int, k: int) -> int:
        return int(2**k)

    def refusal(self, constitutions: int, k: int) -> str | None:
        if constitutions <= 2**k:
            return None
        return (
            f"{k} principles allow {2**k} distinct constitutions, and constitutions is {constitutions}; raise "
            f"principles_per_constitution or lower constitutions"
        )


class Independent(Scheme):
    """Every constitution draws its own k principles and polarities; no two are alike."""

    def sample(
        self, principles: Sequence[Principle], constitutions: int, k: int, rng: random.Random
    ) -> list[Constitution]:
        drawn: dict[frozenset[tuple[str, bool]], Constitution] = {}
        while len(drawn) < constitutions:
            candidate = Constitution(tuple((p, rng.random() < 0.5) for p in rng.sample(list(principles), k)))
            drawn.setdefault(candidate.key, candidate)
        return list(drawn.values())

    def count(self, principles: int, k: int) -> int:
        return int(math.comb(principles, k) * 2**k)

    def turns(self, principles: Sequence[Principle], k: int, rng: random.Random) -> Iterator[list[Principle]]:
        """All principles each time."""
        while True:
            yield rng.sample(list(principles), len(principles))


SCHEMES: dict[str, Scheme] = {
    "opposite": Opposite(),
    "positive_vs_negative": PositiveVsNegative(),
    "independent": Independent(),
}


def sample_constitutions(
    principles: Sequence[Principle],
    *,
    scheme: str,
    constitutions: int,
    principles_per_constitution: int,
    rng: random.Random,
) -> list[Constitution]:
    """C distinct constitutions for one contrast.

    Args:
        scheme: a key of `SCHEMES`.

    Raises:
        InputError: the principles do not allow that many distinct constitutions.
    """
    require_enough(principles, scheme, constitutions, principles_per_constitution)
    return SCHEMES[scheme].sample(principles, constitutions, principles_per_constitution, rng)


def require_enough(principles: Sequence[Principle], scheme: str, constitutions: int, k: int) -> None:
    """Refuse principles that cannot give C distinct constitutions of k principles.

    Raises:
        InputError: with the number that is possible.
    """
    n = len(principles)
    if k > n:
        raise InputError(
            f"principles_per_constitution is {k}, but only {n} principles are available for it. "
            f"Lower it, or add principles that are not held out."
        )
    possible = SCHEMES[scheme].count(n, k)
    if constitutions > possible:
        raise InputError(
            f"You asked for {constitutions} constitutions, but {n} principles taken {k} at a time with scheme "
            f"{scheme!r} allow {possible} distinct ones. Lower sampling.constitutions, or raise "
            f"principles_per_constitution."
        )
