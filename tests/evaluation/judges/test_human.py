"""Verdicts of people."""

import json
from dataclasses import replace

import pytest

from sami.errors import InputError
from sami.evaluation.ask import ask, questions_of
from sami.evaluation.judges.human import Human
from sami.recipe import HumanJudge
from tests.support.judging import pair, pairs, said


def human(folder, *lines):
    file = folder / "people.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Human(HumanJudge(kind="human", path=str(file)))


def line(number, **more):
    return {"query_id": f"q{number}", "candidate": "iteration-1", "baseline": "base", "score": 1, **more}


def test_people_say_what_their_file_says_and_nothing_else(tmp_path):
    judge = human(
        tmp_path, line(0, note="clear"), line(1, score=0.5, order="baseline_first"), line(2, constitution_id="another")
    )
    assert judge.name == "human:people"
    found = said(judge, questions_of(pairs(3), order="both", seed=0))
    assert {key: j.score for key, j in found.items()} == {
        ("q0", "candidate_first"): 1.0,
        ("q0", "baseline_first"): 1.0,
        ("q1", "baseline_first"): 0.5,
    }
    assert found["q0", "candidate_first"].raw == "clear"


def test_an_edited_file_of_people_replaces_what_it_said(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    assert [v.score for v in ask(human(tmp_path, line(0)), pairs(1), file)] == [1.0, 1.0]
    assert [v.score for v in ask(human(tmp_path, line(0, score=0)), pairs(1), file)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"score": 2}, "0, 0.5 or 1"),
        ({"score": None}, "score"),
        ({"order": "sideways"}, "order"),
        ({"candidat": "x"}, "candidat"),
        ({"candidate": "base"}, "both 'base'"),
    ],
)
def test_a_wrong_line_of_people_is_named(tmp_path, wrong, words):
    with pytest.raises(InputError, match=f"Line 2 of .*people.*{words}"):
        human(tmp_path, line(0), line(1, **wrong))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"score": 0}, "contradict each other"),
        ({"score": 0, "order": "baseline_first"}, "contradict each other"),
        ({"score": 0, "constitution_id": "q0-brief/0"}, "contradict each other"),
        ({}, "repeat one verdict"),
    ],
)
def test_two_lines_about_one_pair_are_refused(tmp_path, second, words):
    with pytest.raises(InputError, match=f"Lines 1 and 3 of .* {words}"):
        human(tmp_path, line(0), line(1), line(0, **second))


def test_lines_about_the_two_orders_or_about_two_constitutions_may_differ(tmp_path):
    for name, values in (("order", ["candidate_first", "baseline_first"]), ("constitution_id", ["a", "b"])):
        human(tmp_path, line(0, **{name: values[0]}), line(0, score=0, **{name: values[1]}))


@pytest.mark.parametrize(
    "wrong",
    [{"query_id": "q9"}, {"candidate": "iteration-2"}, {"baseline": "bass"}, {"constitution_id": "q1-brief/7"}],
)
def test_a_verdict_that_matches_no_pair_is_refused_with_its_line(tmp_path, wrong):
    judge = human(tmp_path, line(0), line(1, **wrong))
    with pytest.raises(InputError, match=rf"1 of the 2 verdicts in .* line 2: .*{next(iter(wrong.values()))}"):
        ask(judge, pairs(2), tmp_path / "verdicts.jsonl")
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_a_number_is_an_id_and_a_byte_order_mark_is_skipped(tmp_path):
    file = tmp_path / "people.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({**line(0), "query_id": 0}).encode())
    one = pair()
    numbered = replace(one, item=replace(one.item, query_id="0"))
    found = said(Human(HumanJudge(kind="human", path=str(file))), questions_of([numbered], order="both", seed=0))
    assert [j.score for j in found.values()] == [1.0, 1.0]
