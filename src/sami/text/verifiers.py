"""Deterministic checks of a response's text, as a principles file has them under `verifier:`.

    verifier: {check: word_count, max: 40}
    verifier: {check: all_of, specs: [{check: lines, min_lines: 4}, {check: rhyme, min_share: 0.5}]}

A new check is one class with `check` and `holds`, and its name in `VerifierSpec`.
Words, sentences and lists are found in every language. `reading_grade` and `rhyme` know English only: no response in
another language passes them, nor their negation.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Annotated, Literal, Self

import regex
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sami.text import english, lexicon, reading
from sami.text.languages import ENGLISH, language_of
from sami.text.reading import HAS_WORD, ITEM
from sami.text.words import caseless, word_count


class Verifier(BaseModel, ABC):
    """One check of a response's text. Its parameters are checked at construction; unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def passes(self, response: str) -> bool:
        """Whether the response does what the check asks.

        An empty response passes nothing, and neither does one in a language that the check cannot read.
        """
        text = reading.clean(response)
        return not reading.is_blank(text) and self.reads(text) and self.holds(text)

    def reads(self, text: str) -> bool:
        """Whether the check knows the language of a cleaned text."""
        return True

    def english_checks(self) -> set[str]:
        """The names of the checks, this one or those it combines, that know English only."""
        return set()

    @abstractmethod
    def holds(self, text: str) -> bool:
        """The check itself, of a text that was cleaned and is not empty. Callers want `passes`."""


def _require_limit(check: str, **limits: float | None) -> None:
    """Refuse a check without any limit.

    Raises:
        ValueError: every limit is None.
    """
    if all(limit is None for limit in limits.values()):
        names = ", ".join(limits)
        raise ValueError(f"A {check} check without a limit passes every response. Give at least one of: {names}.")


def _require_order(check: str, low: float | None, high: float | None) -> None:
    """Refuse an empty range.

    Raises:
        ValueError: low > high.
    """
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"A {check} check from {low} to {high} passes no response. Give a minimum that is not above the maximum."
        )


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


class _EnglishOnly(Verifier):
    check: str

    def reads(self, text: str) -> bool:
        return language_of(text) == ENGLISH

    def english_checks(self) -> set[str]:
        return {self.check}


class _Count(Verifier):
    """A count between `min` and `max`, both included. At least one of them is required."""

    check: str
    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        _require_limit(self.check, min=self.min, max=self.max)
        _require_order(self.check, self.min, self.max)
        return self

    @abstractmethod
    def count(self, text: str) -> int:
        """The number that is compared with the limits."""

    def holds(self, text: str) -> bool:
        return _within(self.count(text), self.min, self.max)


class WordCount(_Count):
    """Words, as they are counted everywhere else: "well-known" has two. The marks of list items are not words."""

    check: Literal["word_count"] = "word_count"

    def count(self, text: str) -> int:
        return word_count(reading.without_marks(text))


class SentenceCount(_Count):
    """Sentences. A list item is at least one; a last sentence without a full stop counts."""

    check: Literal["sentence_count"] = "sentence_count"

    def count(self, text: str) -> int:
        return reading.sentences(text)


class Exclamations(_Count):
    """Exclamation marks: three in "Look!!!"."""

    check: Literal["exclamations"] = "exclamations"

    def count(self, text: str) -> int:
        return sum(map(reading.is_exclamation, filter(reading.is_stop, text)))


class ListItems(Verifier):
    """Lines that are items of a list: a mark such as "1.", "(2)", "３、", "-" or "•", and a word."""

    check: Literal["list"] = "list"
    style: Literal["numbered", "bulleted", "any"] = "any"
    min_items: int = Field(default=2, ge=1)

    def holds(self, text: str) -> bool:
        return sum(self._is_item(line) for line in text.split("\n")) >= self.min_items

    def _is_item(self, line: str) -> bool:
        item = ITEM.match(line)
        if item is None or not HAS_WORD.search(line, item.end()):
            return False
        return self.style in ("any", item.lastgroup)


