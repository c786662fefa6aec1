"""Progress on stderr (bars in a terminal, one line a step elsewhere), and text that is safe for a terminal."""

import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line on stderr as it is: no markup, and no control characters from data."""
    console.print(visible(text), markup=False)


@cache
def say_once(text: str) -> None:
    """The same, unless this process already said it."""
    say(text)


@contextmanager
def bar(label: str, total: float, unit: str) -> Iterator[Callable[..., None]]:
    """A bar for one piece of work.

    The function it gives takes how much of `total` is done and, where the rate counts something else, how many.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, rate="")

        def update(done: float, counted: float | None = None) -> None:
            rate = (done if counted is None else counted) / max(time.perf_counter() - started, 1e-9)
            progress.update(
                task, completed=done, rate=f"{rate:,.3g} {unit}/s" if rate < 100 else f"{rate:,.0f} {unit}/s"
            )

        yield update


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
