"""Means with percentile bootstrap intervals, resampled by query.

Values that share a query are not independent, so whole queries are drawn with replacement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the number of values behind it; all None without values."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def above_zero(self) -> bool:
        return self.low is not None and self.low > 0


def mean_by_query(values: Sequence[float], queries: Sequence[str], *, samples: int, seed: int) -> Estimate:
    """Mean of `values`, with a percentile bootstrap clustered by query.

    Args:
        values: one figure for each item, such as a bound in nats or a 0/1 verdict.
        queries: the query of each item, the unit that is resampled.
        samples: bootstrap resamples.
        seed: of the resampling.
    """
    if len(values) == 0:
        return Estimate(None, None, None, 0)
    _, cluster = np.unique(np.asarray(queries), return_inverse=True)
    data = np.asarray(values, dtype=np.float64)
    sums = np.bincount(cluster, weights=data)
    counts = np.bincount(cluster).astype(np.float64)
    k = len(counts)
    draws = np.random.default_rng(seed).multinomial(k, np.full(k, 1 / k), size=samples)
    means = (draws @ sums) / (draws @ counts)
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(means, [tail, 100 - tail])
    return Estimate(float(data.mean()), float(low), float(high), len(data))