class Case(Verifier):
    """Share of upper-case or lower-case letters among those that have case, 0 to 1."""

    check: Literal["case"] = "case"
    case: Literal["upper", "lower"]
    min_share: float = Field(default=0.95, gt=0, le=1)

    def holds(self, text: str) -> bool:
        upper = sum(c.isupper() for c in text)
        lower = sum(c.islower() for c in text)
        wanted = upper if self.case == "upper" else lower
        return wanted > 0 and wanted / (upper + lower) >= self.min_share


class EndsWith(Verifier):
    """The closing punctuation, whatever quotes, brackets, emphasis or emoji follow it.

    A statement ends with one full stop, an ellipsis with "…" or "...". "?!" is a question and an exclamation.
    """

    check: Literal["ends_with"] = "ends_with"
    suffix: Literal["question", "exclamation", "statement", "ellipsis"]

    def holds(self, text: str) -> bool:
        stops = reading.closing_stops(text)
        question, exclamation = any(map(reading.is_question, stops)), any(map(reading.is_exclamation, stops))
        ellipsis = stops.endswith(("…", "⋯", "...", "。。。"))
        match self.suffix:
            case "question":
                return question
            case "exclamation":
                return exclamation
            case "statement":
                return len(stops) == 1 and not (question or exclamation or ellipsis)
            case "ellipsis":
                return ellipsis


_SPOKEN_WORD = regex.compile(r"[\p{L}\p{N}]+(?:'[\p{L}\p{N}]+)*+")  # of English; "well-known" is two


class ReadingGrade(_EnglishOnly):
    """Flesch-Kincaid grade: the US school year that can read the text. May be below 0. English only.

    0.39 words per sentence + 11.8 syllables per word - 15.59 (Kincaid et al. 1975), by `sentence_count`'s
    sentences. Written out because textstat 0.7.13 downloads NLTK's copy of a dictionary that we already have.
    """

    check: Literal["reading_grade"] = "reading_grade"
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        _require_limit(self.check, min=self.min, max=self.max)
        _require_order(self.check, self.min, self.max)
        return self

    def holds(self, text: str) -> bool:
        words = [word for word in _SPOKEN_WORD.findall(caseless(text)) if word[0].isalpha()]
        if not words:
            return False
        per_sentence = len(words) / reading.sentences(text)
        per_word = sum(map(english.syllables, words)) / len(words)
        return _within(0.39 * per_sentence + 11.8 * per_word - 15.59, self.min, self.max)


class Lexicon(Verifier):
    """Whole words or phrases of a vocabulary, in any case; "we" is not in "we'll", "sea" is in "sea-dog".

    `min_count` and `max_count` are occurrences, `min_share` is the share of the response's words, 0 to 1.
    Inflected forms are entries of their own. Where two entries overlap, the longer one counts.
    """

    check: Literal["lexicon"] = "lexicon"
    words: list[str] = Field(min_length=1)
    min_count: int | None = Field(default=None, ge=1)
    max_count: int | None = Field(default=None, ge=0)
    min_share: float | None = Field(default=None, gt=0, le=1)

    @field_validator("words")
    @classmethod
    def _check_words(cls, words: list[str]) -> list[str]:
        if blank := [word for word in words if not word.strip()]:
            raise ValueError(
                f"The words of a lexicon check have a blank entry, {blank[0]!r}. Delete it or write a word."
            )
        return words

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        _require_limit(self.check, min_count=self.min_count, max_count=self.max_count, min_share=self.min_share)
        _require_order(self.check, self.min_count, self.max_count)
        return self

    @cached_property
    def _entries(self) -> regex.Pattern[str]:
        return lexicon.pattern(map(reading.clean, self.words))

    def holds(self, text: str) -> bool:
        found = self._entries.findall(caseless(text))
        share = sum(max(1, word_count(entry)) for entry in found) / max(1, word_count(reading.without_marks(text)))
        return _within(len(found), self.min_count, self.max_count) and _within(share, self.min_share, None)


