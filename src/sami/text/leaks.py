"""Constitution leakage: words of the constitution that a response repeats instead of following them.

Any model, trained or not, recognizes a response that names its principle ("Please provide a simple, clear, and
concise answer."). The information under the frozen base model is therefore measured with such words masked
(`leak_mask`), and responses that copy a run of words from the constitution are counted (`leakage`).

Words are compared by their stems in languages for which `sami.text.languages` has a stemmer, and whole in others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from sami.text.languages import ENGLISH, SYNTHETIC, content_stem, language_of
from sami.text.words import is_unspaced, joined, word_spans


class LeakedWords(frozenset[str]):
    """Stems of leaked words, and the language that words in Latin letters are stemmed in."""

    language: str

    def __new__(cls, stems: Iterable[str] = (), language: str = ENGLISH) -> "LeakedWords":
        words = super().__new__(cls, stems)
        words.language = language
        return words


def content_words(text: str, language: str | None = None) -> set[str]:
    """Stems of the words that carry meaning; function words and single letters or digits are left out.

    Args:
        language: that of words in Latin letters; by default the text's own.
    """
    language = language_of(text) if language is None else language
    return {stem for _, _, word in word_spans(text) if (stem := content_stem(word, language)) is not None}


def leaked_words(constitutions: Sequence[str], query: str) -> LeakedWords:
    """Stems of content words that occur in any constitution of a contrast and not in its query.

    One set for all cells of the contrast, so that masking takes the same tokens from each row and column.
    """
    language = language_of("\n".join(constitutions))
    found = set[str]().union(*(content_words(text, language) for text in constitutions))
    return LeakedWords(found - content_words(query, language), language)


def leak_mask(response_ids: Sequence[int], decode: Callable[[Sequence[int]], str], leaked: LeakedWords) -> list[bool]:
    """True for each token that overlaps a word whose stem is leaked, if only by one byte.

    Args:
        response_ids: T token ids of one response.
        decode: token ids to text, special tokens dropped, spaces not cleaned up.
        leaked: from `leaked_words`.

    Returns:
        T flags. Tokens that decode to nothing (EOS) are never leaked.
    """
    text = decode(response_ids)
    in_leak = bytearray(len(text))  # one flag a character
    for start, end in _leaks(text, leaked):
        in_leak[start:end] = b"\x01" * (end - start)
    if not any(in_leak):
        return [False] * len(response_ids)
    return [any(in_leak[start:end]) for start, end in token_spans(response_ids, decode, text)]


_Span = tuple[int, int, str]  # of `word_spans`


def _leaks(text: str, leaked: LeakedWords) -> Iterator[tuple[int, int]]:
    """Characters [start, end) of the leaked words of a text."""
    adjacent: list[_Span] = []  # words without a space between them
    pieces = sorted(word for word in leaked if is_unspaced(word))
    for start, end, word in word_spans(text):
        if not is_unspaced(word):
            if content_stem(word, leaked.language) in leaked:
                yield start, end
        elif pieces:
            if adjacent and adjacent[-1][1] != start:
                yield from _leaks_of_run(adjacent, pieces)
                adjacent = []
            adjacent.append((start, end, word))
    if adjacent:
        yield from _leaks_of_run(adjacent, pieces)


def _leaks_of_run(words: Sequence[_Span], pieces: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The same for words that follow one another without spaces.

    A dictionary's cuts depend on the neighboring words: one word of the constitution may be two words here, or part
    of a longer one. Leaked words are therefore searched as strings, and a word leaks if all its characters do. Single
    ideographs are part of too many words to be searched inside them.
    """
    first = words[0][0]
    run = "".join(word if len(word) == end - start else "\0" * (end - start) for start, end, word in words)
    in_leak = [character in pieces for character in run]
    for piece in pieces:
        at = run.find(piece) if len(piece) > 1 else -1
        while at >= 0:
            yield first + at, first + at + len(piece)
            in_leak[at : at + len(piece)] = [True] * len(piece)
            at = run.find(piece, at + 1)
    for start, end, word in words:
        if word in pieces or all(in_leak[start - first : end - first]):
            yield start, end


def token_spans(ids: Sequence[int], decode: Callable[[Sequence[int]], str], text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of the text to which each token contributes.

    If the tokens decode one by one to the whole text, their pieces are the spans, in linear time. Otherwise
    (characters split over tokens, decoders that treat the first token differently) prefixes are decoded:
    what a prefix shares with the text is settled, and a tail that does not yet match the text (the replacement
    character of an unfinished one) belongs to the next character. Measured with SmolLM2's tokenizer: 0.3 ms
    for 100 tokens one by one, 2 ms by prefixes, 25 ms by prefixes for 500.
    """
    pieces = [decode([token]) for token in ids]
    spans = []
    settled = 0
    if "".join(pieces) == text:
        for piece in pieces:
            spans.append((settled, settled + len(piece)))
            settled += len(piece)
        return spans
    for count, piece in enumerate(pieces, start=1):
        start = settled
        if piece:
            prefix = decode(ids[:count])
            while settled < min(len(prefix), len(text)) and prefix[settled] == text[settled]:
                settled += 1
            unfinished = settled < len(prefix)
            spans.append((start, settled + unfinished))
        else:
            spans.append((start, start))
    return spans


def leakage(response: str, constitutions: Sequence[str], query: str, n: int = 4) -> str | None:
    """The first run of consecutive words that the response shares with a constitution; None without one.

    A run has n words; in languages that say with endings and prefixes what English says with words of its own
    (`SYNTHETIC`), it has n - 1.

    Words are compared folded and without punctuation, not stemmed. A run that also occurs in the query is the
    query's, and one of function words alone ("as if you were") gives nothing away. Principles of fewer words
    cannot be found.

    Returns:
        The words, joined as in `sami.text.words.joined`.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"leakage looks for runs of n words, so n must be 1 or more, not {n}.")
    language = language_of("\n".join(constitutions))
    n -= language in SYNTHETIC and n > 1
    said, asked = _searchable(response), _searchable(query)
    found: dict[int, str] = {}
    for run in dict.fromkeys(run for text in constitutions for run in _runs(text, n)):
        wanted = _edged(run)
        at = said.find(wanted)
        if at >= 0 and wanted not in asked and any(content_stem(word, language) is not None for word in run):
            found[at] = joined(run)
    return found[min(found)] if found else None


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    words = [word for _, _, word in word_spans(text)]
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _searchable(text: str) -> str:
    return f" {joined(word for _, _, word in word_spans(text))} "


def _edged(run: Sequence[str]) -> str:
    """A run as it occurs in a searchable text; only words that spaces set apart have to be whole."""
    left, right = ("" if is_unspaced(run[edge]) else " " for edge in (0, -1))
    return f"{left}{joined(run)}{right}"
