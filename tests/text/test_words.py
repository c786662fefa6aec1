"""Words: how many there are, how many differ, and how texts begin."""

import math

import pytest

from sami.text.words import commonest_opening, distinct_n, opening, word_count, word_spans


def test_distinct_2_of_hand_counted_texts():
    assert distinct_n(["a b c d"]) == 1.0
    assert distinct_n(["a b a b a"]) == 0.5  # ab ba ab ba
    assert distinct_n(["a b c d", "a b a b a"]) == 0.75
    assert distinct_n(["The THE the, the"], n=1) == 0.25


def test_distinct_n_does_not_see_past_the_first_50_words():
    fifty = " ".join(f"w{i}" for i in range(50))
    assert distinct_n([fifty + " loop" * 500]) == 1.0
    assert distinct_n([fifty.replace("w49", "w0 w1") + " x"]) == 1.0
    assert distinct_n([fifty.replace("w48 w49", "w0 w1")]) == 48 / 49


def test_distinct_n_leaves_out_responses_without_an_n_gram():
    assert distinct_n(["", "one", "a b"]) == 1.0
    assert math.isnan(distinct_n(["", "one"]))
    assert math.isnan(distinct_n([]))
    with pytest.raises(ValueError, match="not 0"):
        distinct_n(["a b"], n=0)


def test_openings_are_compared_without_case_and_punctuation():
    assert opening("**Thank you**, for asking!") == "thank you for"
    assert opening("Aye!") == "aye"
    assert opening("") == ""
    assert commonest_opening(["Thank you for it", "THANK you, for that", "Aye", ""]) == ("thank you for", 0.5)
    assert commonest_opening(["", "…"]) == ("", 0.0)
    assert commonest_opening([]) == ("", 0.0)
    with pytest.raises(ValueError, match="at least one word"):
        opening("Aye", words=0)


def test_words_are_counted_as_a_reader_would():
    assert word_count("Don't cut the child-friendly answer — it’s 3.") == 8
    assert word_count("nai\u0308ve हिन्दी भाषा") == 3
    assert word_count("__bold__ *words* 🏴‍☠️ !") == 2
    assert word_count("") == 0
    assert list(word_spans("Ｐirate’s ﬁne")) == [(0, 8, "pirate's"), (9, 12, "fine")]
