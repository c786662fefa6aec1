"""Text of models and data as a terminal may show it: nothing in it moves the cursor or turns the line round."""

import unicodedata

_JOINERS = {"\u200c", "\u200d"}  # parts of words and emoji, without effect elsewhere
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """Control characters, direction marks, line separators and half surrogate pairs as escapes; newlines stay.

    >>> visible("ready\\x1b[2J")
    'ready\\\\x1b[2J'
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n" or character in _JOINERS or unicodedata.category(character) not in _ESCAPED:
        return character
    return "    " if character == "\t" else ascii(character)[1:-1]
