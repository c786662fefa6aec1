"""Words of a text: where they are, how many, how many differ, and how texts begin."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

# Python's \w leaves combining marks out, which would cut a decomposed "naïve" or a Hindi word in two.
_MARKS = "".join(chr(c) for c in range(0x300, 0x3000) if unicodedata.category(chr(c)).startswith("M"))
_LETTERS = rf"[^\W_][{_MARKS}]*"
_WORD = re.compile(rf"(?:{_LETTERS})+(?:['’](?:{_LETTERS})+)*")


def word_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Each word of the text as (first character, character after the last, normalised word).

    A word is a run of letters and digits, apostrophes inside it included; hyphens, underscores and other
    punctuation part words. Normalised: NFKC, casefolded, a straight apostrophe. Scripts without spaces come
    out as one word per run of letters.
    """
    for match in _WORD.finditer(text):
        yield match.start(), match.end(), _normalised(match.group())


def _normalised(word: str) -> str:
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", word).casefold().replace("’", "'")


def word_count(text: str) -> int:
    """Number of words (see `word_spans`: "don't" is one, "child-friendly" two)."""
    return sum(1 for _ in word_spans(text))


_DISTINCT_WORDS = 50


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words over all n-grams, from 0 to 1: mean over responses.

    Each response's ratio is computed on its first 50 words, so that longer responses, which repeat more by
    their length alone, are not marked down for it; a response under 50 words still has a slight advantage.
    Responses with fewer than n words have no ratio and are left out of the mean.

    Returns:
        The mean ratio; nan when no response has n words.

    Raises:
        ValueError: n < 1.

    Source: distinct-n of Li et al. 2016 (arXiv 1510.03055), there over all responses at once.
    """
    if n < 1:
        raise ValueError(f"distinct_n counts runs of n words, so n must be 1 or more, not {n}.")
    ratios = []
    for text in texts:
        words = _first_words(text, _DISTINCT_WORDS)
        grams = list(zip(*(words[i:] for i in range(n)), strict=False))
        if grams:
            ratios.append(len(set(grams)) / len(grams))
    return sum(ratios) / len(ratios) if ratios else float("nan")


def opening(text: str, words: int = 3) -> str:
    """The first words, normalised as in `word_spans` and joined by spaces; all of them in a shorter text.

    Raises:
        ValueError: words < 1.
    """
    if words < 1:
        raise ValueError(f"An opening has at least one word, not {words}.")
    return " ".join(_first_words(text, words))


def commonest_opening(texts: Sequence[str], words: int = 3) -> tuple[str, float]:
    """The opening that most responses share, and its share of all responses, from 0 to 1.

    Responses without a word have no opening but count in the share. Of equally common ones the first wins;
    ("", 0.0) without any.
    """
    openings = Counter(first for first in (opening(text, words) for text in texts) if first)
    if not openings:
        return "", 0.0
    commonest, count = openings.most_common(1)[0]
    return commonest, count / len(texts)


def _first_words(text: str, limit: int) -> list[str]:
    return [word for (_, _, word), _ in zip(word_spans(text), range(limit), strict=False)]