class Lines(Verifier):
    """Short lines, as in verse: the least number of lines with a word, and the most words in any line."""

    check: Literal["lines"] = "lines"
    min_lines: int | None = Field(default=None, ge=1)
    max_words_per_line: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        _require_limit(self.check, min_lines=self.min_lines, max_words_per_line=self.max_words_per_line)
        return self

    def holds(self, text: str) -> bool:
        lengths = [word_count(reading.without_marks(line)) for line in reading.lines(text)]
        return _within(len(lengths), self.min_lines, None) and _within(
            max(lengths, default=0), None, self.max_words_per_line
        )


class Rhyme(_EnglishOnly):
    """Share of lines, 0 to 1, whose last word rhymes with that of a line one or two lines away.

    Two words rhyme when they sound alike from the last stressed vowel on. A word does not rhyme with itself, and a
    word that is not in the CMU dictionary does not rhyme with any. Lines without a word are skipped. English only.
    """

    check: Literal["rhyme"] = "rhyme"
    min_share: float = Field(default=0.5, gt=0, le=1)

    def holds(self, text: str) -> bool:
        ends = [_SPOKEN_WORD.findall(caseless(line))[-1] for line in reading.lines(text)]
        parts = [english.rhyme_parts(word) for word in ends]

        def rhymes(i: int) -> bool:
            neighbors = range(max(0, i - 2), min(len(ends), i + 3))
            return any(ends[i] != ends[j] and parts[i] & parts[j] for j in neighbors)

        return bool(ends) and sum(map(rhymes, range(len(ends)))) / len(ends) >= self.min_share


class Pattern(Verifier):
    """A Python regular expression, searched in the whole response; lines end with `\\n`.

    It runs without a time limit: nested repeats such as (a+)+ can take forever.
    """

    check: Literal["pattern"] = "pattern"
    regex: str = Field(min_length=1)
    ignore_case: bool = False

    @field_validator("regex")
    @classmethod
    def _check_regex(cls, regex: str) -> str:
        try:
            re.compile(regex)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"The regex {regex!r} of a pattern check does not compile: {error}. "
                "Correct it, or put a backslash before characters that are meant literally."
            ) from error
        return regex

    def holds(self, text: str) -> bool:
        return re.search(self.regex, text, re.IGNORECASE if self.ignore_case else 0) is not None


class AllOf(Verifier):
    """Every one of the checks."""

    check: Literal["all_of"] = "all_of"
    specs: list[VerifierSpec] = Field(min_length=1)

    def holds(self, text: str) -> bool:
        return all(spec.holds(text) for spec in self.specs)

    def reads(self, text: str) -> bool:
        return all(spec.reads(text) for spec in self.specs)

    def english_checks(self) -> set[str]:
        return set[str]().union(*(spec.english_checks() for spec in self.specs))


class AnyOf(Verifier):
    """At least one of the checks."""

    check: Literal["any_of"] = "any_of"
    specs: list[VerifierSpec] = Field(min_length=1)

    def holds(self, text: str) -> bool:
        return any(spec.holds(text) for spec in self.specs)

    def reads(self, text: str) -> bool:
        return all(spec.reads(text) for spec in self.specs)

    def english_checks(self) -> set[str]:
        return set[str]().union(*(spec.english_checks() for spec in self.specs))


class Negate(Verifier):
    """The opposite of a check. An empty response passes neither."""

    check: Literal["negate"] = "negate"
    spec: VerifierSpec

    def holds(self, text: str) -> bool:
        return not self.spec.holds(text)

    def reads(self, text: str) -> bool:
        return self.spec.reads(text)

    def english_checks(self) -> set[str]:
        return self.spec.english_checks()


VerifierSpec = Annotated[
    WordCount
    | SentenceCount
    | Exclamations
    | ListItems
    | Case
    | EndsWith
    | ReadingGrade
    | Lexicon
    | Lines
    | Rhyme
    | Pattern
    | AllOf
    | AnyOf
    | Negate,
    Field(discriminator="check"),
]
"""The value of `verifier:` in a principles file; `check` names the class."""


for _combinator in (AllOf, AnyOf, Negate):
    _combinator.model_rebuild()
