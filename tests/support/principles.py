"""Four principles, and constitutions drawn from them."""

import random

from sami.principles import Constitution, Principle
from sami.schemes import sample_constitutions


def principle(name: str, **more) -> Principle:
    return Principle(id=name, definition=f"Be {name}.", antithesis=f"Never be {name}.", **more)


FOUR = [principle(name) for name in ("brief", "kind", "formal", "curious")]


def sample(seed: int = 0, scheme: str = "opposite", c: int = 2, k: int = 1, principles=FOUR) -> list[Constitution]:
    return sample_constitutions(
        principles, scheme=scheme, constitutions=c, principles_per_constitution=k, rng=random.Random(seed)
    )


def polarities(constitution: Constitution) -> list[bool]:
    return [positive for _, positive in constitution.principles]


def ids(constitution: Constitution) -> list[str]:
    return [p.id for p, _ in constitution.principles]
