"""verdicts.jsonl: nothing that was recorded is lost, and a bad line is named by its number."""

import json

import pytest

from sami.errors import InputError
from sami.evaluation.verdicts import Verdict, append_verdict, read_verdicts, repair_verdicts

RECORD = {
    "query_id": "q1",
    "candidate": "iteration-1",
    "baseline": "base",
    "judge": "verifier",
    "order": "candidate_first",
    "score": 1,
    "candidate_chars": 90,
    "baseline_chars": 120,
    "candidate_tokens": 20,
    "baseline_tokens": 30,
    "raw": "A",
    "cost": None,
}


def verdict(**changes):
    return Verdict(**RECORD | changes)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_verdict_comes_back_as_it_was_appended(tmp_path):
    principles = (("brief", True), ("pirate", False))
    more = {"constitution_id": "c1", "principles": principles, "learned": False, "key": "abc", "reason": "no verdict"}
    full = verdict(order="baseline_first", score=None, raw="„?“\n", cost=0.25, **more)
    path = tmp_path / "verdicts.jsonl"
    append_verdict(path, verdict())
    append_verdict(path, full)
    assert read_verdicts(path) == [verdict(), full]
    first, _ = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == RECORD  # absent optional fields are not written


def test_a_plain_principle_id_means_the_principle_itself(tmp_path):
    (verdict,) = read_verdicts(write(tmp_path / "v.jsonl", {**RECORD, "principles": ["brief", ["pirate", False]]}))
    assert verdict.principles == (("brief", True), ("pirate", False))


def test_half_a_surrogate_pair_in_the_judges_words_loses_no_verdict(tmp_path):
    append_verdict(tmp_path / "v.jsonl", verdict(raw="A \ud83d"))
    assert read_verdicts(tmp_path / "v.jsonl") == [verdict(raw="A ?")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"order": "first"}, ["'order'", "'first'", "candidate_first"]),
        ({"order": ["candidate_first"]}, ["'order'"]),
        ({"score": 1.5}, ["'score'", "1.5", "0 to 1"]),
        ({"score": "1"}, ["'score'", "'1'"]),
        ({"score": True}, ["'score'", "True"]),
        ({"score": float("nan")}, ["'score'", "nan"]),
        ({"candidate_chars": -1}, ["'candidate_chars'", "-1"]),
        ({"baseline_tokens": 1.5}, ["'baseline_tokens'", "whole number"]),
        ({"query_id": 7}, ["'query_id'", "string"]),
        ({"judge": " "}, ["'judge'", "not empty"]),
        ({"cost": float("inf")}, ["'cost'"]),
        ({"learned": 1}, ["'learned'", "true, false or null"]),
        ({"principles": [["brief", 1]]}, ["'principles'", "list"]),
        ({"raw": 3}, ["'raw'"]),
        ({"scores": 1}, ["unknown field 'scores'", "'score'"]),
        ({"zzz": 1}, ["unknown field 'zzz'", "query_id"]),
        ({"candidate": "base"}, ["'base'", "compared with itself"]),
    ],
)
def test_a_wrong_field_is_named_with_its_line(tmp_path, change, words):
    path = write(tmp_path / "v.jsonl", RECORD, {**RECORD, "query_id": "q2"}, {**RECORD, "query_id": "q3", **change})
    with pytest.raises(InputError) as error:
        read_verdicts(path)
    for word in [f"Line 3 of {path}: ", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [({}, "repeat one judgement"), ({"raw": "B"}, "repeat one judgement"), ({"score": 0}, "contradict each other")],
)
def test_two_verdicts_about_one_pair_in_one_order_are_refused_with_both_lines(tmp_path, change, words):
    path = write(tmp_path / "v.jsonl", RECORD, {**RECORD, "order": "baseline_first"}, {**RECORD, **change})
    with pytest.raises(InputError, match=f"Lines 1 and 3 of .* {words}.*'q1'"):
        read_verdicts(path)


@pytest.mark.parametrize(
    "change",
    [{"constitution_id": "c2"}, {"principles": ["brief"]}, {"judge": "human"}, {"candidate": "iteration-2"}],
)
def test_verdicts_about_different_things_are_kept(tmp_path, change):
    assert len(read_verdicts(write(tmp_path / "v.jsonl", RECORD, {**RECORD, **change}))) == 2


@pytest.mark.parametrize("name", ["query_id", "score", "cost"])
def test_every_required_field_is_asked_for(tmp_path, name):
    path = write(tmp_path / "v.jsonl", {k: v for k, v in RECORD.items() if k != name})
    with pytest.raises(InputError, match=f"Line 1 of .*: no field '{name}'"):
        read_verdicts(path)


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"null", b'{"query_id": "q', b"\xff\xfe", b"[" * 100_000, b'{"query_id": "a", "query_id": "b"}'],
)
def test_a_line_that_is_not_an_object_is_named(tmp_path, line):
    path = write(tmp_path / "v.jsonl", RECORD)
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match="Line 3 of "):
        read_verdicts(path)


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    path = write(tmp_path / "v.jsonl", RECORD)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_verdicts(path) == [verdict()]


def test_a_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_verdicts(tmp_path / "none.jsonl")


def test_a_wrong_value_is_refused_before_it_is_written():
    with pytest.raises(InputError, match="'score'"):
        verdict(score=2.0)


def test_a_cut_at_any_byte_is_repaired_to_the_whole_lines(tmp_path):
    first, second = verdict(), verdict(query_id="q2", raw="é")
    path = tmp_path / "v.jsonl"
    append_verdict(path, first)
    kept = path.stat().st_size
    append_verdict(path, second)
    whole = path.read_bytes()
    for cut in range(kept, len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = cut >= len(whole) - 1  # only the newline is missing
        if not complete and cut > kept:
            with pytest.raises(InputError, match="Line 2 of "):
                read_verdicts(path)
        assert repair_verdicts(path) == (0 if complete else cut - kept)
        assert read_verdicts(path) == ([first, second] if complete else [first])
        append_verdict(path, verdict(query_id="q3"))
        assert len(read_verdicts(path)) == (3 if complete else 2)


def test_repair_leaves_whole_and_missing_files_alone(tmp_path):
    path = write(tmp_path / "v.jsonl", RECORD)
    before = path.read_bytes()
    assert repair_verdicts(path) == 0
    assert path.read_bytes() == before
    assert repair_verdicts(tmp_path / "none.jsonl") == 0
    assert not (tmp_path / "none.jsonl").exists()
