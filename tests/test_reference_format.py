"""Constitutions and contrasts of the reference implementation: what is taken from them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from sami.errors import InputError
from sami.principles import load_principles
from sami.reference_format import WrittenContrast, opposed, read_constitutions, read_contrasts, write_principles
from tests.support.places import SHARED
from tests.support.reference_format import hh_prompt, numbered, row, tldr_prompt

DATA = SHARED / "data"
BRIEF, LONG = "Summaries are brief.", "Summaries are long."
WHOLE, PARTIAL = "Summaries leave nothing out.", "Summaries leave most out."


def constitution(positive: list[str], negative: list[str], names: list[str] | None = None) -> dict[str, Any]:
    """A constitution file; a statement that is not its own opposite is a negative one."""
    value = {"positive": numbered(*positive), "negative": numbered(*negative)}
    if names is not None:
        signs = ["pos" if mine == theirs else "neg" for mine, theirs in zip(positive, negative, strict=True)]
        value["identifiers"] = {
            "positive": [f"pos {name}" for name in names],
            "negative": [f"{sign} {name}" for sign, name in zip(signs, names, strict=True)],
        }
    return value


@pytest.fixture
def save(tmp_path):
    def save(value: Any, name: str = "file.json") -> Path:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(value if isinstance(value, str) else json.dumps(value))
        return file

    return save


def texts(sources: list[Path]) -> dict[str, tuple[str, str]]:
    return {p.id: (p.definition, p.antithesis) for p in opposed(read_constitutions(sources))}


# Constitutions.


def test_a_folder_of_constitutions_gives_each_principle_once_with_its_antithesis(save):
    save(constitution([BRIEF, WHOLE], [LONG, WHOLE], ["concise", "comprehensive"]), "c/0.json")
    save(constitution([WHOLE, BRIEF], [PARTIAL, BRIEF], ["comprehensive", "concise"]), "c/1.json")
    file = save(constitution([BRIEF, WHOLE], [LONG, PARTIAL], ["concise", "comprehensive"]), "c/2.json")
    assert texts([file.parent]) == {"concise": (BRIEF, LONG), "comprehensive": (WHOLE, PARTIAL)}


def test_without_identifiers_opposites_follow_from_what_differs(save):
    one = save(constitution([BRIEF, WHOLE], [WHOLE, LONG]), "1.json")
    both = save(constitution([WHOLE, BRIEF], [LONG, PARTIAL]), "2.json")
    # The second file alone does not say which replaces which; the first one decides.
    assert texts([both, one]) == {"principle-1": (WHOLE, PARTIAL), "principle-2": (BRIEF, LONG)}
    with pytest.raises(InputError, match="do not show the opposite"):
        texts([both])


def test_a_name_that_is_not_an_id_becomes_one(save):
    assert list(texts([save(constitution([BRIEF], [LONG], ["to the point!"]))])) == ["to-the-point"]
    assert list(texts([save(constitution([BRIEF], [LONG], ["_brief"]))])) == ["brief"]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("{", "is not valid JSON"),
        ("[]", "not in a format of the reference code"),
        ({}, "not in a format of the reference code"),
        ({"positive": numbered(BRIEF), "negative": 3}, "numbered list in one string"),
        ({"positive": "", "negative": ""}, "lists 0 positive and 0 negative"),
        (constitution([BRIEF], [LONG]) | {"negative": numbered(LONG, PARTIAL)}, "lists 1 positive and 2 negative"),
        (constitution([BRIEF], [LONG]) | {"identifiers": {"positive": ["pos a"]}}, '"pos NAME"'),
        (constitution([BRIEF], [LONG]) | {"identifiers": {"positive": ["pos"], "negative": ["neg"]}}, '"pos NAME"'),
        (constitution([BRIEF], [BRIEF], ["a"]), f"the opposite of the statement '{BRIEF}'"),
        (constitution([BRIEF, WHOLE], [LONG, PARTIAL], ["a", "a"]), "two different statements 'a'"),
        (constitution([BRIEF], [BRIEF.upper()], ["a"]), "the antithesis is the definition itself"),
        (constitution([BRIEF], [""], ["a"]), "at least 1 character"),
    ],
)
def test_a_constitution_that_gives_no_principles_is_refused(save, value, part):
    file = save(value)
    with pytest.raises(InputError) as caught:
        texts([file])
    assert part in str(caught.value)


def test_two_writers_antitheses_of_one_principle_are_refused(save):
    one = save(constitution([BRIEF], [LONG], ["concise"]), "1.json")
    other = save(constitution([BRIEF], [PARTIAL], ["concise"]), "2.json")
    with pytest.raises(InputError, match="files of one writer"):
        texts([one, other])
    renamed = save(constitution([BRIEF], [LONG], ["short"]), "3.json")
    with pytest.raises(InputError, match="calls a statement 'short' that another file calls 'concise'"):
        texts([one, renamed])


# Contrasts.


def test_contrasts_are_taken_apart_into_query_statements_and_responses(save):
    file = save(
        {
            "3": [
                row(hh_prompt("Why\n\nHuman: tea?", BRIEF, WHOLE), " Because. "),
                row(hh_prompt("Why\n\nHuman: tea?", LONG), ""),
            ],
            "9": [
                row(tldr_prompt("1. I like\n\ntea.", WHOLE), "The post."),
                row(tldr_prompt("1. I like\n\ntea.", PARTIAL), "Post."),
            ],
        }
    )
    assert read_contrasts(file) == [
        WrittenContrast("3", "Why\n\nHuman: tea?", [[BRIEF, WHOLE], [LONG]], ["Because.", ""]),
        WrittenContrast("9", "1. I like\n\ntea.", [[WHOLE], [PARTIAL]], ["The post.", "Post."]),
    ]


def test_principles_follow_from_contrasts_too(save):
    file = save(
        {
            "0": [row(hh_prompt("Tea?", BRIEF, WHOLE), "A"), row(hh_prompt("Tea?", PARTIAL, LONG), "B")],
            "1": [row(hh_prompt("Salt?", WHOLE, BRIEF), "A"), row(hh_prompt("Salt?", LONG, WHOLE), "B")],
        }
    )
    assert texts([file]) == {"principle-1": (BRIEF, LONG), "principle-2": (WHOLE, PARTIAL)}


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        (3, "not a list of at least two objects"),
        ([row(hh_prompt("Tea?", BRIEF), "A")], "not a list of at least two objects"),
        ([row(hh_prompt("Tea?", BRIEF), "A"), {"prompt": "x"}], "not a list of at least two objects"),
        ([row(hh_prompt("Tea?", BRIEF), "A"), row(hh_prompt("Salt?", LONG), "B")], "the same query"),
        ([row("Tea?", "A"), row("Tea?", "B")], "no constitution and query are found"),
        ([row(hh_prompt("Tea?"), "A"), row(hh_prompt("Tea?"), "B")], "no constitution and query are found"),
        ([row(hh_prompt("Tea?", BRIEF) + " Yes", "A")] * 2, "no constitution and query are found"),
    ],
)
def test_a_contrast_of_another_form_is_refused_by_its_id(save, rows, part):
    file = save({"17": rows})
    with pytest.raises(InputError) as caught:
        read_contrasts(file)
    assert "Contrast 17" in str(caught.value)
    assert part in str(caught.value)


# The command.


def test_the_command_writes_a_principles_file_and_overwrites_none(sami, save, tmp_path):
    source = save(constitution([BRIEF, WHOLE], [LONG, PARTIAL], ["concise", "comprehensive"]))
    target = tmp_path / "new" / "principles.yaml"
    assert sami("import-principles", source, "--output", target)[:2] == (0, f"{target}\n")
    assert [(p.id, p.definition, p.antithesis) for p in load_principles(target)] == [
        ("concise", BRIEF, LONG),
        ("comprehensive", WHOLE, PARTIAL),
    ]
    with pytest.raises(InputError, match="exists and is not overwritten"):
        write_principles([], target)
    with pytest.raises(InputError, match="cannot be created"):
        write_principles([], target / "p.yaml")


def test_a_source_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no \.json file"):
        read_constitutions([tmp_path])
    with pytest.raises(InputError, match="does not exist"):
        read_constitutions([tmp_path / "absent"])


# The real files.


@pytest.mark.skipif(not DATA.exists(), reason="the shared data are absent")
@pytest.mark.parametrize("writer", ["opus", "mistral"])
def test_the_references_constitutions_hold_two_principles(writer):
    principles = opposed(read_constitutions([DATA / "tldr" / "constitutions" / writer]))
    assert [p.id for p in principles] == ["concise", "comprehensive"]
    assert all(p.definition.startswith("Summaries should be") for p in principles)
    assert "lengthy" in principles[0].antithesis


@pytest.mark.skipif(not DATA.exists(), reason="the shared data are absent")
def test_the_references_contrasts_are_read_with_their_principles():
    file = DATA / "hh" / "reference_format_contrasts.json"
    written = read_contrasts(file)
    assert (len(written), {len(c.constitutions) for c in written}) == (150, {2})
    assert {len(statements) for c in written for statements in c.constitutions} == {2}
    principles = opposed(read_constitutions([file]))
    assert len(principles) == 2
    vague = next(p for p in principles if "vague and ambiguous" in p.antithesis)
    assert "depth and clarity" in vague.definition
