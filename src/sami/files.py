"""Writing files so that a name never stands for half of what it should hold."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sami.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file or folder to; synced and renamed at the end, removed on an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    _remove(temporary)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        for file in [temporary, *(temporary.rglob("*") if temporary.is_dir() else [])]:
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.is_dir():
            _remove(path)
        temporary.rename(path)
    except BaseException:
        _remove(temporary)
        raise


def require_creatable(path: Path) -> None:
    """Check that a file could be made at a path, before the work that fills it.

    Raises:
        InputError: something on the way to it is no folder, or may not be written to.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "may not be written to" if folder.is_dir() else "is no folder"
        raise InputError(f"The file {path} cannot be made: {folder} {reason}. Give another place for it.")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def append_json_line(path: Path, value: Any) -> None:
    """Add one line and sync, so that what was recorded once is never lost."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
