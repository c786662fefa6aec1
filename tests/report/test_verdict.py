"""The verdict of a page, the five numbers behind it, and its warnings."""

from dataclasses import replace

import pytest

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import Accuracy, Rate, Summary
from sami.report.run_files import read_run
from sami.report.tiles import tiles
from sami.report.verdict import standing_in_words, verdict
from sami.report.warnings import warnings
from sami.wording import interval, signed
from tests.support.report_runs import make_run, plainly


@pytest.fixture
def good(report_run):
    """A run whose last iteration is better; its summary may be changed."""
    return read_run(report_run)


@pytest.fixture(scope="module")
def looping(tmp_path_factory):
    """A run whose last iteration gains more than any other and writes code words."""

    def write(query, iteration, principle, positive):
        text = plainly(query, iteration, principle, positive)
        return text + " Expert:Expert:Expert:Expert:Expert" if iteration == 2 else text

    return read_run(make_run(tmp_path_factory.mktemp("runs") / "looping", write=write, gain=0.4))


def by_title(run):
    return {warning.title: warning for warning in warnings(run)}


def test_the_verdict_is_that_of_the_summary(good):
    found = verdict(good)
    assert (found.standing, found.sentence) == ("better", good.summary.verdict)
    assert found.headline == "iteration-2 is better than base on the principles it learned"
    assert verdict(replace(good, is_summary_stored=False)).headline == f"So far: {found.headline}"


def test_the_five_numbers_are_those_of_the_summary(good):
    change, cell = good.summary.comparisons[-1], good.summary.decisive_rate("iteration-2", "base")
    assert cell is not None
    assert (cell.candidate, cell.scope) == ("iteration-2", "learned")
    learned = change.learned
    expected = [
        (learned.base_bound, 3, "contrasts"),
        (cell.length_controlled.estimate, 1, "queries"),
        (learned.verifier_rate, 1, "answers"),
        (change.held_out.base_bound, 3, "contrasts"),
        (learned.bound, 3, "contrasts"),
    ]
    for tile, (figure, digits, unit) in zip(tiles(good), expected, strict=True):
        is_rate = unit == "queries"
        assert tile.value == (f"{figure.value:.1f}" if is_rate else signed(figure.value, digits))
        assert tile.interval == interval(figure.low, figure.high, digits, is_signed=not is_rate)
        assert tile.n == f"{cell.queries if is_rate else figure.n} {unit}"
        assert tile.strip is not None
        assert 0 <= tile.strip.low <= tile.strip.value <= tile.strip.high <= 100


def test_an_unhealthy_policy_is_never_called_better(looping):
    claimed = looping.summary.model_copy(deep=True)
    claimed.comparisons[-1].better = claimed.comparisons[-1].healthy = True  # the page decides by the health it shows
    for run in (looping, replace(looping, summary=claimed)):
        found = verdict(run)
        assert found.standing == "unhealthy"
        assert found.headline == "iteration-2 is not called better than base: it breaks a health limit"
        assert [standing_in_words(run, policy) for policy in run.policies] == [
            "the reference",
            "better than base",
            "not called better: unhealthy",
        ]


def test_a_broken_limit_comes_with_examples_that_show_it(looping):
    failures = [warning for warning in warnings(looping) if warning.is_failure]
    assert {warning.title for warning in failures} == {"iteration-2 breaks a health limit"}
    [loops] = [warning for warning in failures if "repeat themselves" in warning.text]
    assert len({example["query"] for example in loops.examples}) == 3
    for example in loops.examples:
        assert "Expert:Expert" in example["text"]
        assert "repeats itself: Expert" in example["why"]
        assert example["id"] in {contrast.id for contrast in looping.responses["iteration-2"]}


def test_a_limit_that_cannot_be_checked_again_has_its_sentence_without_examples(looping):
    for warning in warnings(replace(looping, settings=None)):
        if warning.is_failure:
            assert warning.examples == []
            assert "read some under Answers" in warning.text


def test_a_judge_that_prefers_base_prevents_better(good):
    for cell in good.summary.win_rates:
        cell.raw = cell.length_controlled = Rate(rate=48.0, low=45.0, high=51.0)
    assert verdict(good).standing == "not-better"
    assert standing_in_words(good, good.policies[2]) == "not called better"
    assert tiles(good)[1].reading.startswith("no difference shown: the interval contains 0; by verifier")


def test_without_judges_the_frozen_base_decides(good):
    good.summary.win_rates = []
    assert verdict(good).standing == "better"
    assert (tiles(good)[1].value, tiles(good)[1].reading) == ("–", "no judge was asked")


def test_a_judge_at_chance_is_named(good):
    for cell in good.summary.win_rates:
        cell.judge, cell.judge_accuracy = "small", Accuracy(accuracy=52.0, low=45.0, high=59.0, above_chance=False)
    assert by_title(good)["A judge at chance"].text.startswith("small was right on 52 % of pairs with a known answer")


def test_held_out_principles_without_a_gain_are_named(good):
    title = "No gain shown on held-out principles"
    assert title not in by_title(good)
    good.summary.comparisons[-1].held_out.base_bound = Estimate(-0.01, -0.03, 0.01, 12)
    assert tiles(good)[3].reading == "no difference shown: the interval contains 0"
    assert by_title(good)[title].text.endswith("-0.010 nats [-0.030, +0.010], n 12.")


def test_few_queries_cut_off_answers_lengths_and_openings_are_named(good):
    base, last = good.policies[0].health, good.policies[2].health
    base.unfinished, base.words = 94.0, 10.0
    last.words_ratio, last.words, last.opening_share, last.opening = 1.9, 19.0, 86.0, "thank you for"
    good.summary.model = "model.gguf"
    texts = {title: warning.text for title, warning in by_title(good).items()}
    assert "12 queries" in texts["Few held-out queries"]
    assert "94 % of base's answers end at the limit of 128 tokens" in texts["Most answers are cut off"]
    assert "19.0 words on average, base's have 10.0 (1.90 times)" in texts["iteration-2 writes longer answers"]
    assert "86 % of its answers start with “thank you for”" in texts["iteration-2 begins many answers alike"]
    assert "Weights from a quantized file" in texts


def test_a_run_without_iterations_has_no_verdict(good):
    run = replace(good, summary=Summary(policies=good.policies[:1]))
    assert verdict(run).standing == "none"
    assert tiles(run) == []
