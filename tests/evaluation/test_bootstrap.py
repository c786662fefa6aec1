"""Intervals: hand-made clusters, and the reason why whole queries are drawn."""

import numpy as np
import pytest

from sami.evaluation.bootstrap import Estimate, mean_by_query


def test_two_clusters_give_the_means_of_their_resamples():
    # Query a holds (0, 0), query b holds (1, 1): a resample is aa, ab, ba or bb, so its mean is 0, 1/2 or 1.
    estimate = mean_by_query([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"], samples=2000, seed=0)
    assert estimate == Estimate(value=0.5, low=0.0, high=1.0, n=4)


def test_a_resample_weighs_queries_by_their_items():
    # aa -> 0, bb -> 1, ab -> 1/4: the three items of a count three times.
    estimate = mean_by_query([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"], samples=2000, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.0, 1.0)


def test_one_cluster_has_an_interval_without_width():
    estimate = mean_by_query([0.0, 1.0], ["a", "a"], samples=200, seed=0)
    assert estimate == Estimate(value=0.5, low=0.5, high=0.5, n=2)


def test_no_values_have_no_estimate():
    estimate = mean_by_query([], [], samples=200, seed=0)
    assert estimate == Estimate(None, None, None, 0)
    assert not estimate.above_zero


def test_repeating_every_value_within_its_query_does_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=30)
    names = [f"q{i}" for i in range(30)]
    once = mean_by_query(values.tolist(), names, samples=1000, seed=3)
    repeated = mean_by_query(values.tolist() * 5, names * 5, samples=1000, seed=3)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert repeated.n == 150
    # The same 150 values as if each had its own query: narrower by the root of five.
    loose = mean_by_query(values.tolist() * 5, [str(i) for i in range(150)], samples=1000, seed=3)
    ratio = (once.high - once.low) / (loose.high - loose.low)
    assert ratio == pytest.approx(5**0.5, rel=0.15)


def test_the_interval_covers_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    names = [f"q{i // 3}" for i in range(120)]
    covered = 0
    for seed in range(200):
        values = np.repeat(rng.normal(loc=0.7, size=40), 3) + rng.normal(scale=0.3, size=120)
        estimate = mean_by_query(values.tolist(), names, samples=300, seed=seed)
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.7 <= estimate.high
    assert 180 <= covered <= 198  # 90 to 99 %; without clustering it is near 75 %


def test_the_seed_decides_the_interval():
    values, names = [0.1, 0.5, 0.9, 0.2, 0.8], list("abcde")
    assert mean_by_query(values, names, samples=100, seed=1) == mean_by_query(values, names, samples=100, seed=1)
    assert mean_by_query(values, names, samples=100, seed=1) != mean_by_query(values, names, samples=100, seed=2)


@pytest.mark.parametrize(("low", "above"), [(0.001, True), (0.0, False), (-0.001, False), (None, False)])
def test_above_zero_asks_for_the_whole_interval(low, above):
    assert Estimate(0.5, low, 1.0, 3).above_zero is above
