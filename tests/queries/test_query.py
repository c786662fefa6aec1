"""When two queries are the same, and splits that keep evaluation out of training."""

import subprocess
import sys

import pytest

from sami.errors import InputError
from sami.queries import Query, normalize, split_queries

QUERIES = [Query(f"q{number}", f"How do I do {number}?") for number in range(50)]


def test_importing_the_package_loads_no_heavy_package():
    code = "import sys, sami.queries; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "texts",
    [
        ("  Straße\u00a0\n ﬁve ", "STRASSE \uff46ive"),
        ("Why?", "\ufeffWh\u200by?\u200e", "\u202eWhy?\u202c", "W\u00adhy?\ufe0f"),
        ("IŞIK NEDİR?", "ışık nedir?"),
    ],
)
def test_queries_are_the_same_up_to_case_width_white_space_and_unseen_characters(texts):
    assert len({normalize(text) for text in texts}) == 1


@pytest.mark.parametrize("text", ["ẞ", "ﬀ", "İ", "\u0345", "\u00a8", "ϓ", "น้ำ"])
def test_normalize_is_idempotent(text):
    assert normalize(normalize(text)) == normalize(text)


def test_the_parts_are_disjoint_and_of_the_sizes_asked_for():
    splits = split_queries(QUERIES, train=31, evaluation=19, seed=0)
    half_a, half_b = splits.train
    assert (len(half_a), len(half_b), len(splits.evaluation)) == (16, 15, 19)
    assert {*half_a, *half_b, *splits.evaluation} == set(QUERIES)
    assert [splits.for_iteration(number) for number in (1, 2, 3, 4)] == [half_a, half_b, half_a, half_b]
    with pytest.raises(ValueError, match="count from 1"):
        splits.for_iteration(0)


def test_the_seed_decides_the_split():
    first, again, other = (split_queries(QUERIES, train=20, evaluation=10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.evaluation != other.evaluation
    assert first.evaluation != tuple(QUERIES[:10])


def test_more_training_queries_leave_evaluation_alone_and_extend_each_half():
    small = split_queries(QUERIES, train=11, evaluation=10, seed=3)
    large = split_queries(QUERIES, train=40, evaluation=10, seed=3)
    assert small.evaluation == large.evaluation
    for little, much in zip(small.train, large.train, strict=True):
        assert much[: len(little)] == little


@pytest.mark.parametrize(
    ("train", "evaluation", "reason"),
    [
        (41, 10, "51 in all, but only 50 are usable"),
        (1, 10, "1 training and 10 evaluation"),
        (10, 0, "10 training and 0 evaluation"),
        (-5, 10, "at least 2"),
    ],
)
def test_sizes_that_cannot_be_met_are_refused_with_the_numbers(train, evaluation, reason):
    with pytest.raises(InputError, match=reason):
        split_queries(QUERIES, train=train, evaluation=evaluation, seed=0)


@pytest.mark.parametrize("repeated", [" how do I DO 7? ", "How do I do\u200b 7?"])
def test_queries_that_repeat_are_refused_since_evaluation_could_leak_into_training(repeated):
    with pytest.raises(InputError, match="1 of the 51 queries repeat"):
        split_queries([*QUERIES, Query("x", repeated)], train=2, evaluation=1, seed=0)
