"""Policies from files of responses: what matches, and what is refused with the line's number."""

import json
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.evaluation.pairs import pair_up
from sami.evaluation.response_files import aligned, answering, check_matches, first_queries, from_file
from sami.principles import Principle
from tests.support.judging import BRIEF, KIND, item

QUERIES = {"1": "One?", "2": "Two?"}
TWO_LINES = Principle(id="two", definition="Café first.\nAdd nothing.", antithesis="Tea first.\nAdd all.")


def write(file, rows):
    lines = [json.dumps(dict(zip(("id", "constitution", "response"), row, strict=True))) for row in rows]
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_file_of_responses_is_a_policy(tmp_path):
    rows = [("1", "1. Be brief.\n2. Be stern.", "Yes, it is."), (2.0, "Be odd.", "")]
    read = from_file(write(tmp_path / "new.jsonl", rows), QUERIES, [BRIEF, KIND])
    [(first, said), (second, nothing)] = read.responses.items()
    assert read.name == "new"
    assert (first.query, first.principles, first.learned) == ("One?", (("brief", True), ("kind", False)), False)
    assert (said.text, said.tokens) == ("Yes, it is.", 5)
    assert (second.query, second.principles, second.learned, nothing.tokens) == ("Two?", None, None, 0)
    assert read.words == 1.5
    assert list(first_queries(read, 1).responses) == [first]


@pytest.mark.parametrize(
    ("constitution", "found"),
    [
        ("Be brief. ", (("brief", True),)),
        (" Be\u00a0 brief.\r\n", (("brief", True),)),
        ("Ｂｅ brief.", (("brief", True),)),
        ("1. Be long.\r\n2) Be kind.", (("brief", False), ("kind", True))),
        ("Be long.\n\nBe kind.", (("brief", False), ("kind", True))),
        ("Cafe\u0301 first.\nAdd nothing.\n", (("two", True),)),
        ("1. Tea first.\n   Add all.\n2. Be brief.", (("two", False), ("brief", True))),
        ("Be Brief.", None),
        ("1. Be brief.\n2. Be odd.", None),
    ],
)
def test_constitutions_match_up_to_white_space_and_unicode(tmp_path, constitution, found):
    file = write(tmp_path / "new.jsonl", [("1", constitution, "r")])
    [one] = from_file(file, QUERIES, [BRIEF, KIND, TWO_LINES]).responses
    assert one.principles == found


def test_policies_match_up_to_white_space_and_unicode(tmp_path):
    one = from_file(write(tmp_path / "one.jsonl", [("1", "Be\nbrief é.", "r"), ("2", "Be brief.", "r")]), QUERIES)
    other = from_file(write(tmp_path / "other.jsonl", [("2", "Be brief. ", "s"), ("1", "Be brief é.", "s")]), QUERIES)
    pairs = pair_up(*aligned([one, other]))
    assert [(p.item, p.candidate_response.text, p.baseline_response.text) for p in pairs] == [
        (read, "r", "s") for read in one.responses
    ]


def line(**fields):
    return json.dumps({"id": "1", "constitution": "c", "response": "r"} | fields)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (line(response=None), r"Line 1 .*None instead of a text in 'response'"),
        ('{"id": "1", "response": "r"}', r"Line 1 .* has no text in 'constitution'"),
        (line() + '\n{"id"', "Line 2 .*not valid JSON"),
        (line(id="9"), "Line 1 .*'9', which is not among the 2 queries given"),
        (line(id=1.5), r"Line 1 .* has 1\.5 in 'id', which must be a text or a whole number"),
        (line(id=True), r"Line 1 .* has True in 'id'"),
        (line() + "\n\n" + line(id=1, constitution="c "), "Lines 1 and 3 .* both answer the query '1'"),
        (line(response="\ud83d"), "Line 1 .*half a surrogate pair"),
        ("", "contains no responses"),
    ],
)
def test_a_wrong_file_of_responses_is_refused(tmp_path, text, words):
    (tmp_path / "new.jsonl").write_text(text)
    with pytest.raises(InputError, match=words):
        from_file(tmp_path / "new.jsonl", QUERIES)


def test_an_id_that_may_have_been_dropped_from_the_queries_is_reported_as_such(tmp_path):
    file = write(tmp_path / "new.jsonl", [("9", "c", "r")])
    with pytest.raises(InputError, match=r"not used when it was read \(duplicates 1\)"):
        from_file(file, QUERIES, dropped="duplicates 1")


def test_constitutions_that_match_no_principle_are_counted_and_refused_above_a_share(tmp_path, capsys):
    rows = [("1", "Be brief.", "r"), ("2", "Be brief.", "r"), ("1", "Be odd.", "r"), ("2", "Be long.", "r")]
    items = list(from_file(write(tmp_path / "new.jsonl", rows), QUERIES, [BRIEF]).responses)
    check_matches(items, Path("p.yaml"), 25.0)
    assert "1 of 4 responses (25.0 %)" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"1 of 4 responses \(25\.0 %\) .* p\.yaml.* 'Be odd\.', for the query '1'"):
        check_matches(items, Path("p.yaml"), 24.9)
    check_matches(items[:2], Path("p.yaml"), 0.0)
    assert capsys.readouterr().err == ""


def test_policies_that_answered_different_queries_are_refused(tmp_path):
    one = from_file(write(tmp_path / "one.jsonl", [("1", "c", "r"), ("2", "c", "r")]), QUERIES)
    fewer = from_file(write(tmp_path / "fewer.jsonl", [("1", "c", "r")]), QUERIES)
    other = from_file(write(tmp_path / "other.jsonl", [("1", "c", "r"), ("2", "d", "r")]), QUERIES)
    for candidate, baseline in ((one, fewer), (fewer, one), (one, other)):
        with pytest.raises(InputError, match=r"no response to 1 of the . pairs .*'2'"):
            pair_up(candidate, baseline)
    with pytest.raises(InputError, match="cannot be compared with itself"):
        pair_up(one, one)


def test_the_items_of_a_run_are_found_in_a_file_by_query_and_constitution(tmp_path, capsys):
    rows = [("q0", "Be  brief.", "r"), ("q1", "Be brief.", "s")]
    read = from_file(write(tmp_path / "one.jsonl", rows), None)
    found = answering(read, [item(0)], "named")
    assert (found.name, [r.text for r in found.responses.values()]) == ("named", ["r"])
    assert "named: 1 of 2 responses answer nothing that this run evaluates" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"lack 1 of the run's 2 .*'q7'"):
        answering(read, [item(0), item(7)], "named")
