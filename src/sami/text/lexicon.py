"""A vocabulary as a pattern that finds its entries as whole words or phrases."""

from collections.abc import Iterable

import regex

from sami.text.words import caseless, is_unspaced

_LETTER = r"[\p{L}\p{N}\p{M}]"
_HANGUL = regex.compile(r"\p{Hangul}")


def pattern(entries: Iterable[str]) -> regex.Pattern[str]:
    """Matches in a `caseless` text any of the entries; where two overlap, the longer one."""
    folded = sorted({caseless(entry).strip() for entry in entries}, key=len, reverse=True)
    return regex.compile("|".join(map(_whole_words, folded)))


def _whole_words(entry: str) -> str:
    """A pattern of an entry that is not a part of longer words.

    Words of scripts without spaces have no edges, those of Korean may go on with particles, and an emoji may touch a
    word.
    """
    pattern = r"\s+".join(map(regex.escape, entry.split()))
    before = rf"(?<!{_LETTER})(?<!{_LETTER}')" if entry[0].isalnum() and not is_unspaced(entry[0]) else ""
    goes_on = is_unspaced(entry[-1]) or _HANGUL.match(entry[-1])
    after = rf"(?!'?{_LETTER})" if entry[-1].isalnum() and not goes_on else ""
    return f"{before}{pattern}{after}"
