"""How a response is laid out: lines, list items and sentences, in any language."""

import unicodedata
from functools import lru_cache
from itertools import zip_longest

import regex
from icu4py.breakers import SentenceBreaker

from sami.text.languages import ENGLISH, language_of

_LINE_BREAK = regex.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# Characters that a reader cannot see. The joiners U+200C and U+200D stay: they are part of words and emoji.
_INVISIBLE = regex.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


def clean(response: str) -> str:
    """Composed Unicode, `\\n` as the only line break, no control, zero-width or direction characters."""
    return unicodedata.normalize("NFC", _INVISIBLE.sub("", _LINE_BREAK.sub("\n", response)))


def is_blank(text: str) -> bool:
    """Whether nothing in a cleaned text can be seen."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


HAS_WORD = regex.compile(r"[\p{L}\p{N}]")
ITEM = regex.compile(
    r"""
    [ \t\u3000]*(?:
        (?P<numbered>
            (?:\*\*)?[(（]?\p{Nd}{1,3}[.)](?:\*\*)?[ \t\u3000]             # 1. Tea   (2) Tea   **3.** Tea   ١. شاي
          | [(（]?(?:\p{Nd}{1,3}|[一二三四五六七八九十]{1,3})(?:[）．、：]|[.)](?=[^\p{L}\p{N}]*[^\W\x00-\x7f\d]))
          | \p{Nd}{1,3}[ ]?[-–][ \t](?=[^\W\x00-\x7f\d])                    # ١- شاي
          | [①-⒛❶-❿]
        )
      | (?P<bulleted>[-*+–][ \t]|[•‣◦▪●·・])
    )
    """,
    regex.VERBOSE,
)


def lines(text: str) -> list[str]:
    """The lines that hold a word."""
    return [line for line in text.split("\n") if HAS_WORD.search(line)]


def without_marks(text: str) -> str:
    """The text without the marks of its list items."""
    return "\n".join(_without_mark(line) for line in text.split("\n"))


def _without_mark(line: str) -> str:
    item = ITEM.match(line)
    return line[item.end() :] if item else line


_STOP = regex.compile(r"[\p{Sentence_Terminal}…⋯]")


@lru_cache(maxsize=4096)
def is_stop(character: str) -> bool:
    """Whether a character ends sentences in some language: . ! ? … 。 ؟ ।"""
    return _STOP.match(character) is not None


def is_question(stop: str) -> bool:
    """Whether the stop ends a question."""
    return "QUESTION" in unicodedata.name(stop, "") or stop == "‽"


def is_exclamation(stop: str) -> bool:
    """Whether the stop ends an exclamation."""
    return "EXCLAMATION" in unicodedata.name(stop, "") or stop == "‽"


def closing_stops(text: str) -> str:
    """The stops that a text ends with, whatever quotes, brackets, emphasis or emoji follow them."""
    end = len(text)
    while end and not text[end - 1].isalnum() and not is_stop(text[end - 1]) and not _greek_question(text, end):
        end -= 1
    start = end
    while start and (is_stop(text[start - 1]) or _greek_question(text, start)):
        start -= 1
    return text[start:end].replace(";", "?")


def _greek_question(text: str, end: int) -> bool:
    """Whether the text up to `end` closes with Greek's question mark, which Unicode composes to a semicolon."""
    return text[end - 1 : end] == ";" and "GREEK" in unicodedata.name(text[end - 2 : end - 1] or " ", "")


def sentences(text: str) -> int:
    """Number of sentences. Blank lines and list items end one too; a last one needs no full stop.

    English is read by rules of our own for abbreviations and quotations, other languages by ICU's. Thai and Lao
    mark no ends of sentences, so that each of their paragraphs counts as one.
    """
    language = language_of(text)
    count = _english_sentences if language == ENGLISH else _sentences_by_icu
    return sum(count(block, language) for block in _blocks(text))


def _blocks(text: str) -> list[str]:
    """Runs of lines that read on: paragraphs and single list items, without the items' marks."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if not line.strip() or ITEM.match(line):
            blocks.append([])
        blocks[-1].append(_without_mark(line))
    return [" ".join(lines) for lines in blocks]


# An initial, an ordinal or a title before a capital: "z. B.", "am 3. Mai", "Dr. Müller".
_ABBREVIATED = regex.compile(
    r"(?:\b\p{L}|\b\p{Nd}{1,2}|\b(?:dr|prof|hr|fr|sr|sra|mme|nr|bzw|vgl|ca|ing|св|гр|ул))\.\s*\Z", regex.IGNORECASE
)


def _sentences_by_icu(block: str, language: str) -> int:
    count, goes_on = 0, False
    for sentence in SentenceBreaker(block, language):
        count += not goes_on and HAS_WORD.search(sentence) is not None
        goes_on = _ABBREVIATED.search(sentence) is not None
    return count


_CLOSERS = "\"'”’»)]}*_`"
_IDEOGRAPHIC_STOP = regex.compile(r"(?<=[。！？])")
_NEVER_LAST = frozenset({"dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "cf", "approx"})
_RARELY_LAST = frozenset({"etc", "a.m", "p.m", "u.s", "u.k", "jr", "sr"})


def _english_sentences(block: str, _: str) -> int:
    pieces = _IDEOGRAPHIC_STOP.sub(" ", block).split()
    count, has_word = 0, False
    for piece, following in zip_longest(pieces, pieces[1:]):
        has_word = has_word or HAS_WORD.search(piece) is not None
        if has_word and _ends_sentence(piece, following):
            count += 1
            has_word = False
    return count + has_word


def _ends_sentence(piece: str, following: str | None) -> bool:
    """Whether a sentence ends with this piece of text between two spaces."""
    bare = piece.rstrip(_CLOSERS)
    if not bare or not is_stop(bare[-1]):
        return False
    stem = bare.lstrip(_CLOSERS + "“‘«([{").casefold()
    while stem and is_stop(stem[-1]):
        stem = stem[:-1]
    if bare[-1] == "." and stem in _NEVER_LAST:
        return False
    trails_off = bare.endswith(("...", "…"))
    quoted = bare != piece and bare[-1] in "!?"  # "Really?" she asked.
    if trails_off or quoted or (bare[-1] == "." and stem in _RARELY_LAST):
        return following is None or not following.lstrip("\"'“‘(").islower()
    return True
