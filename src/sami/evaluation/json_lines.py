"""Files with one JSON object per line, whose faults are reported with the line's number."""

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sami.errors import InputError


def read_objects(path: Path | str, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line; blank lines and a byte-order mark are skipped.

    Args:
        what: what the file contains, as in "verdicts", for messages.

    Raises:
        InputError: the file cannot be read, or a line is not one JSON object.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read: {error.strerror}. Correct the path.") from None
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_object(line)
            except InputError as error:
                raise InputError(f"Line {number} of {path}: {error}") from None


def parse_object(line: bytes) -> dict[str, Any]:
    """The object of one line.

    Raises:
        InputError: the line is not UTF-8, not one JSON object, or repeats a key.
    """
    try:
        value = json.loads(line.decode(), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"not UTF-8 text (byte {byte:#04x}). Save the file as UTF-8.") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON ({error!s:.200}). Each line must be one whole object: repair the line, or delete it if it "
            f"was cut off."
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"a JSON {type(value).__name__}, not an object. Write one object per line.")
    return value


def half_surrogate(text: str) -> bool:
    """Whether a text contains half a surrogate pair, which JSON can hold and no file or tokenizer can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the key {repeated!r:.80} occurs twice in one object. Remove one of the two.")
    return value
