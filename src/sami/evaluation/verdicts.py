"""verdicts.jsonl: one judgement of two responses per line, appended and synced as it arrives.

append_verdict(path, Verdict(query_id="q1", candidate="iteration-1", baseline="base", …))
verdicts = read_verdicts(path)
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from sami.errors import InputError, quoted
from sami.evaluation.json_lines import parse_object, read_objects
from sami.files import append_json_line

Order = Literal["candidate_first", "baseline_first"]


@dataclass(frozen=True)
class Verdict:
    """What one judge said about one pair of responses, shown in one order.

    Raises:
        InputError: a field has the wrong type, the order is unknown, the score lies outside 0 to 1, or a policy is
            compared with itself.
    """

    query_id: str
    candidate: str
    baseline: str
    judge: str
    order: Order
    """Which response the judge read first."""
    score: float | None
    """1 if the candidate wins, 0.5 for a tie, 0 if it loses, a judge's probability in between; None: not scored."""
    candidate_chars: int
    baseline_chars: int
    candidate_tokens: int
    baseline_tokens: int
    raw: str | None
    """The judge's words."""
    cost: float | None
    """Cost of this judgement, in the currency of the judge's prices."""
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
                raise InputError(f"the field {name!r} is {quoted(value)}, but must be {expected}.")
        if self.candidate == self.baseline:
            raise InputError(
                f"candidate and baseline are both {quoted(self.candidate)}. A policy cannot be compared with itself: "
                f"correct one of the names."
            )

    def as_json(self) -> dict[str, Any]:
        """The record in the file; optional fields without a value are left out."""
        return {name: value for name, value in asdict(self).items() if name in _REQUIRED or value is not None}


_REQUIRED = [f.name for f in fields(Verdict) if f.default is MISSING]
_KNOWN = [f.name for f in fields(Verdict)]


def read_verdicts(path: Path | str) -> list[Verdict]:
    """Every verdict of a file, in its order; blank lines are skipped.

    Raises:
        InputError: the file cannot be read, a line (given by its number) is not a whole record with the right fields,
            types and values, or two lines judge the same pair in the same order. See `repair_verdicts` for a line
            that a kill cut off.
    """
    verdicts: dict[tuple[Any, ...], tuple[int, Verdict]] = {}
    for number, record in read_objects(path, "verdicts"):
        try:
            verdict = _verdict(record)
        except InputError as error:
            raise InputError(f"Line {number} of {path}: {error}") from None
        first, same = verdicts.setdefault(_judged(verdict), (number, verdict))
        if first != number:
            raise InputError(_repeated(f"Lines {first} and {number} of {path}", same, verdict))
    return [verdict for _, verdict in verdicts.values()]


def append_verdict(path: Path, verdict: Verdict) -> None:
    """Add one line and sync it to disk. A half-written last line must have been repaired before."""
    # A judge's answer may contain half a surrogate pair, which a file cannot: a "?" is better than a lost verdict.
    record = {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in verdict.as_json().items()}
    append_json_line(path, record)


def repair_verdicts(path: Path) -> int:
    """Make the file end in a whole line, as it does not after a kill in the middle of a write.

    A last line without a newline is completed if it is a whole record, and cut off otherwise.

    Returns:
        The number of bytes cut off; 0 if there is no file.

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
                _verdict(parse_object(last, "The last line"))
            except InputError:
                file.truncate(start)
                return len(last)
            file.write(b"\n")
            return 0
    except OSError as error:
        raise InputError(
            f"The verdicts {path} cannot be repaired: {error.strerror}. Make the file writable."
        ) from error


def _judged(verdict: Verdict) -> tuple[Any, ...]:
    """What a verdict is about; a file holds at most one verdict about it."""
    v = verdict
    return v.judge, v.candidate, v.baseline, v.query_id, v.constitution_id, v.principles, v.order


def _repeated(lines: str, one: Verdict, other: Verdict) -> str:
    how = "repeat one judgement" if one.score == other.score else "contradict each other"
    pair = f"{quoted(one.candidate)} and {quoted(one.baseline)} on the query {quoted(one.query_id)}"
    return (
        f"{lines} {how}: both compare {pair} by {quoted(one.judge)}, {one.order}. Keep one of them, or give them "
        f"different constitution_ids if they are about different constitutions."
    )


def _verdict(record: dict[str, Any]) -> Verdict:
    if unknown := [name for name in record if name not in _KNOWN]:
        near = get_close_matches(unknown[0], _KNOWN, n=1)
        raise InputError(
            f"unknown field {quoted(unknown[0])}. "
            + (f"Did you mean {near[0]!r}?" if near else f"The fields are {', '.join(_KNOWN)}.")
        )
    if missing := [name for name in _REQUIRED if name not in record]:
        raise InputError(f"no field {', '.join(map(repr, missing))}. A verdict has {', '.join(_REQUIRED)}.")
    if isinstance(principles := record.get("principles"), list):
        # A plain id means the principle itself rather than its antithesis, as people write it in their own files.
        record["principles"] = tuple(
            (entry, True) if isinstance(entry, str) else tuple(entry) if isinstance(entry, list) else entry
            for entry in principles
        )
    return Verdict(**record)


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
# For each field, whether a value is valid, and what is valid in words.
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
