"""Means with percentile bootstrap intervals over queries.

Values of one query are not independent, so whole queries are drawn with replacement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval and the number of values; all None if there are no values."""

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
        values: one figure per item, such as a bound in nats or a 0/1 verdict.
        queries: the query of each item, which is the unit of resampling.
        samples: number of bootstrap resamples.
        seed: seed of the resampling.
    """
    if len(values) == 0:
        return Estimate(None, None, None, 0)
    _, cluster = np.unique(np.asarray(queries), return_inverse=True)
    data = np.asarray(values, dtype=np.float64)
    sums = np.bincount(cluster, weights=data)
    counts = np.bincount(cluster).astype(np.float64)
    k = len(counts)
    draws = resamples(k, samples=samples, seed=seed)
    low, high = percentile_interval((draws @ sums) / (draws @ counts))
    return Estimate(float(data.mean()), low, high, len(data))


def resamples(clusters: int, *, samples: int, seed: int) -> NDArray[np.int64]:
    """[samples, clusters]: how often each cluster is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=samples)


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of a figure over resamples, without the resamples in which it is undefined (NaN)."""
    tail = (1 - CONFIDENCE) / 2 * 100
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)
