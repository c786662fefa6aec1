"""The one error that means "the input cannot work", as opposed to a defect of the program; and values in messages."""

import reprlib

MOST_QUOTED = 200  # characters of a value that a message repeats
MOST_OF_AN_ERROR = 600  # the same for the message of another library


class InputError(ValueError):
    """What was given, why it cannot work, and what to do, in two or three sentences for a person.

    The command line prints the message without a traceback and exits with code 2.
    """


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = MOST_QUOTED
        self.maxlist = self.maxdict = self.maxtuple = self.maxset = self.maxfrozenset = 10

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print an integer of more than 4,300 digits.
        return super().repr_int(x, level) if x.bit_length() < 4 * MOST_QUOTED else f"<integer of {x.bit_length()} bits>"


_short = _Short()


def quoted(value: object) -> str:
    """A value as a message quotes it: its `repr`, shortened in the middle to at most about 200 characters.

    >>> quoted("fast")
    "'fast'"
    """
    text = _short.repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[: MOST_QUOTED // 2]}…{text[-MOST_QUOTED // 2 :]}"


def one_line(error: object) -> str:
    """The message of an error on one line, shortened, to be part of another message."""
    text = " ".join(str(error).split())
    return text if len(text) <= MOST_OF_AN_ERROR else f"{text[:MOST_OF_AN_ERROR]}…"


def reason(error: Exception) -> str:
    """Why the system refused something, on one line, without the path, which may be as long as what it was given."""
    return one_line(error.strerror.lower() if isinstance(error, OSError) and error.strerror else error)
