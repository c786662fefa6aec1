"""Words of a text: where they are, how many there are, how many differ, and how texts begin.

This is the one place that decides what a word is. Scripts that put spaces between words are cut where letters end
(by the Unicode properties of `regex`); Chinese, Japanese, Thai, Lao, Khmer and Burmese, which do not, are cut by the
dictionaries of ICU.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import regex
from icu4py.breakers import WordBreaker

# Letters and digits with the marks that combine with them. A joiner (U+200C, U+200D) is a part of the word that goes
# on after it, as in Persian and Hindi.
_LETTERS = r"(?:[\p{L}\p{N}]\p{M}*+(?:[\u200c\u200d](?=[\p{L}\p{N}]))?)++"
_WORD = regex.compile(rf"{_LETTERS}(?:['’]{_LETTERS})*+")
_TOKEN = regex.compile(r"[\w\p{M}]++|[^\w\s]")
_WITHOUT_SPACES = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Line_Break=Complex_Context}ー]")
# Vowel signs and stretching that Arabic and Hebrew may leave out, joiners, and the dot that lower-casing leaves on
# a Turkish i.
_OPTIONAL = regex.compile(r"[\u064b-\u065f\u0670\u0640\u0591-\u05c7\u200c\u200d]|(?<=i)\u0307")


def word_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Each word of the text as (first character, character after the last, folded word).

    A word is a run of letters and digits, apostrophes inside it included; hyphens, underscores and other
    punctuation separate words. In scripts without spaces a word is what ICU's dictionaries say.
    """
    for match in _WORD.finditer(text):
        start = match.start()
        for piece in cut(match.group()):
            yield start, start + len(piece), fold(piece)
            start += len(piece)


def cut(run: str) -> Iterable[str]:
    """A run of letters and digits as its words."""
    # ICU counts UTF-16 units, so that its pieces are used and not its offsets. No language is named: ICU has one
    # dictionary for each script.
    return WordBreaker(run, "") if is_unspaced(run) else (run,)


def is_unspaced(run: str) -> bool:
    """Whether a run holds a letter of a script that puts no spaces between words."""
    return not run.isascii() and _WITHOUT_SPACES.search(run) is not None


def caseless(text: str) -> str:
    """A text without case, optional marks and kinds of apostrophe.

    The Turkish dotless ı becomes i, because without its language "I" can be the capital of either.
    """
    if text.isascii():
        return text.lower()
    return _OPTIONAL.sub("", text.casefold()).replace("’", "'").replace("ı", "i")


def fold(word: str) -> str:
    """The form in which words are compared: NFKC and `caseless`."""
    if word.isascii():
        return word.lower()
    folded = unicodedata.normalize("NFKC", caseless(unicodedata.normalize("NFKC", word)))
    # NFKC takes the vowel am of Thai and Lao apart, which nobody writes so.
    return folded.replace("\u0e4d\u0e32", "\u0e33").replace("\u0ecd\u0eb2", "\u0eb3") or word


def joined(words: Iterable[str]) -> str:
    """Folded words as one text: with spaces, except between words of scripts that write none."""
    pieces: list[str] = []
    before = False  # whether the word before is of such a script
    for word in words:
        unspaced = is_unspaced(word)
        pieces += [word] if not pieces or (unspaced and before) else [" ", word]
        before = unspaced
    return "".join(pieces)


def word_count(text: str) -> int:
    """Number of words (see `word_spans`: "don't" is one, "child-friendly" two)."""
    return sum(1 for _ in word_spans(text))


def token_count(text: str) -> int:
    """Number of words and punctuation marks: a length in tokens for a text whose tokenizer is not known."""
    return sum(len(list(cut(token))) for token in _TOKEN.findall(text))


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
    """The first words, folded and joined as in `joined`; all of them if the text is shorter.

    Raises:
        ValueError: words < 1.
    """
    if words < 1:
        raise ValueError(f"An opening has at least one word, not {words}.")
    return joined(_first_words(text, words))


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
    return [word for _, _, word in islice(word_spans(text), limit)]
