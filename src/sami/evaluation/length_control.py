"""Win rates at equal length: logistic regression on the length difference, as in AlpacaEval 2.

    P(candidate wins) = sigmoid(a + b tanh(Δ / sd(Δ))),  Δ = characters of the candidate - of the baseline

The length-controlled rate is sigmoid(a), the prediction at Δ = 0. The covariate is not centered: otherwise the rate
would be the prediction at the mean length difference. Scores between 0 and 1 are soft targets. AlpacaEval's term for
the difficulty of an instruction is left out, since it is only known for that benchmark's own instructions
(Dubois et al. 2024, arXiv 2404.04475).

Shapes: S resamples, K queries, N distinct (policy, query, length difference), P policies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sami.evaluation.bootstrap import percentile_interval, resamples

Floats = NDArray[np.float64]

# A penalty of RIDGE / 2 x (a^2 + b^2) on the whole log-likelihood. Without it, a policy that always wins, or wins
# exactly when it is longer, has no finite fit. With 20 queries it moves a rate by less than 0.01 points.
RIDGE = 1e-4
MAX_STEP = 2.0  # of a coefficient in one Newton step, so that a start far from the solution does not overshoot
MAX_STEPS = 100
TOLERANCE = 1e-6
CHUNK = 2_000_000  # resamples x rows in memory at a time


@dataclass(frozen=True)
class Judged:
    """The scored judgements of one policy, one entry each."""

    queries: Sequence[str]
    scores: Sequence[float]
    """0 to 1."""
    chars: Sequence[int]
    """Length of the candidate minus length of the baseline, in characters."""


def length_controlled_rates(
    policies: Sequence[Judged], *, samples: int, seed: int
) -> list[tuple[float, float, float] | None]:
    """(rate, low, high) of each policy in percent, with one slope and one sd(Δ) for all of them.

    Queries are resampled for all policies together; sd(Δ) stays that of the sample.

    Args:
        policies: each with at least one judgement; a list of one has a slope of its own.
        samples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        None for every policy if quality and length cannot be separated: all length differences are the same and not
        0, or there is only one query.
    """
    policy = np.repeat(np.arange(len(policies)), [len(p.scores) for p in policies])
    chars = np.concatenate([np.asarray(p.chars, dtype=np.float64) for p in policies])
    scores = np.concatenate([np.asarray(p.scores, dtype=np.float64) for p in policies])
    names, query = np.unique(np.concatenate([np.asarray(p.queries) for p in policies]), return_inverse=True)
    if len(names) == 1:
        return [None] * len(policies)
    if np.ptp(chars) > 0:
        covariate = np.tanh(chars / chars.std(ddof=1))
    elif chars[0] == 0:
        covariate = np.zeros_like(chars)
    else:
        return [None] * len(policies)

    # Both orders of a pair share their lengths: they are one row with a count of two.
    rows, row = np.unique(np.stack([policy, query, covariate]), axis=1, return_inverse=True)
    data = _Rows(
        policy=np.eye(len(policies))[rows[0].astype(int)],
        query=rows[1].astype(int),
        covariate=rows[2],
        counts=np.bincount(row).astype(np.float64),
        wins=np.bincount(row, weights=scores).astype(np.float64),
    )
    start = _fit(data, np.ones((1, len(names))), np.zeros((1, len(policies) + 1)))
    draws = resamples(len(names), samples=samples, seed=seed)
    size = max(1, CHUNK // len(data.query))
    fits = [_fit(data, draws[i : i + size], start) for i in range(0, samples, size)]
    points, resampled = _percent(start[:, :-1])[0], _percent(np.concatenate(fits)[:, :-1])
    return [(float(rate), *percentile_interval(values)) for rate, values in zip(points, resampled.T, strict=True)]


@dataclass(frozen=True)
class _Rows:
    policy: Floats  # (N, P) one-hot
    query: NDArray[np.int64]  # (N,)
    covariate: Floats  # (N,)
    counts: Floats  # (N,) judgements
    wins: Floats  # (N,) sum of their scores


def _fit(rows: _Rows, draws_SK: NDArray, start: Floats) -> Floats:
    """[S, P + 1]: each policy's intercept, then the slope, by Newton's method in all resamples at once.

    A policy without a judgement in a resample is NaN there.
    """
    weights_SN = draws_SK[:, rows.query]
    counts_SN, wins_SN = weights_SN * rows.counts, weights_SN * rows.wins
    with_x = rows.policy * rows.covariate[:, None]
    gradient_of = np.column_stack([rows.policy, rows.covariate])  # (N, P + 1)
    hessian_of = np.column_stack([rows.policy, with_x, rows.covariate**2])  # (N, 2 P + 1)
    p = rows.policy.shape[1]
    fit = np.repeat(start, len(draws_SK) // len(start), axis=0)
    for _ in range(MAX_STEPS):
        probability_SN = 1 / (1 + np.exp(-fit @ gradient_of.T))
        expected_SN = counts_SN * probability_SN
        gradient = (wins_SN - expected_SN) @ gradient_of - RIDGE * fit
        hessian = (expected_SN * (1 - probability_SN)) @ hessian_of
        # Policies meet only in the slope, so the intercepts are eliminated and nothing is inverted.
        own, cross, slope = hessian[:, :p] + RIDGE, hessian[:, p : 2 * p], hessian[:, 2 * p] + RIDGE
        step_slope = (gradient[:, p] - (cross * gradient[:, :p] / own).sum(1)) / (slope - (cross**2 / own).sum(1))
        step_own = (gradient[:, :p] - cross * step_slope[:, None]) / own
        step = np.column_stack([step_own, step_slope]).clip(-MAX_STEP, MAX_STEP)
        fit = fit + step
        if np.abs(step).max() < TOLERANCE:
            break
    fit[:, :p][counts_SN @ rows.policy == 0] = np.nan
    return fit


def _percent(logits: Floats) -> Floats:
    return 100 / (1 + np.exp(-logits))
