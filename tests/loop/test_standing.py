"""Whether a policy is better than base, from the facts in the summary, and the sentence that says so."""

from typing import Any

import pytest

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import Accuracy, Rate, Summary, WinRate
from sami.loop.standing import Standing, standing
from sami.loop.summary_text import reason, sentences, verdict

GAIN = Estimate(0.054, 0.041, 0.069, 105)
NO_GAIN = Estimate(0.004, -0.011, 0.019, 105)
UNDEFINED = Rate(rate=None)
FROZEN = "the frozen base model finds +0.054 nats [+0.041, +0.069], n 105, and health limits hold"


def cell(low: float, *, accuracy: float | None = None, **more: Any) -> WinRate:
    known = None if accuracy is None else Accuracy(accuracy=accuracy, low=45.0, high=80.0, above_chance=accuracy > 60)
    return WinRate(
        **{
            "candidate": "iteration-2",
            "baseline": "base",
            "judge": "verifier" if accuracy is None else "small",
            "scope": "learned",
            "raw": Rate(rate=70.0, low=65.0, high=75.0),
            "length_controlled": Rate(rate=60.0, low=low, high=66.0),
            "queries": 30,
            "judge_accuracy": known,
            **more,
        }
    )


@pytest.fixture
def found(report_run) -> Any:
    """`found(*cells, gain=…, failures=…)`: the standing of iteration-2 with these facts in the summary."""

    def stand(*cells: WinRate, gain: Estimate = GAIN, failures: tuple[str, ...] = ()) -> Standing:
        summary = Summary.read(report_run / "summary.json")
        summary.win_rates = list(cells)
        summary.comparisons[-1].learned.base_bound = gain
        summary.policies[2].health.failures = list(failures)
        made = standing(summary, "iteration-2")
        assert made is not None
        return made

    return stand


def test_a_gain_under_the_frozen_base_with_all_judges_for_it_is_better(found):
    made = found(cell(54.0), cell(40.0, scope="held_out"), cell(40.0, candidate="iteration-1"))
    assert made.is_better
    assert verdict(made) == (
        "iteration-2 is better than base, by +10.0 points of length-controlled win rate, interval [+4.0, +16.0], "
        f"n 30 queries (verifier, whose checks define the answer): {FROZEN}."
    )


def test_without_judges_the_frozen_base_decides(found):
    assert verdict(found()) == reason(found()) == f"iteration-2 is better than base: {FROZEN}."


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"gain": NO_GAIN}, "under the frozen base model the gain is +0.004 nats [-0.011, +0.019], n 105; +10.0"),
        ({"gain": Estimate(None, None, None, 0)}, "no contrast could be scored under the frozen base model; +10.0"),
        ({"failures": ("answers loop", "answers leak")}, "answers loop; answers leak; +10.0"),
    ],
)
def test_win_rates_do_not_outweigh_health_or_the_frozen_base(found, facts, words):
    made = found(cell(54.0), **facts)
    assert not made.is_better
    assert not made.is_supported
    assert verdict(made).startswith(f"iteration-2 is not called better than base: {words}")
    assert reason(made) == f"iteration-2 is not called better: {words.removesuffix('; +10.0')}."


@pytest.mark.parametrize(
    ("second", "is_better", "words"),
    [
        (cell(49.0, accuracy=70.0), False, "(small, judge accuracy 70 % [45, 80])"),
        (cell(49.0, accuracy=52.0), True, "(small, judge accuracy 52 % [45, 80], not above chance)"),
        (
            cell(49.0, judge="small", judge_accuracy=Accuracy(accuracy=None, above_chance=False)),
            True,
            "(small, not above chance, because too few pairs with a known answer were scored)",
        ),
        (cell(49.0, judge="person"), False, "(person, not calibrated)"),
    ],
)
def test_a_judge_speaks_against_if_it_is_calibrated_and_its_interval_reaches_half(found, second, is_better, words):
    made = found(cell(54.0), second)
    assert made.is_better is is_better
    assert made.is_supported
    assert words in verdict(made)
    assert ("not called better than base: a judge's interval reaches 50 %;" in verdict(made)) is not is_better


@pytest.mark.parametrize("controlled", [UNDEFINED, Rate(rate=60.0)])
def test_the_raw_rate_stands_in_where_length_cannot_be_controlled(found, controlled):
    made = found(cell(0.0, length_controlled=controlled))
    assert made.is_better
    assert "by +20.0 points of raw win rate, interval [+15.0, +25.0]" in verdict(made)


def test_a_rate_without_an_interval_is_not_evidence(found):
    made = found(cell(0.0, length_controlled=UNDEFINED, raw=Rate(rate=100.0)))
    assert not made.is_better
    assert "no figure of verifier with an interval" in verdict(made)


def test_verdicts_without_principles_count_in_the_scope_of_all(found):
    assert not found(cell(49.0, scope="all")).is_better


def test_base_and_baselines_have_no_standing(report_run):
    assert standing(Summary.read(report_run / "summary.json"), "base") is None


def test_a_run_ends_with_its_gains_and_its_verdict(report_run):
    summary = Summary.read(report_run / "summary.json")
    gain = Estimate(0.3, 0.2, 0.4, 24)
    summary.comparisons[-1].learned.bound = gain
    summary.policies[0].information.bound, summary.policies[2].information.bound = 0.2, 0.5
    learned, held_out, last = sentences(summary)
    assert learned.startswith(
        "learned principles, iteration-2 against base: bound +0.300 nats [+0.200, +0.400], n 24 (2.50 x base); under"
    )
    assert "points [" in learned
    assert "verifiers" not in held_out  # no held-out principle has a check
    assert last == summary.verdict
    assert sentences(Summary(policies=[])) == ["No iteration is trained yet."]
