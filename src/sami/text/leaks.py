"""Constitution leakage: words of the constitution that a response gives away instead of following them.

A response that names its principle ("Please provide a simple, clear, and concise answer.") is recognised by
any model, trained or not. The information under the frozen base model is therefore measured with such words
masked (`leak_mask`), and responses that copy a run of the constitution are counted (`leakage`).
Words are English: other languages are compared whole, as far as they part words by spaces.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Protocol

from sami.text.words import word_spans

# Words that carry no principle: determiners, pronouns, prepositions, conjunctions, auxiliaries, question
# words and adverbs of degree. Contractions follow from them (`_is_function_word`).
FUNCTION_WORDS = frozenset(
    word
    for line in """
    a an the this that these those some any each every either neither both all no none another other others
    such same own much many more most few fewer less least several enough one ones
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she
    her hers herself it its itself they them their theirs themselves somebody someone something anybody
    anyone anything everybody everyone everything nobody nothing
    who whom whose which what when where why how whoever whatever whichever whenever wherever however
    about above across after against along amid among around as at before behind below beneath beside
    besides between beyond by despite down during except for from in inside into like near of off on onto
    out outside over per since than through throughout to toward towards under until unto up upon via with
    within without
    and but or nor so yet if unless because although though while whereas whether once then else also too
    am is are was were be been being do does did doing done have has had having will would shall should can
    could may might must ought cannot let lets
    not never very just only even quite rather really still already again ever always often here there now
    thus therefore hence indeed perhaps maybe well yes please
    """.splitlines()
    for word in line.split()
)


class _Stemmer(Protocol):
    def stem(self, token: str) -> str: ...


@cache
def _stemmer() -> _Stemmer:
    from nltk.stem import SnowballStemmer

    stemmer: _Stemmer = SnowballStemmer("english", ignore_stopwords=False)
    return stemmer


def _is_function_word(word: str) -> bool:
    return word in FUNCTION_WORDS or word.endswith("n't") or word.partition("'")[0] in FUNCTION_WORDS


@lru_cache(maxsize=65536)
def _content_stem(word: str) -> str | None:
    """Stem of a normalised word; None for one that carries no meaning by itself."""
    if len(word) < 2 or _is_function_word(word):
        return None
    return _stemmer().stem(word)


def content_words(text: str) -> set[str]:
    """Stems (Snowball English, Porter 2) of the words that carry meaning.

    Words are NFKC-normalised and casefolded; function words (`FUNCTION_WORDS` and their contractions) and
    words of one letter or digit, list numbers among them, are left out.
    """
    return {stem for _, _, word in word_spans(text) if (stem := _content_stem(word)) is not None}


def leaked_words(constitutions: Sequence[str], query: str) -> set[str]:
    """Stems of content words that stand in any constitution of a contrast and not in its query.

    One set for all cells of the contrast, so that masking takes the same tokens from each row and column.
    """
    return set[str]().union(*map(content_words, constitutions)) - content_words(query)


def leak_mask(response_ids: Sequence[int], decode: Callable[[Sequence[int]], str], leaked: set[str]) -> list[bool]:
    """True for each token that overlaps, be it by one byte, a word whose stem is leaked.

    Args:
        response_ids: T token ids of one response.
        decode: token ids to text, special tokens dropped, spaces not cleaned up.
        leaked: stems, from `leaked_words`.

    Returns:
        T flags. Tokens that decode to nothing (EOS) are never leaked.
    """
    text = decode(response_ids)
    in_leak = bytearray(len(text))  # one flag a character
    for start, end, word in word_spans(text):
        if _content_stem(word) in leaked:
            in_leak[start:end] = b"\x01" * (end - start)
    if not any(in_leak):
        return [False] * len(response_ids)
    return [any(in_leak[start:end]) for start, end in token_spans(response_ids, decode, text)]


def token_spans(ids: Sequence[int], decode: Callable[[Sequence[int]], str], text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of the text that each token has a part in.

    Tokens that decode one by one to the whole text have their pieces as spans, in linear time. Else
    (characters split over tokens, decoders that treat the first token differently) prefixes are decoded:
    what a prefix shares with the text is settled, and a tail that is not yet the text's (the replacement
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
    """The first run of n consecutive words that the response shares with a constitution; None without one.

    Words are compared casefolded and without punctuation, not stemmed. A run that stands in the query too is
    the query's, and one of function words alone ("as if you were") gives nothing away. Principles of fewer
    than n words cannot be found.

    Returns:
        The n words, joined by spaces.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"leakage looks for runs of n words, so n must be 1 or more, not {n}.")
    given = set[tuple[str, ...]]().union(*(_runs(constitution, n) for constitution in constitutions))
    given.difference_update(_runs(query, n))
    for run in _runs(response, n):
        if run in given and any(_content_stem(word) is not None for word in run):
            return " ".join(run)
    return None


def _runs(text: str, n: int) -> list[tuple[str, ...]]:
    words = [word for _, _, word in word_spans(text)]
    return list(zip(*(words[i:] for i in range(n)), strict=False))
