"""How good a judge is, on pairs with a known answer."""

import pytest

from sami.evaluation.ask import ask
from sami.evaluation.calibration import known_pairs, measured
from sami.evaluation.pairs import Item
from tests.support.judging import BRIEF, Scripted, item, policy


def answers():
    texts = {}
    for n in range(6):
        for number, positive in enumerate((True, False)):
            one = Item(f"q{n}", f"What is {n}?", f"q{n}/{number}", BRIEF.text(positive), (("brief", positive),), True)
            long = "It was 5." if n == 5 else f"It is {n}, as we will now see at length."  # q5 ignores the antithesis
            texts[one] = f"It is {n}." if positive else long
    return policy("base", texts)


def test_known_pairs_hold_a_right_and_a_wrong_response():
    found = known_pairs(answers(), [BRIEF], count=40, seed=0)
    kinds = [p.baseline for p in found]
    assert (kinds.count("wrong-principle"), kinds.count("wrong-query")) == (10, 12)
    for p in found:
        number = p.item.query_id[1:]
        assert f"{number}" in p.candidate_response.text
        positive = p.item.principles == (("brief", True),)
        if p.baseline == "wrong-query":
            assert number not in p.baseline_response.text
        else:
            assert number in p.baseline_response.text
            assert BRIEF.follows(p.candidate_response.text, positive)
            assert BRIEF.follows(p.baseline_response.text, positive) is False
    assert known_pairs(answers(), [BRIEF], count=40, seed=0) == found
    some = [p.baseline for p in known_pairs(answers(), [BRIEF], count=12, seed=0)]
    assert (some.count("wrong-principle"), some.count("wrong-query")) == (6, 6)


def test_without_verifiers_all_known_pairs_have_a_wrong_query():
    same = policy("base", {item(n): f"It is {n}." for n in range(8)})
    assert [p.baseline for p in known_pairs(same, [], count=6, seed=0)] == ["wrong-query"] * 6


def calibration(tmp_path, says, count=24):
    found = known_pairs(answers(), [BRIEF], count=count, seed=0)
    verdicts = ask(Scripted(says), found, tmp_path / "verdicts.jsonl", unscored_limit=100)
    return measured("scripted", verdicts, seed=0, samples=500)


@pytest.mark.parametrize("unscored", [None, "q0"])
def test_a_judge_that_knows_is_right_always_on_what_it_scored(tmp_path, unscored):
    found = calibration(tmp_path, lambda q: None if q.pair.item.query_id == unscored else 1.0)
    assert (found.accuracy.value, found.accuracy.low) == (1.0, 1.0)
    assert (found.position_lean, found.above_chance) == (0.0, True)
    assert abs(found.length_lean) < 1e-9
    assert (found.unscored > 0) is (unscored is not None)
    assert found.accuracy.n + found.unscored == 2 * 22


def test_a_judge_that_takes_the_first_is_at_chance_and_leans(tmp_path):
    found = calibration(tmp_path, lambda q: q.score("A"))
    assert found.accuracy.value == 0.5
    assert found.position_lean == 50.0
    assert not found.above_chance
    assert "not above chance" in found.sentence()


def test_a_judge_that_takes_the_longer_leans_to_it(tmp_path):
    def longer(q):
        a, b = q.responses
        return q.score("A" if len(a) > len(b) else "B" if len(a) < len(b) else "tie")

    found = calibration(tmp_path, longer)
    assert found.accuracy.value == pytest.approx(0.5, abs=0.1)
    assert found.length_lean > 30
    assert found.position_lean == 0.0
