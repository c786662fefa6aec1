"""Files that grow by lines, such as verdicts.jsonl: lines that one command wrote must not change before the next.

    require_unchanged(file)      # before it is read
    append_json_line(file, …)
    record(file)                 # when the work is done

A hidden file beside each one holds the length and the SHA-256 of the content at the last record. More lines may
follow. Files without such a record, such as those of earlier versions, may have any content.
"""

import hashlib
from pathlib import Path

from sami.errors import InputError
from sami.files import parse_json, replacing, write_json

State = tuple[int, str]  # number of bytes, their SHA-256


def require_unchanged(file: Path) -> None:
    """Refuse a file whose recorded beginning changed.

    Raises:
        InputError: it changed, or its record is damaged.
    """
    states = _states(file)
    if not states or not file.is_file():
        return
    content = file.read_bytes()
    if all(_state(content[: state[0]]) != state for state in states):
        raise InputError(
            f"{file} changed after its lines were recorded, so figures made from it would be wrong. Restore it from a "
            f"copy, or delete it to have everything in it done again. If you edited it on purpose, delete "
            f"{_record_of(file)} to keep it as it is."
        )


def record(file: Path) -> None:
    """Record the content of a file as it is now; a file that does not exist has no record."""
    if not file.is_file():
        _record_of(file).unlink(missing_ok=True)
        return
    _write(file, [_state(file.read_bytes())])


def rewrite(file: Path, text: str) -> None:
    """Replace the content of a file and its record. After a kill in between, the record fits both contents."""
    _write(file, [_state(file.read_bytes()), _state(text.encode())])
    with replacing(file) as temporary:
        temporary.write_bytes(text.encode())
    record(file)


def _record_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.recorded.json")


def _state(content: bytes) -> State:
    return len(content), hashlib.sha256(content).hexdigest()


def _write(file: Path, states: list[State]) -> None:
    if states != _states(file):
        write_json(_record_of(file), [{"bytes": size, "sha256": digest} for size, digest in states])


def _states(file: Path) -> list[State]:
    path = _record_of(file)
    if not path.is_file():
        return []
    advice = f"Delete it to keep {file.name} as it is."
    value = parse_json(path.read_bytes(), f"The record {path}", advice)
    try:
        return [(int(state["bytes"]), str(state["sha256"])) for state in value]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"The record {path} of {file.name} is damaged. {advice}") from None
