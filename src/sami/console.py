"""Text for a terminal: progress on stderr, results on stdout, and neither markup nor control characters from data."""

import codecs
import json
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

_WIDTH = 120  # of tables where stdout is not a terminal


class PlainConsole(Console):
    """A console that prints strings as they are: no markup, no emoji codes, control characters as escapes.

    This holds for the cells of tables too. `Text` objects keep their styles.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings | {"markup": False, "emoji": False})


console = PlainConsole(stderr=True, soft_wrap=True)


# Progress and warnings.


def say(text: str) -> None:
    """Print a line on stderr."""
    console.print(text)


@cache
def say_once(text: str) -> None:
    """Print a line on stderr, unless this process already did."""
    say(text)


@contextmanager
def bar(label: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar for one piece of work.

    Yields:
        A function of how much of `total` is done and, where the rate counts something else, of that count.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(visible(label), total=total, rate="")

        def update(done: float, counted: float | None = None) -> None:
            rate = (done if counted is None else counted) / max(time.perf_counter() - started, 1e-9)
            progress.update(
                task, completed=done, rate=f"{rate:,.3g} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"
            )

        yield update


# Results.


def result_console(**settings: Any) -> Console:
    """The console for results on stdout; 120 columns wide where that is not a terminal."""
    return PlainConsole(width=None if sys.stdout.isatty() else _WIDTH, **settings)


def show(what: Any) -> None:
    """Print a result on stdout: a string, which is not wrapped, or anything that rich renders."""
    result_console(soft_wrap=isinstance(what, str)).print(what)


def show_json(value: Any) -> None:
    """Print a value as JSON on stdout, in ASCII where stdout has no UTF-8."""
    print(json.dumps(value, indent=1, ensure_ascii=not _takes_everything(sys.stdout)))


def warn(text: str) -> None:
    """Print a warning about a result on stderr."""
    say(f"warning: {text}")


# Characters.

_JOINERS = {"\u200c", "\u200d"}  # parts of words and emoji, without effect elsewhere
_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_IN_ASCII = {
    **dict.fromkeys("–—−‐‑", "-"),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’", "'"),
    **{"×": "x", "·": "-", "•": "*", "→": "->", "±": "+/-", "≤": "<=", "≥": ">=", "▸": ">", "↵": "\\n"},
}


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


def make_output_readable() -> None:
    """Let stdout and stderr replace what their encoding lacks (ASCII, Latin-1) by something readable.

    Dashes, quotation marks and accented letters become ASCII ones, and everything else an escape such as \\u4e2d.
    """
    codecs.register_error("sami-readable", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if not _takes_everything(stream) and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="sami-readable")


def _takes_everything(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_character_in_ascii, error.object[error.start : error.end])), error.end


def _character_in_ascii(character: str) -> str:
    if character in _IN_ASCII:
        return _IN_ASCII[character]
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if plain.strip() else ascii(character)[1:-1]
