"""How constitutions are drawn: properties that hold for every seed."""

import math
import random

import pytest

from sami.contrast_plan import check_sampling
from sami.errors import InputError
from sami.recipe import Sampling
from tests.support.principles import FOUR, ids, polarities, sample

SEEDS = range(200)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_opposite_is_the_exact_opposite(k):
    for seed in SEEDS:
        first, second = sample(seed, "opposite", k=k)
        assert ids(first) == ids(second)
        assert len(set(ids(first))) == k
        assert polarities(second) == [not positive for positive in polarities(first)]


def test_opposite_draws_every_principle_and_both_polarities_of_the_first():
    drawn = {(ids(first)[0], polarities(first)[0]) for first, _ in (sample(seed) for seed in SEEDS)}
    assert drawn == {(p.id, positive) for p in FOUR for positive in (True, False)}


@pytest.mark.parametrize(("k", "c"), [(1, 2), (2, 2), (2, 4), (3, 8), (4, 16)])
def test_positive_vs_negative_is_one_positive_list_against_lists_with_an_antithesis(k, c):
    for seed in SEEDS:
        first, *others = sample(seed, "positive_vs_negative", c, k)
        assert all(polarities(first))
        assert len(others) == c - 1
        assert all(not all(polarities(other)) for other in others)
        assert all(ids(other) == ids(first) for other in others)
        assert len({constitution.key for constitution in (first, *others)}) == c


@pytest.mark.parametrize(
    ("n", "k", "largest"), [(1, 1, 2), (2, 1, 4), (4, 1, 8), (2, 2, 4), (3, 2, 12), (3, 3, 8), (4, 4, 16)]
)
def test_independent_gives_distinct_constitutions_up_to_the_largest_number_there_is(n, k, largest):
    """n choose k sets of principles, 2^k polarities each; the order makes no new constitution."""
    assert largest == math.comb(n, k) * 2**k
    for seed in range(30):
        constitutions = sample(seed, "independent", largest, k, FOUR[:n])
        assert len({constitution.key for constitution in constitutions}) == largest
        assert all(len(set(ids(constitution))) == k for constitution in constitutions)
    with pytest.raises(InputError, match=f"allow {largest} distinct"):
        sample(0, "independent", largest + 1, k, FOUR[:n])


@pytest.mark.parametrize("scheme", ["opposite", "positive_vs_negative", "independent"])
def test_a_seed_gives_the_same_constitutions_again_and_another_seed_gives_others(scheme):
    runs = [[[c.text for c in sample(seed, scheme, 2, 2)] for seed in SEEDS] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len({tuple(texts) for texts in runs[0]}) > 10


def test_sampling_draws_from_its_generator_only():
    random.seed(1)
    state = random.getstate()
    sample(0, "independent", 4, 2)
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("scheme", "c", "k", "message"),
    [
        ("opposite", 2, 5, "principles_per_constitution is 5, but only 4 principles are available"),
        ("opposite", 3, 1, "'opposite' allow 2 distinct"),
        ("positive_vs_negative", 5, 2, "'positive_vs_negative' allow 4 distinct"),
        ("independent", 9, 1, "'independent' allow 8 distinct"),
    ],
)
def test_sampling_that_is_not_possible_is_refused_before_it_starts(scheme, c, k, message):
    with pytest.raises(InputError, match=message):
        sample(0, scheme, c, k)


def test_a_recipes_sampling_is_refused_for_too_few_principles():
    check_sampling(FOUR, Sampling(scheme="independent", constitutions=8))
    with pytest.raises(InputError, match="'independent' allow 8 distinct"):
        check_sampling(FOUR, Sampling(scheme="independent", constitutions=9))
    with pytest.raises(InputError, match="only 4 principles are available"):
        check_sampling(FOUR, Sampling(principles_per_constitution=5))
