"""How a command ends: its exit code, what it says when it is stopped, and the system's errors in words."""

import errno
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sami.console import console
from sami.errors import InputError, one_line, quoted

BAD_INPUT = 2
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells report them


@contextmanager
def explained() -> Iterator[None]:
    """End with a message in place of a traceback, where a person can mend what went wrong or stopped the command."""
    try:
        with _ended_by_sigterm():
            yield
    except InputError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        _stopped(INTERRUPTED)
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            _stopped(end.code)
        raise
    except Exception as error:
        if reason := _reason(error):
            _refuse(reason)
        raise


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, so that what is half-written is removed on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise SystemExit(TERMINATED)


def _reason(error: Exception) -> str | None:
    """What the system refused, in words; libraries wrap its errors in their own, so the text counts as well."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOSPC or "No space left on device" in str(error):
        return (
            f"The disk is full: {one_line(error)}. Free some space and run the same command; finished steps are kept."
        )
    if number == errno.ENAMETOOLONG:
        return f"A name is too long for this file system: {quoted(str(error))}. Give a shorter path."
    if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return f"A file cannot be used: {error}. Choose a folder you may write to with --output."
    return None


def _stopped(code: int) -> NoReturn:
    console.print("sami: Stopped. Finished steps are kept: run the same command again to continue.")
    raise SystemExit(code)


def _refuse(message: str) -> NoReturn:
    console.print(f"sami: {message}")
    raise SystemExit(BAD_INPUT)
