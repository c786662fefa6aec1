"""Records with their place, from a file, a folder or the hub. A new kind of file is one new entry in `_READERS`."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sami.errors import InputError, one_line
from sami.queries import files
from sami.queries.formats import Record

Row = tuple[str, Record]  # place ("Line 3 of q.csv"), and the fields asked for with the record's id


@dataclass(frozen=True)
class Part:
    """Which part of a data set is read; files have no such parts."""

    split: str
    config: str | None
    folders: tuple[str, ...]
    revision: str | None


_READERS: dict[str, Callable[[str, Sequence[str]], Iterator[Row]]] = {
    ".jsonl": files.json_records,
    ".json": files.json_records,
    ".csv": files.delimited_records,
    ".tsv": files.delimited_records,
    ".parquet": files.parquet_records,
    ".txt": files.text_lines,
}


def rows(path: str, fields: Sequence[str], part: Part) -> Iterator[Row]:
    """The records of a folder, a file with a known suffix, or a hub id.

    Raises:
        InputError: the source is missing, unreadable or malformed, lacks a field, or has no such part.
    """
    suffix = files.suffix_of(path)
    if os.path.isdir(path):
        if part.revision is not None:
            raise InputError(f"You passed revision={part.revision!r}, which a folder does not have. Remove it.")
        return _data_sets(path, fields, part)
    if os.path.exists(path):
        if suffix not in _READERS:
            raise InputError(
                f"You passed {path}, whose suffix is not that of a format that can be read. Convert the file to one "
                f"of {', '.join(_READERS)}, or rename it if it is one of these."
            )
        _refuse_options_without_effect(path, suffix, fields, part)
        return _READERS[suffix](path, fields)
    if suffix in _READERS or path.startswith(("/", ".")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise InputError(f"File not found: {path!r}. {_near_matches(path)} Correct the path.")
    return _data_sets(path, fields, part)


def _refuse_options_without_effect(path: str, suffix: str, fields: Sequence[str], part: Part) -> None:
    idle = [f"config={part.config!r}"] if part.config is not None else []
    idle += [f"split={part.split!r}"] if part.split != "train" else []
    idle += [f"data_dir={list(part.folders)}"] if part.folders else []
    idle += [f"revision={part.revision!r}"] if part.revision is not None else []
    idle += [f"field={', '.join(fields)}"] if suffix == ".txt" and list(fields) != ["query"] else []
    if idle:
        raise InputError(
            f"You passed {', '.join(idle)}, which has no effect on the file {path}: files have no split, "
            "configuration, folder or revision, and text files no fields. Remove the option, or name another source."
        )


def _near_matches(path: str) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        return f"The folder {str(folder)!r} does not exist."
    names = sorted(entry.name for entry in folder.iterdir())
    near = get_close_matches(Path(path).name, names, n=3, cutoff=0.5)
    where = f"in {str(folder.resolve())!r}"
    return f"Similar names {where}: {', '.join(near)}." if near else f"Nothing {where} has a similar name."


def _data_sets(path: str, fields: Sequence[str], part: Part) -> Iterator[Row]:
    for folder in part.folders or (None,):
        data = _data_set(path, part, folder)
        files.require_fields(f"The data set {path!r}", fields, data.column_names)
        columns = [name for name in {"id", *fields} if name in data.column_names]
        for number, record in enumerate(data.select_columns(columns), 1):
            yield f"Row {number} of {path}" + (f" ({folder})" if folder else ""), record


def _data_set(path: str, part: Part, folder: str | None) -> Any:
    from datasets import load_dataset

    if folder is not None and os.path.isdir(path) and not os.path.isdir(os.path.join(path, folder)):
        raise InputError(f"The data set {path!r} has no folder {folder!r}. {_near_matches(os.path.join(path, folder))}")
    try:
        return load_dataset(path, part.config, data_dir=folder, split=part.split, revision=part.revision)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        raise _not_loaded(path, part, folder, error) from error


def _not_loaded(path: str, part: Part, folder: str | None, error: Exception) -> InputError:
    if isinstance(error, OSError) and not os.path.isdir(path):
        return InputError(
            f"{path!r} is neither a file or folder here nor reachable as a Hugging Face data set "
            f"({type(error).__name__}: {one_line(error)}). {_near_matches(path)} Correct the name, check "
            "the network and access to the hub, or give a file."
        )
    cause = error.__cause__ or error  # a DatasetGenerationError only says that it is one
    advice = "Correct these names, or give a file."
    if "scripts are no longer supported" in str(cause):
        advice = (
            "The hub keeps such data as Parquet files as well. Give revision=refs/convert/parquet and "
            f"data_dir={part.config or 'default'} in place of config, or a file."
        )
    return InputError(
        f"The data set {path!r} cannot be loaded with split {part.split!r} and configuration {part.config!r}"
        + (f" from its folder {folder!r}" if folder else "")
        + f" ({type(cause).__name__}: {one_line(cause)}). {advice}"
    )
