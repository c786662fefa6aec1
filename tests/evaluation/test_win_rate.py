"""Win rates: known answers, hand-made tables, and simulated evaluations in which the truth is known."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from sami.errors import InputError
from sami.evaluation.win_rate import agreement, queries_needed, win_rates
from tests.support.simulated import evaluation, verdict


def one(verdicts, **options):
    (cell,) = win_rates(verdicts, **options)
    return cell


def percent(logit):
    return 100 / (1 + math.exp(-logit))


def logit(probability):
    return math.log(probability / (1 - probability))


UNDEFINED = {"rate": None, "low": None, "high": None}


def both_orders(query, candidate_first, baseline_first, **more):
    """Two verdicts about one pair."""
    scores = {"candidate_first": candidate_first, "baseline_first": baseline_first}
    return [verdict(query, score, order=order, **more) for order, score in scores.items()]


# What is counted, and how.


def test_a_tie_is_half_a_win_and_an_unscored_judgement_is_nothing():
    cell = one([verdict("q1", 1.0), verdict("q2", 0.5), verdict("q3", 0.0), verdict("q4", 1.0), verdict("q5", None)])
    assert cell["raw"]["rate"] == 62.5  # (1 + 0.5 + 0 + 1) / 4
    assert (cell["queries"], cell["judgements"], cell["unscored"], cell["ties"]) == (4, 5, 1, 1)


def test_unscored_judgements_leave_every_rate_where_it_is():
    scored = evaluation(np.random.default_rng(0), queries=80, quality=0.5, length=1.0)
    failed = [verdict(f"other{i}", None, longer_by=500, longer_by_tokens=90) for i in range(80)]
    with_failures, without = one([*scored, *failed]), one(scored)
    for name in ("raw", "stratified", "length_controlled", "consistency", "first_position_rate", "strata_n"):
        assert with_failures[name] == without[name]
    assert (with_failures["unscored"], without["unscored"]) == (80, 0)


def test_identical_responses_give_50():
    half = {"rate": 50.0, "low": 50.0, "high": 50.0}
    ties = one([verdict(f"q{i}", 0.5) for i in range(30)])
    assert ties["raw"] == ties["length_controlled"] == half
    # A judge that always takes the first response, asked in both orders, is at 50 too, and found out.
    leaning = one([v for i in range(30) for v in both_orders(f"q{i}", 1.0, 0.0)])
    assert leaning["raw"] == half
    assert leaning["length_controlled"]["rate"] == pytest.approx(50, abs=1e-9)
    assert (leaning["consistency"], leaning["first_position_rate"]) == (0.0, 100.0)


def test_consistency_is_the_share_of_pairs_whose_orders_name_one_winner():
    outcomes = [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5), (1.0, 0.0), (1.0, 0.5), (0.9, 0.6), (1.0, None)]
    cell = one([v for i, scores in enumerate(outcomes) for v in both_orders(f"q{i}", *scores)])
    assert cell["consistency"] == pytest.approx(100 * 4 / 6)  # the pair with one score does not count
    # Constitutions of a query are pairs of their own.
    cell = one([*both_orders("q1", 1.0, 1.0, constitution="a"), *both_orders("q1", 0.0, 1.0, constitution="b")])
    assert (cell["queries"], cell["consistency"]) == (1, 50.0)


def test_first_position_rate_does_not_take_a_good_policy_for_a_lean():
    # The candidate always wins, and is shown first three times in four: no lean.
    orders = ["candidate_first"] * 3 + ["baseline_first"]
    assert one([verdict(f"q{i}", 1.0, order=o) for i, o in enumerate(orders)])["first_position_rate"] == 50.0
    # First wins 2 of 2 and 1 of 2.
    scores = [(1.0, "candidate_first"), (1.0, "candidate_first"), (0.0, "baseline_first"), (1.0, "baseline_first")]
    assert one([verdict(f"q{i}", s, order=o) for i, (s, o) in enumerate(scores)])["first_position_rate"] == 75.0
    # With one order alone, quality and lean cannot be told apart.
    assert one([verdict("q1"), verdict("q2")])["first_position_rate"] is None


def test_lengths_are_means_over_pairs_whatever_was_judged():
    verdicts = both_orders("q1", 1.0, 1.0, longer_by=10, longer_by_tokens=4)
    cell = one([*verdicts, verdict("q2", None, longer_by=30, longer_by_tokens=8)])
    assert cell["candidate_length"] == {"tokens": 206.0, "chars": 1020.0}
    assert cell["baseline_length"] == {"tokens": 200.0, "chars": 1000.0}


def test_each_principle_has_its_rate_and_the_queries_behind_it():
    verdicts = [
        verdict("q1", 1.0, principles=["brief", "pirate"]),
        verdict("q2", 0.0, principles=["brief"]),
        verdict("q2", 1.0, principles=["pirate"]),
        verdict("q3", 1.0, principles=["poem"]),
        verdict("q4", None, principles=["brief"]),
    ]
    table = one(verdicts)["per_principle"]
    assert {name: (cell["rate"], cell["n"]) for name, cell in table.items()} == {
        "brief": (50.0, 2),
        "pirate": (100.0, 2),
        "poem": (100.0, 1),
    }
    assert (table["brief"]["low"], table["brief"]["high"]) == (0.0, 100.0)
    assert (table["poem"]["low"], table["poem"]["high"]) == (None, None)  # one query has no spread
    assert one([verdict("q1")])["per_principle"] is None


def test_learned_and_held_out_principles_stand_apart():
    verdicts = [verdict("q1", 1.0, learned=True), verdict("q2", 0.0, learned=False), verdict("q3", 0.0, learned=False)]
    cells = {cell["scope"]: cell for cell in win_rates(verdicts)}
    assert list(cells) == ["all", "learned", "held_out"]
    assert [cell["raw"]["rate"] for cell in cells.values()] == [pytest.approx(100 / 3), 100.0, 0.0]
    assert [cell["queries"] for cell in cells.values()] == [3, 1, 2]
    assert [cell["scope"] for cell in win_rates([verdict("q1")])] == ["all"]


def test_each_candidate_and_judge_has_a_cell_with_its_judges_accuracy():
    verdicts = [
        verdict("q1", 1.0),
        verdict("q1", 0.0, judge="human"),
        verdict("q1", 0.0, candidate="iteration-2"),
    ]
    cells = win_rates(verdicts, judge_accuracy={"human": {"accuracy": 90.0}})
    found = [(c["candidate"], c["judge"], c["raw"]["rate"], c["judge_accuracy"]) for c in cells]
    assert found == [
        ("iteration-1", "judge", 100.0, None),
        ("iteration-1", "human", 0.0, {"accuracy": 90.0}),
        ("iteration-2", "judge", 0.0, None),
    ]


def test_nothing_scored_is_bad_input_but_one_empty_cell_is_not():
    with pytest.raises(InputError, match="no verdicts"):
        win_rates([])
    with pytest.raises(InputError, match="None of the 2 judgements has a score"):
        win_rates([verdict("q1", None), verdict("q2", None)])
    empty = win_rates([verdict("q1", None), verdict("q1", 1.0, judge="human")])[0]
    for name in ("raw", "stratified", "length_controlled"):
        assert empty[name] == UNDEFINED
    assert (empty["queries"], empty["judgements"], empty["unscored"]) == (0, 1, 1)
    assert (empty["consistency"], empty["per_principle"], empty["ties"]) == (None, None, 0)


# Strata of length.


def test_the_stratified_rate_is_the_mean_of_the_two_strata():
    verdicts = [
        *(verdict(f"long{i}", score, longer_by_tokens=5) for i, score in enumerate([1.0, 1.0, 1.0, 1.0, 0.5, 0.0])),
        verdict("same", 0.0, longer_by_tokens=0),
        verdict("short", 1.0, longer_by_tokens=-7),
        verdict("short", 0.5, longer_by_tokens=-7, order="baseline_first"),
        verdict("short, more characters", 0.0, longer_by_tokens=-7, longer_by=90),
    ]
    cell = one(verdicts)
    # Longer: 4.5 of 6 = 75 %. Not longer: 1.5 of 4 = 37.5 %. Raw: 6 of 10.
    assert cell["stratified"]["rate"] == pytest.approx((75 + 37.5) / 2)
    assert cell["raw"]["rate"] == pytest.approx(60)
    assert cell["strata_n"] == {"longer": 6, "not_longer": 3}


def test_an_empty_stratum_leaves_no_stratified_rate_and_one_query_no_interval():
    longer = [verdict(f"q{i}", 1.0, longer_by_tokens=1) for i in range(5)]
    cell = one(longer)
    assert cell["stratified"] == UNDEFINED
    assert cell["strata_n"] == {"longer": 5, "not_longer": 0}
    cell = one([*longer, verdict("q9", 0.0)])
    assert cell["stratified"] == {"rate": 50.0, "low": None, "high": None}


# Control for length.


def two_lengths(rates, **options):
    """Ten queries for each length difference, of which the given share is won."""
    return [
        verdict(f"q{delta}-{i}", float(i < 10 * rate), longer_by=delta, **options)
        for delta, rate in rates.items()
        for i in range(10)
    ]


def test_two_length_differences_are_interpolated_to_none_on_the_logit_scale():
    # Two points determine the line: a = (x1 l2 - x2 l1) / (x1 - x2), and nothing is centred.
    verdicts = two_lengths({200: 0.9, -50: 0.4})
    sd = np.std([200] * 10 + [-50] * 10, ddof=1)
    x1, x2 = math.tanh(200 / sd), math.tanh(-50 / sd)
    expected = percent((x1 * logit(0.4) - x2 * logit(0.9)) / (x1 - x2))
    assert one(verdicts)["length_controlled"]["rate"] == pytest.approx(expected, abs=0.01)
    assert abs(expected - one(verdicts)["raw"]["rate"]) > 5


def test_the_regression_is_by_characters_and_the_strata_by_tokens():
    by_tokens = [verdict(f"q{i}", float(i % 2), longer_by_tokens=1 if i % 2 else -1) for i in range(20)]
    assert one(by_tokens)["length_controlled"]["rate"] == pytest.approx(50)
    assert one(by_tokens)["stratified"]["rate"] == 50.0
    by_chars = two_lengths({100: 0.9, -100: 0.2})
    assert one(by_chars)["stratified"]["rate"] is None
    expected = percent((logit(0.9) + logit(0.2)) / 2)
    assert one(by_chars)["length_controlled"]["rate"] == pytest.approx(expected, abs=0.01)


def test_two_orders_are_one_soft_target():
    rng = np.random.default_rng(5)
    both = evaluation(rng, queries=60, quality=0.4, length=1.0)
    averaged = [
        verdict(a.query_id, (a.score + b.score) / 2, longer_by=a.candidate_chars - 1000)
        for a, b in zip(both[::2], both[1::2], strict=True)
    ]
    # The standard deviation of twice as many judgements differs in its ninth thousandth.
    assert one(averaged)["length_controlled"]["rate"] == pytest.approx(one(both)["length_controlled"]["rate"], abs=0.02)


def test_a_shared_slope_comes_from_the_policy_that_shows_it():
    # Only the first policy varies in length. The second is longer by 100 throughout and wins 80 %.
    first = two_lengths({100: 0.9, -100: 0.3})
    second = two_lengths({100: 0.8}, candidate="iteration-2")
    alone, shared = win_rates([*first, *second]), win_rates([*first, *second], slope="shared")
    assert alone[1]["length_controlled"]["rate"] is None
    x = math.tanh(100 / np.std([100] * 20 + [-100] * 10, ddof=1))
    slope = (logit(0.9) - logit(0.3)) / (2 * x)
    expected = [percent((logit(0.9) + logit(0.3)) / 2), percent(logit(0.8) - slope * x)]
    assert [cell["length_controlled"]["rate"] for cell in shared] == pytest.approx(expected, abs=0.01)
    assert all(cell["raw"] == other["raw"] for cell, other in zip(alone, shared, strict=True))


def test_another_judges_verdicts_do_not_enter_a_shared_slope():
    first, other = two_lengths({100: 0.9, -100: 0.3}), two_lengths({100: 0.2, -100: 0.9}, judge="other")
    assert [c["length_controlled"] for c in win_rates([*first, *other], slope="shared")] == [
        c["length_controlled"] for c in win_rates([*first, *other])
    ]


def test_one_length_difference_throughout_leaves_no_rate_unless_it_is_none():
    assert one([verdict(f"q{i}", float(i % 3 > 0), longer_by=40) for i in range(9)])["length_controlled"] == UNDEFINED
    rng = np.random.default_rng(6)
    equal = one([verdict(f"q{i}", float(rng.random() < 0.7)) for i in range(60) for _ in range(2)])
    assert equal["raw"]["high"] - equal["raw"]["low"] > 10
    assert equal["length_controlled"] == pytest.approx(equal["raw"], abs=0.01)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_policy_that_always_wins_or_loses_has_a_finite_fit(score):
    rng = np.random.default_rng(1)
    cell = one([verdict(f"q{i}", score, longer_by=int(rng.normal(0, 100))) for i in range(40)])["length_controlled"]
    assert [cell[name] for name in ("rate", "low", "high")] == pytest.approx([100 * score] * 3, abs=0.2)


def test_a_judge_that_looks_at_length_alone_leaves_a_wide_interval_around_50():
    rng = np.random.default_rng(2)
    deltas = rng.normal(60, 100, 200).astype(int)
    cell = one([verdict(f"q{i}", float(d > 0), longer_by=int(d)) for i, d in enumerate(deltas)])
    assert cell["raw"]["rate"] > 65
    low, high = cell["length_controlled"]["low"], cell["length_controlled"]["high"]
    assert low < 50 < high
    assert high - low > 20


@pytest.mark.parametrize(
    ("quality", "length", "shift"),
    [(0.0, 1.5, 1.0), (0.0, 1.5, -1.0), (0.5, 0.0, 0.0), (0.5, 1.0, 1.0), (-0.8, 1.0, 0.5)],
)
def test_over_200_evaluations_length_is_taken_out_and_quality_found(quality, length, shift):
    rng = np.random.default_rng(7)
    cells = [
        one(evaluation(rng, queries=250, quality=quality, length=length, shift=shift), samples=2) for _ in range(200)
    ]
    assert np.mean([c["length_controlled"]["rate"] for c in cells]) == pytest.approx(percent(quality), abs=2)
    if length and not quality:
        assert abs(np.mean([c["raw"]["rate"] for c in cells]) - 50) > 12


# Intervals.


def test_orders_and_constitutions_of_a_query_do_not_narrow_the_interval():
    verdicts = evaluation(np.random.default_rng(3), queries=100, quality=0.3, length=1.0)
    single = [v for v in verdicts if v.order == "candidate_first"]
    repeated = [
        replace(v, order=order, constitution_id=constitution)
        for v in single
        for order in ("candidate_first", "baseline_first")
        for constitution in ("a", "b")
    ]
    for name in ("raw", "stratified"):
        assert one(repeated)[name] == pytest.approx(one(single)[name], abs=1e-9)
    assert one(repeated)["length_controlled"] == pytest.approx(one(single)["length_controlled"], abs=0.05)


def test_a_resample_without_a_policy_says_nothing_of_it():
    # Two of 22 queries are the second policy's, and both are won: a seventh of the resamples hold neither.
    verdicts = two_lengths({100: 0.9, -100: 0.3})
    verdicts += [verdict(f"r{i}", 1.0, longer_by=-100, candidate="iteration-2") for i in range(2)]
    second = win_rates(verdicts, slope="shared")[1]["length_controlled"]
    assert second["low"] > 95


def test_one_query_says_nothing_at_equal_length():
    verdicts = [verdict("q1", float(i % 2), longer_by=10 * i, constitution=str(i)) for i in range(9)]
    assert one(verdicts)["length_controlled"] == UNDEFINED


def test_the_interval_depends_on_the_seed_and_not_on_the_order_of_lines():
    verdicts = evaluation(np.random.default_rng(4), queries=60, quality=0.3, length=1.0)
    shuffled = [verdicts[i] for i in np.random.default_rng(0).permutation(len(verdicts))]
    for name in ("raw", "stratified", "length_controlled"):
        assert one(shuffled)[name] == pytest.approx(one(verdicts)[name], abs=1e-6)
    assert one(verdicts, seed=1)["raw"]["low"] != one(verdicts)["raw"]["low"] or (
        one(verdicts, seed=1)["length_controlled"]["low"] != one(verdicts)["length_controlled"]["low"]
    )


@pytest.mark.slow
def test_the_intervals_cover_the_truth_92_to_98_times_in_100():
    quality, length, shift = 0.4, 1.0, 0.5
    deltas = np.random.default_rng(11).normal(shift, 1, 2_000_000)
    wins = 1 / (1 + np.exp(-quality - length * np.tanh(deltas)))
    longer = np.rint(np.rint(100 * deltas) / 5) > 0
    truth = {
        "raw": 100 * wins.mean(),
        "stratified": 50 * (wins[longer].mean() + wins[~longer].mean()),
        "length_controlled": percent(quality),
    }
    covered = dict.fromkeys(truth, 0)  # evaluations of 1000
    rng = np.random.default_rng(12)
    for seed in range(1000):
        cell = one(evaluation(rng, queries=250, quality=quality, length=length, shift=shift), samples=500, seed=seed)
        for name, value in truth.items():
            covered[name] += bool(cell[name]["low"] <= value <= cell[name]["high"])
    assert all(920 <= count <= 980 for count in covered.values()), covered


# Agreement, and how many queries.


def test_cohens_kappa_by_hand():
    # Win/win 4, loss/loss 3, win/loss 2, tie/loss 1: observed 0.7; chance 0.6 x 0.4 + 0.1 x 0 + 0.3 x 0.6 = 0.42.
    said = [(1.0, 0.9)] * 4 + [(0.0, 0.2)] * 3 + [(1.0, 0.0)] * 2 + [(0.5, 0.0)]
    verdicts = [verdict(f"q{i}", s, judge=j) for i, pair in enumerate(said) for j, s in zip("ab", pair, strict=True)]
    verdicts += [verdict("x", None, judge="a"), verdict("x", 1.0, judge="b"), verdict("y", 1.0, judge="a")]
    (result,) = agreement(verdicts)
    assert (result["judges"], result["judgements"]) == (["a", "b"], 10)
    assert result["agreement"] == pytest.approx(70)
    assert result["kappa"] == pytest.approx((0.7 - 0.42) / (1 - 0.42))


def test_kappa_is_undefined_where_chance_agrees_always_and_absent_without_common_items():
    always = [verdict(f"q{i}", 1.0, judge=j) for i in range(5) for j in "ab"]
    assert [(r["agreement"], r["kappa"]) for r in agreement(always)] == [(pytest.approx(100), None)]
    assert agreement([verdict("q1", judge="a"), verdict("q1", judge="b", order="baseline_first")]) == []
    assert agreement([verdict("q1", judge="a")]) == []
    assert [r["judges"] for r in agreement([verdict(judge=j) for j in "abc"])] == [["a", "b"], ["a", "c"], ["b", "c"]]


def test_783_queries_see_five_points_at_80_percent_power():
    assert queries_needed() == 783
    rng = np.random.default_rng(0)
    z = (rng.binomial(783, 0.55, 100_000) / 783 - 0.5) / (0.5 / math.sqrt(783))
    assert np.mean(np.abs(z) > NormalDist().inv_cdf(0.975)) == pytest.approx(0.8, abs=0.015)
    assert queries_needed(10) < queries_needed(5) / 3.9
    assert queries_needed(5, power=0.9) > 1000


@pytest.mark.parametrize(("points", "power"), [(0, 0.8), (50, 0.8), (5, 0.5), (5, 1.0)])
def test_impossible_plans_are_refused(points, power):
    with pytest.raises(ValueError, match="points must lie"):
        queries_needed(points, power)
