"""Asking a judge: what is recorded, what is asked again and what is not, and what survives kill -9."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from sami.errors import InputError
from sami.evaluation import ask as ask_module
from sami.evaluation.ask import ask, questions_of
from sami.evaluation.judges import NO_ANSWER, Judgement, Question
from sami.evaluation.verdicts import read_verdicts
from tests.support.judging import Scripted, pair, pairs


def candidate_wins(_):
    return 1.0


def test_both_orders_of_each_pair_are_asked_and_recorded(tmp_path):
    judge = Scripted(candidate_wins)
    verdicts = ask(judge, pairs(3), tmp_path / "verdicts.jsonl")
    assert [(v.query_id, v.order) for v in verdicts] == [
        (f"q{n}", order) for n in range(3) for order in ("candidate_first", "baseline_first")
    ]
    assert read_verdicts(tmp_path / "verdicts.jsonl") == verdicts
    first = verdicts[0]
    assert (first.candidate, first.baseline, first.judge, first.score) == ("iteration-1", "base", "scripted", 1.0)
    assert (first.candidate_chars, first.baseline_tokens, first.constitution_id) == (9, 6, "q0-brief/0")


def test_random_order_asks_each_pair_once_and_always_the_same():
    drawn = [[q.order for q in questions_of(pairs(40), order="random", seed=0)] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 40
    assert 10 < drawn[0].count("candidate_first") < 30
    assert drawn[0] != [q.order for q in questions_of(pairs(40), order="random", seed=1)]


def test_a_label_scores_the_response_that_stood_there():
    questions = Question(pair(), "candidate_first"), Question(pair(), "baseline_first")
    assert questions[0].responses == questions[1].responses[::-1]
    scores = [[one.score(label) for label in ("A", "B", "tie")] for one in questions]
    assert scores == [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]


def test_what_is_recorded_is_not_asked_again(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    before = ask(Scripted(candidate_wins), pairs(3), file)
    content = file.read_bytes()
    judge = Scripted(lambda _: pytest.fail("asked again"))
    assert ask(judge, pairs(3), file) == before
    assert file.read_bytes() == content
    more = Scripted(candidate_wins)
    assert len(ask(more, pairs(5), file)) == 10
    assert sorted(q.pair.item.query_id for q in more.asked) == ["q3", "q3", "q4", "q4"]


@pytest.mark.parametrize("changed", ["version", "constitution", "query", "candidate", "baseline"])
def test_a_verdict_of_another_question_or_judge_is_asked_again_and_set_aside(tmp_path, changed):
    file = tmp_path / "verdicts.jsonl"
    ask(Scripted(candidate_wins), [pair()], file)
    judge = Scripted(lambda _: 0.0, version=2 if changed == "version" else 1)
    other = {
        "version": pair(),
        "constitution": pair(constitution="Be long."),
        "query": replace(pair(), item=replace(pair().item, query="What else?")),
        "candidate": pair(candidate="Another."),
        "baseline": pair(baseline="Another."),
    }[changed]
    verdicts = ask(judge, [other], file)
    assert len(judge.asked) == 2
    assert [v.score for v in verdicts] == [0.0, 0.0]
    assert read_verdicts(file) == verdicts  # one line for each question, whatever was asked before
    assert [v.score for v in read_verdicts(tmp_path / "superseded.jsonl")] == [1.0, 1.0]


def test_the_same_texts_from_another_policy_are_not_paid_for_twice(tmp_path):
    judge, names = Scripted(candidate_wins), ("iteration-1", "iteration-2")
    verdicts = ask(judge, [pair(names=(name, "base")) for name in names], tmp_path / "verdicts.jsonl")
    assert len(judge.asked) == 2
    assert [(v.candidate, v.score) for v in verdicts] == [(name, 1.0) for name in names for _ in range(2)]
    assert len(read_verdicts(tmp_path / "verdicts.jsonl")) == 4


def test_identical_responses_are_a_tie_that_nobody_is_asked_about(tmp_path):
    judge = Scripted(lambda _: pytest.fail("asked"))
    verdicts = ask(judge, [pair(candidate="Same.", baseline="Same.")], tmp_path / "verdicts.jsonl")
    assert [v.score for v in verdicts] == [0.5, 0.5]


def test_judges_do_not_share_verdicts(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    ask(Scripted(candidate_wins, "one"), pairs(2), file)
    other = Scripted(lambda _: 0.0, "other", version=2)
    assert {v.score for v in ask(other, pairs(2), file)} == {0.0}
    assert len(read_verdicts(file)) == 8


def test_too_many_unscored_verdicts_fail_and_are_kept(tmp_path):
    file = tmp_path / "verdicts.jsonl"
    judge = Scripted(lambda q: None if q.pair.item.query_id == "q0" else 1.0)
    with pytest.raises(InputError, match=r"2 of 20 verdicts unscored \(10\.0 %.*5 %.*the answer is empty"):
        ask(judge, pairs(10), file)
    assert len(read_verdicts(file)) == 20
    silent = Scripted(lambda _: pytest.fail("asked again"))
    assert [v.score for v in ask(silent, pairs(10), file, unscored_limit=10)].count(None) == 2


def test_all_unscored_fails_whatever_the_limit(tmp_path):
    with pytest.raises(InputError, match="4 of 4"):
        ask(Scripted(lambda _: None), pairs(2), tmp_path / "verdicts.jsonl", unscored_limit=100)


def test_questions_that_nobody_answered_are_asked_again_and_unreadable_answers_are_not(tmp_path):
    class Failing(Scripted):
        def judge(self, questions, record, among):
            for q in questions:
                gone = q.pair.item.query_id == "q0"
                record(q, Judgement(None, reason=f"{NO_ANSWER}: it took too long" if gone else "no verdict line"))

    file = tmp_path / "verdicts.jsonl"
    with pytest.raises(InputError):
        ask(Failing(candidate_wins), pairs(2), file)
    judge = Scripted(candidate_wins)
    ask(judge, pairs(2), file, unscored_limit=50)
    assert [q.pair.item.query_id for q in judge.asked] == ["q0", "q0"]
    assert sorted((v.query_id, v.score) for v in read_verdicts(file) if v.score) == [("q0", 1.0), ("q0", 1.0)]
    assert len(read_verdicts(file)) == 4


# kill -9.


def _ask_until(stop, file):
    """Ask about 5 pairs; die in the middle of writing line number `stop`."""
    append = ask_module.append_verdict
    written = 0

    def deadly(path, verdict):
        nonlocal written
        written += 1
        if written == stop:
            with path.open("a") as half:
                half.write(json.dumps(verdict.as_json())[:40])
                half.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, verdict)

    ask_module.append_verdict = deadly
    ask(Scripted(lambda q: float(int(q.pair.item.query_id[1:]) % 2)), pairs(5), file)


def test_a_killed_process_loses_nothing_and_records_nothing_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    exits = []
    for stop, name in ((4, "killed"), (3, "killed"), (None, "killed"), (None, "through")):
        (tmp_path / name).mkdir(exist_ok=True)
        process = context.Process(target=_ask_until, args=(stop, tmp_path / name / "verdicts.jsonl"))
        process.start()
        process.join(timeout=60)
        exits.append(process.exitcode)
    assert exits == [-signal.SIGKILL, -signal.SIGKILL, 0, 0]
    killed, through = (
        sorted((tmp_path / n / "verdicts.jsonl").read_text().splitlines()) for n in ("killed", "through")
    )
    assert killed == through
    assert len(through) == 10
