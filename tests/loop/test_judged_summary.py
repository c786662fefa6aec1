"""The run's verdict in a sentence, and what may stand in it."""

from typing import Any

import pytest

from sami.loop.judged_summary import verdict

UNDEFINED = {"rate": None, "low": None, "high": None}


def comparison(better: bool = True) -> dict[str, Any]:
    how = "is better than base: the frozen" if better else "is not called better: under the frozen"
    reason = f"iteration-2 {how} base model +0.054 nats."
    return {"policy": "iteration-2", "against": "base", "better": better, "reason": reason}


def cell(low: float, scope: str = "learned", accuracy: float | None = None, **more: Any) -> dict[str, Any]:
    calibrated = {"accuracy": accuracy, "low": 45.0, "high": 80.0, "above_chance": (accuracy or 0) > 60}
    return {
        "candidate": "iteration-2",
        "baseline": "base",
        "judge": "verifier" if accuracy is None else "small",
        "scope": scope,
        "raw": {"rate": 70.0, "low": 65.0, "high": 75.0},
        "length_controlled": {"rate": 60.0, "low": low, "high": 66.0},
        "queries": 30,
        "judge_accuracy": None if accuracy is None else calibrated,
        **more,
    }


def test_a_better_policy_is_called_so_with_its_figures() -> None:
    assert verdict(comparison(), [cell(54.0), cell(40.0, scope="held_out")]) == (
        "iteration-2 is better than base, by +10.0 points of length-controlled win rate, interval [+4.0, +16.0], "
        "n 30 queries (verifier, whose checks define the answer): the frozen base model +0.054 nats."
    )


def test_a_judge_whose_interval_reaches_half_speaks_against() -> None:
    said = verdict(comparison(), [cell(54.0), cell(49.0, accuracy=70.0)])
    assert said.startswith("iteration-2 is not called better than base: a judge's interval reaches 50 %;")
    assert "(small, judge accuracy 70 % [45, 80])" in said


def test_a_forced_judge_at_chance_decides_nothing_and_is_said_to_be_so() -> None:
    said = verdict(comparison(), [cell(54.0), cell(49.0, accuracy=52.0)])
    assert said.startswith("iteration-2 is better than base, by +10.0")
    assert "(small, judge accuracy 52 % [45, 80], not above chance)" in said


def test_a_judge_without_pairs_of_known_answer_decides_nothing() -> None:
    unknown = {"accuracy": None, "low": None, "high": None, "above_chance": False}
    said = verdict(comparison(), [cell(54.0), cell(49.0, judge="small", judge_accuracy=unknown)])
    assert said.startswith("iteration-2 is better than base, by +10.0")
    assert "(small, not above chance, for want of pairs with a known answer)" in said


def test_win_rates_do_not_outweigh_health_or_the_frozen_base() -> None:
    said = verdict(comparison(better=False), [cell(54.0)])
    assert said.startswith("iteration-2 is not called better than base: under the frozen base model +0.054 nats; +10.0")


@pytest.mark.parametrize("controlled", [UNDEFINED, {"rate": 60.0, "low": None, "high": None}])
def test_the_raw_rate_stands_in_where_length_cannot_be_controlled(controlled: dict[str, Any]) -> None:
    said = verdict(comparison(), [cell(0.0, length_controlled=controlled)])
    assert "by +20.0 points of raw win rate, interval [+15.0, +25.0]" in said


def test_a_rate_without_interval_is_no_evidence() -> None:
    one = {"rate": 100.0, "low": None, "high": None}
    said = verdict(comparison(), [cell(0.0, length_controlled=UNDEFINED, raw=one)])
    assert "not called better" in said
    assert "no figure of verifier with an interval" in said


def test_without_judges_the_frozen_base_decides() -> None:
    assert verdict(comparison(), []) == "iteration-2 is better than base: the frozen base model +0.054 nats."
