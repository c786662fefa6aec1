"""verdicts.jsonl: one judgement of two responses a line, appended and synced as it arrives.

append_verdict(path, Verdict(query_id="q1", candidate="iteration-1", baseline="base", …))
verdicts = read_verdicts(path)
"""

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from sami.errors import InputError
from sami.files import append_json_line

Order = Literal["candidate_first", "baseline_first"]


@dataclass(frozen=True)
class Verdict:
    """What one judge said of one pair of responses, shown in one order.

    Raises:
        InputError: a field has the wrong type, the order is unknown, or the score lies outside 0 to 1.
    """

    query_id: str
    candidate: str
    baseline: str
    judge: str
    order: Order
    """Which response the judge read first."""
    score: float | None
    """1 the candidate wins, 0.5 a tie, 0 it loses, between them a judge's probability; None: not scored."""
    candidate_chars: int
    baseline_chars: int
    candidate_tokens: int
    baseline_tokens: int
    raw: str | None
    """The judge's words."""
    cost: float | None
    """Of this judgement, in the currency of the judge's prices."""
    constitution_id: str | None = None
    principles: tuple[tuple[str, bool], ...] | None = None
    """(id, positive) of the constitution's principles; positive is False for an antithesis."""
    learned: bool | None = None
    """Whether the principles were trained on."""
    key: str | None = None
    """The cache key of the request."""
    reason: str | None = None
    """Why it is not scored."""

    def __post_init__(self) -> None:
        for name, (holds, expected) in _CHECKS.items():
            if not holds(value := getattr(self, name)):
                raise InputError(f"the field {name!r} is {value!r:.80}, but must be {expected}.")

    def as_json(self) -> dict[str, Any]:
        """The record of the file; optional fields without a value are left out."""
        return {name: value for name, value in asdict(self).items() if name in _REQUIRED or value is not None}


_REQUIRED = [f.name for f in fields(Verdict) if f.default is MISSING]
_KNOWN = [f.name for f in fields(Verdict)]


def read_verdicts(path: Path | str) -> list[Verdict]:
    """Every verdict of a file, in its order; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line (by its number) is not a whole record with the right
            fields, types and values. See `repair_verdicts` for a line that a kill cut off.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"The verdicts {path} cannot be read: {error.strerror}. Correct the path.") from error
    verdicts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                verdicts.append(_parse(line))
            except InputError as error:
                raise InputError(f"Line {number} of {path}: {error}") from None
    return verdicts


def append_verdict(path: Path, verdict: Verdict) -> None:
    """Add one line and sync it to disk. A half-written last line must have been repaired before."""
    # A judge's JSON may hold half a surrogate pair, which no UTF-8 file can; a lost verdict would be worse than a "?".
    record = {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in verdict.as_json().items()}
    append_json_line(path, record)


def repair_verdicts(path: Path) -> int:
    """Make the file end in a whole line, as it does not after a kill in the middle of a write.

    A last line without its newline is completed if it is a whole record, else cut off.

    Returns:
        bytes cut off; 0 also where there is no file.

    Raises:
        InputError: the file cannot be opened for writing.
    """
    if not path.exists():
        return 0
    try:
        with path.open("r+b") as file:
            content = file.read()
            start = content.rfind(b"\n") + 1
            last = content[start:]
            if not last:
                return 0
            try:
                _parse(last)
            except InputError:
                file.truncate(start)
                return len(last)
            file.write(b"\n")
            return 0
    except OSError as error:
        raise InputError(f"The verdicts {path} cannot be repaired: {error.strerror}. Check its rights.") from error


def _parse(line: bytes) -> Verdict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON ({error}). Each line must be one whole object: repair it, or delete it if it was cut off."
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"a JSON {type(record).__name__}, not an object. Each line must be one verdict.")
    if unknown := [name for name in record if name not in _KNOWN]:
        near = get_close_matches(unknown[0], _KNOWN, n=1)
        raise InputError(
            f"unknown field {unknown[0]!r}. "
            + (f"Did you mean {near[0]!r}?" if near else f"The fields are {', '.join(_KNOWN)}.")
        )
    if missing := [name for name in _REQUIRED if name not in record]:
        raise InputError(f"no field {', '.join(map(repr, missing))}. A verdict has {', '.join(_REQUIRED)}.")
    if isinstance(principles := record.get("principles"), list):
        # A plain id stands for the principle itself, as people write it in files of their own.
        record["principles"] = tuple(
            (entry, True) if isinstance(entry, str) else tuple(entry) if isinstance(entry, list) else entry
            for entry in principles
        )
    return Verdict(**cast(dict[str, Any], record))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_principles(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(entry, tuple) and len(entry) == 2 and _is_name(entry[0]) and isinstance(entry[1], bool)
        for entry in value
    )


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


_NAME = (_is_name, "a string that is not empty")
_COUNT = (_is_count, "a whole number of at least 0")
_TEXT = (_or_null(lambda value: isinstance(value, str)), "a string or null")
# field -> whether a value is right, and what is right in words
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("query_id", "candidate", "baseline", "judge"), _NAME),
    "order": (("candidate_first", "baseline_first").__contains__, "'candidate_first' or 'baseline_first'"),
    "score": (_or_null(lambda value: _is_number(value) and 0 <= value <= 1), "a number from 0 to 1, or null"),
    **dict.fromkeys(("candidate_chars", "baseline_chars", "candidate_tokens", "baseline_tokens"), _COUNT),
    "cost": (_or_null(lambda value: _is_number(value) and 0 <= value < math.inf), "a number of at least 0, or null"),
    "principles": (_or_null(_are_principles), 'a list of ids or of [id, positive] pairs, such as [["brief", true]]'),
    "learned": (_or_null(lambda value: isinstance(value, bool)), "true, false or null"),
    **dict.fromkeys(("raw", "constitution_id", "key", "reason"), _TEXT),
}
