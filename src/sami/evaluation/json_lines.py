"""Files with one JSON object per line, whose faults are reported with the line's number."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sami.errors import InputError
from sami.files import parse_json

ADVICE = "Each line must be one whole object: repair the line, or delete it if it was cut off."


def read_objects(path: Path | str, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) for each line; blank lines and a byte-order mark are skipped.

    Args:
        what: what the file contains, as in "verdicts", for messages.

    Raises:
        InputError: the file cannot be read, or a line is not one JSON object; see `sami.files.parse_json`.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be read: {error.strerror}. Correct the path.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_object(line, f"Line {number} of {path}")


def parse_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        InputError: the line is not one; see `sami.files.parse_json`.
    """
    value = parse_json(line, place, ADVICE)
    if not isinstance(value, dict):
        raise InputError(f"{place} is a JSON {type(value).__name__}, not an object. {ADVICE}")
    return value
