"""Simulated evaluations in which the truth is known."""

from collections.abc import Sequence

import numpy as np

from sami.evaluation.verdicts import Order, Verdict


def verdict(
    query: str = "q1",
    score: float | None = 1.0,
    *,
    longer_by: int = 0,
    longer_by_tokens: int = 0,
    candidate: str = "iteration-1",
    judge: str = "judge",
    order: Order = "candidate_first",
    constitution: str | None = None,
    principles: Sequence[str] | None = None,
    learned: bool | None = None,
) -> Verdict:
    """The baseline's response has 1000 characters and 200 tokens."""
    return Verdict(
        query_id=query,
        candidate=candidate,
        baseline="base",
        judge=judge,
        order=order,
        score=score,
        candidate_chars=1000 + longer_by,
        baseline_chars=1000,
        candidate_tokens=200 + longer_by_tokens,
        baseline_tokens=200,
        raw="A",
        cost=None,
        constitution_id=constitution,
        principles=tuple((name, True) for name in principles) if principles is not None else None,
        learned=learned,
    )


def evaluation(
    rng: np.random.Generator, *, queries: int, quality: float = 0.0, length: float = 0.0, shift: float = 0.0
) -> list[Verdict]:
    """Verdicts in both orders, which agree more often than chance: P(win) = sigmoid(quality + length tanh(Δ / sd)).

    The length difference is normal with sd = 100 characters and mean = `shift` sd, so the true length-controlled
    win rate is sigmoid(quality).
    """
    deltas = np.rint(100 * rng.normal(shift, 1, queries)).astype(int)
    wins = 1 / (1 + np.exp(-quality - length * np.tanh(deltas / 100)))
    first = rng.random(queries) < wins
    second = np.where(rng.random(queries) < 0.7, first, rng.random(queries) < wins)
    return [
        verdict(f"q{i}", float(score), longer_by=int(delta), longer_by_tokens=int(np.rint(delta / 5)), order=order)
        for i, delta in enumerate(deltas)
        for order, score in (("candidate_first", first[i]), ("baseline_first", second[i]))
    ]
