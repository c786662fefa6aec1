"""Where queries come from and how they are split.

    loaded = load_queries("queries.jsonl")  # or .csv, .parquet, .txt, a folder, "owner/data-set"
    splits = split_queries(loaded.queries, train=240, evaluation=60, seed=0)

Each reader yields records with their place, each format finds the query in a record, and all cleaning happens
once, in `load_queries`. A new kind of file is one new entry in `_READERS`, a new layout of records one in
`_FORMATS`.
"""

import codecs
import csv
import hashlib
import json
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sami.errors import InputError

_Row = tuple[str, dict[str, object]]  # place ("Line 3 of q.csv"), the record's id and the fields asked for


@dataclass(frozen=True)
class Query:
    id: str
    """The record's own id where it has a usable one, else a hash of the normalised text."""
    text: str


@dataclass(frozen=True)
class LoadedQueries:
    """The usable queries, in the source's order, and how many records were dropped for which reason."""

    queries: list[Query]
    read: int
    empty: int
    duplicates: int
    too_short: int
    too_long: int
    no_human_turn: int = 0
    """Transcripts of HH-RLHF that do not open with a human turn."""

    def dropped(self) -> str:
        """The reasons that took records, with how many each; empty where all are usable."""
        names = ("duplicates", "empty", "no_human_turn", "too_short", "too_long")
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name in names if (count := getattr(self, name)))


@dataclass(frozen=True)
class Splits:
    train: tuple[tuple[Query, ...], tuple[Query, ...]]
    """The two halves, A and B."""
    evaluation: tuple[Query, ...]

    def for_iteration(self, iteration: int) -> tuple[Query, ...]:
        """1 -> A, 2 -> B, 3 -> A, …: a model never generates for the queries it was just trained on."""
        if iteration < 1:
            raise ValueError(f"Iterations count from 1; got {iteration}.")
        return self.train[(iteration - 1) % 2]


def normalise(text: str) -> str:
    """The form in which two queries are the same: NFKC, casefolded, white space collapsed."""
    # Casefolding can leave NFKC, so it is applied again: normalise(normalise(x)) == normalise(x).
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def load_queries(
    path: str,
    *,
    format: str = "text",
    field: str = "query",
    split: str = "train",
    config: str | None = None,
    data_dir: Sequence[str] = (),
    revision: str | None = None,
    min_chars: int = 1,
    max_chars: int = 20000,
) -> LoadedQueries:
    """Reads and cleans queries: strips them, drops empty, too short, too long and repeated ones.

    Args:
        path: a .jsonl (or .json with one object a line), .csv, .parquet or .txt (one query a line) file; else
            a folder or a Hugging Face hub id, which go through `datasets.load_dataset`.
        format: "text", the query stands in `field`; "hh", the first human turn of the transcripts `chosen` and
            `rejected` (HH-RLHF); "tldr", the post inside `info` (summarize_from_feedback).
        field: the column that holds the query of format "text".
        split: the data set's split; files have none.
        config: the data set's configuration; files have none.
        data_dir: folders of the data set to read one after the other, in place of the whole; files have none.
        revision: branch, tag or commit of a hub data set.
        min_chars: shortest query kept, in characters after stripping.
        max_chars: longest query kept.

    Raises:
        InputError: the source is missing, unreadable or malformed, or no usable query is left.
    """
    if format != "text" and field != "query":
        raise InputError(
            f"field={field!r} has no effect on format {format!r}, which knows where the query stands. Remove one of "
            "the two."
        )
    fields, extract = _FORMATS[format]
    counts: Counter[str] = Counter()
    queries: list[Query] = []
    seen: set[str] = set()
    ids: set[str] = set()
    for place, record in _rows(path, fields or (field,), _Source(split, config, tuple(data_dir), revision)):
        counts["read"] += 1
        record_id, found = extract(place, record, field)
        text = (found or "").strip()
        key = normalise(text)
        if found is None:
            counts["no_human_turn"] += 1
        elif not text:
            counts["empty"] += 1
        elif len(text) < min_chars:
            counts["too_short"] += 1
        elif len(text) > max_chars:
            counts["too_long"] += 1
        elif key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            queries.append(Query(_unused_id(record_id, key, ids), text))
            ids.add(queries[-1].id)
    if not queries:
        raise InputError(
            f"No usable query is left of the {counts['read']} records in {path}: {counts['empty']} empty, "
            f"{counts['too_short']} shorter than {min_chars} characters, {counts['too_long']} longer than "
            f"{max_chars}, {counts['duplicates']} duplicates"
            + (f", {counts['no_human_turn']} transcripts without a human turn at their start" if format == "hh" else "")
            + f". Give a source with queries in the field {' or '.join(map(repr, fields or (field,)))}, or change the "
            "length limits."
        )
    names = ("read", "empty", "duplicates", "too_short", "too_long", "no_human_turn")
    return LoadedQueries(queries, **{name: counts[name] for name in names})


def split_queries(queries: Sequence[Query], *, train: int, evaluation: int, seed: int) -> Splits:
    """Shuffles with the seed and takes disjoint sets: first `evaluation` queries, then `train` more.

    The evaluation set depends on (queries, evaluation, seed) alone, and a larger `train` only adds queries to
    each half.

    Raises:
        InputError: fewer than 2 training or 1 evaluation queries asked for, more than there are, or queries
            that repeat (one could then be both trained and evaluated on).
    """
    asked = f"{train} training and {evaluation} evaluation queries were asked for"
    if train < 2 or evaluation < 1:
        raise InputError(
            f"{asked}. Training needs at least 2, one for each half, and evaluation at least 1: raise the "
            "number that is too small."
        )
    if train + evaluation > len(queries):
        raise InputError(
            f"{asked}, {train + evaluation} in all, but only {len(queries)} are usable. Ask for fewer, or "
            "give more queries."
        )
    if repeats := len(queries) - len({normalise(query.text) for query in queries}):
        raise InputError(
            f"{repeats} of the {len(queries)} queries repeat an earlier one up to case and white space, so a "
            "query could be both trained and evaluated on. Drop them first, as load_queries does."
        )
    shuffled = random.Random(seed).sample(queries, len(queries))
    # Every other one, so that a larger `train` leaves the queries of each half where they were.
    half_a, half_b = (tuple(shuffled[evaluation + half : evaluation + train : 2]) for half in (0, 1))
    return Splits(train=(half_a, half_b), evaluation=tuple(shuffled[:evaluation]))


@dataclass(frozen=True)
class _Source:
    """Which part of a data set; files have none of these."""

    split: str
    config: str | None
    data_dir: tuple[str, ...]
    revision: str | None


def _plain_query(place: str, record: dict[str, object], field: str) -> tuple[object, str | None]:
    return record.get("id"), _text(place, field, record[field])


# A turn ends where the next one starts, as in "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: …".
_FIRST_HUMAN_TURN = re.compile(r"\s*Human:(.*?)(?=\n\n(?:Human|Assistant):|\Z)", re.DOTALL)


def _first_human_turn(place: str, record: dict[str, object], field: str) -> tuple[object, str | None]:
    """The turn that `chosen` opens with, or else `rejected`, since both answer the same; None where neither does."""
    for name in ("chosen", "rejected"):
        if turn := _FIRST_HUMAN_TURN.match(_text(place, name, record[name])):
            return record.get("id"), turn[1]
    return None, None


def _reddit_post(place: str, record: dict[str, object], field: str) -> tuple[object, str | None]:
    """The post that was summarised; records of news articles have none and count as empty."""
    info = record["info"]
    if not isinstance(info, dict) or "post" not in info:
        raise InputError(
            f"{place} has no `post` in its field 'info': {info!r:.80}. Format tldr reads records of "
            "summarize_from_feedback; for others use format text with the `field` of the query."
        )
    return info.get("id"), _text(place, "info.post", info["post"])


_Extract = Callable[[str, dict[str, object], str], tuple[object, str | None]]
_FORMATS: dict[str, tuple[tuple[str, ...], _Extract]] = {
    "text": ((), _plain_query),
    "hh": (("chosen", "rejected"), _first_human_turn),
    "tldr": (("info",), _reddit_post),
}


def hash_queries(groups: Sequence[Sequence[Query]]) -> str:
    """SHA-256 of the queries' texts in their order and groups, in hex."""
    return hashlib.sha256(json.dumps([[q.text for q in group] for group in groups]).encode()).hexdigest()


def _text(place: str, field: str, value: object) -> str:
    if value is None:  # a missing value, as nullable columns have them: counted as empty
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{place} holds {type(value).__name__} in the field {field!r}: {value!r:.80}. "
            "Queries are strings: name another field, or convert the values."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half a surrogate pair in the field {field!r} ({error.reason}), so it is no valid "
            "text and no tokenizer can read it. Repair or remove the record."
        ) from error
    return value.strip()


def _unused_id(record_id: object, key: str, ids: set[str]) -> str:
    digest = hashlib.sha256(key.encode()).hexdigest()
    candidates = [digest[:16], digest]
    if isinstance(record_id, int | str) and not isinstance(record_id, bool):
        own = str(record_id).strip()
        if own and own.isprintable():
            candidates.insert(0, own)
    return next(candidate for candidate in candidates if candidate not in ids)


def _rows(path: str, fields: Sequence[str], source: _Source) -> Iterator[_Row]:
    """Chooses the reader by what `path` is: a folder, a file with a known suffix, or a hub id."""
    suffix = Path(path).suffix.lower()
    if os.path.isdir(path):
        if source.revision is not None:
            raise InputError(f"revision={source.revision!r} has no effect on the folder {path}. Remove it.")
        return _data_sets(path, fields, source)
    if os.path.exists(path):
        if suffix not in _READERS:
            raise InputError(
                f"The suffix of {path} names no format that can be read. Convert the file to one of "
                f"{', '.join(_READERS)}, or rename it if it is one of these."
            )
        _refuse_options_without_effect(path, suffix, fields, source)
        return _READERS[suffix](path, fields)
    if suffix in _READERS or path.startswith(("/", ".")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise InputError(f"File not found: {path!r}. {_near_matches(path)} Correct the path.")
    return _data_sets(path, fields, source)


def _refuse_options_without_effect(path: str, suffix: str, fields: Sequence[str], source: _Source) -> None:
    idle = [f"config={source.config!r}"] if source.config is not None else []
    idle += [f"split={source.split!r}"] if source.split != "train" else []
    idle += [f"data_dir={list(source.data_dir)}"] if source.data_dir else []
    idle += [f"revision={source.revision!r}"] if source.revision is not None else []
    idle += [f"field={', '.join(fields)}"] if suffix == ".txt" and list(fields) != ["query"] else []
    if idle:
        raise InputError(
            f"{', '.join(idle)} has no effect on the file {path}: files have no split, configuration, folder or "
            "revision, and text files no fields. Remove the option, or name another source."
        )


def _near_matches(path: str) -> str:
    folder = Path(path).parent
    if not folder.is_dir():
        return f"The folder {str(folder)!r} does not exist."
    names = sorted(entry.name for entry in folder.iterdir())
    near = get_close_matches(Path(path).name, names, n=3, cutoff=0.5)
    where = f"in {str(folder.resolve())!r}"
    return f"Similar names {where}: {', '.join(near)}." if near else f"Nothing {where} has a similar name."


def _require(place: str, wanted: Sequence[str], fields: Iterable[str]) -> None:
    names = list(fields)
    for field in wanted:
        if field not in names:
            raise InputError(
                f"{place} has no field {field!r}; its fields are {', '.join(map(repr, names))}. "
                "Name the one that holds the queries."
            )


def _lines(path: str) -> Iterator[str]:
    """Lines with their ends, as UTF-8 without a byte-order mark; only a newline ends a line (not U+2028)."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if b"\0" in line:
                    raise InputError(
                        f"Line {number} of {path} contains a NUL byte, so the file is damaged, binary or in "
                        "UTF-16. Repair it, or save it as UTF-8."
                    )
                yield (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"Line {number} of {path} is not UTF-8 (byte {error.object[error.start]:#04x}: {error.reason}). "
            "Convert the file, for instance with `iconv -f latin1 -t utf-8`."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the file and its rights.") from error


def _text_lines(path: str, fields: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(_lines(path), 1):
        yield f"Line {number} of {path}", {fields[0]: line}


def _json_lines(path: str, fields: Sequence[str]) -> Iterator[_Row]:
    for number, line in enumerate(_lines(path), 1):
        place = f"Line {number} of {path}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place} is not valid JSON ({error}). Each line must be one whole object: repair it, "
                "copy the file again if it was cut off, or turn an array into lines with `jq -c '.[]'`."
            ) from error
        if not isinstance(record, dict):
            raise InputError(
                f"{place} is a JSON {type(record).__name__}, not an object. Each line must be one object "
                f"with the field {fields[0]!r}; `jq -c '.[]'` turns an array of objects into such lines."
            )
        _require(place, fields, record)
        yield place, record


def _csv(path: str, fields: Sequence[str]) -> Iterator[_Row]:
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] = []
    start = 1  # where the record being read starts: an unclosed quote is only noticed at the file's end
    try:
        for row in reader:
            place, start = f"Line {start} of {path}", reader.line_num + 1
            if not row:
                continue
            if not header:
                header = row
                _require(place, fields, header)
            elif len(row) != len(header):
                raise InputError(
                    f"{place} has {len(row)} columns where the header has {len(header)}. Put "
                    "quotes around values that contain commas, or repair the line."
                )
            else:
                yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(
            f"Line {start} of {path} starts a malformed CSV record ({error}). Look for a quote that is "
            'not closed or not doubled (""), and repair the line.'
        ) from error


def _parquet(path: str, fields: Sequence[str]) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _require(path, fields, names)
            number = 0
            columns = [name for name in {"id", *fields} if name in names]
            for batch in file.iter_batches(columns=columns):
                values = [batch.column(name).to_pylist() for name in columns]  # a name that is there twice fails
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"Row {number} of {path}", dict(zip(columns, row, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({error}). It is truncated, damaged or in another format: "
            "write or copy it again."
        ) from error


def _data_sets(path: str, fields: Sequence[str], source: _Source) -> Iterator[_Row]:
    for folder in source.data_dir or (None,):
        yield from _data_set(path, fields, source, folder)


def _data_set(path: str, fields: Sequence[str], source: _Source, folder: str | None) -> Iterator[_Row]:
    from datasets import load_dataset

    if folder is not None and os.path.isdir(path) and not os.path.isdir(os.path.join(path, folder)):
        raise InputError(f"The data set {path!r} has no folder {folder!r}. {_near_matches(os.path.join(path, folder))}")
    try:
        data = load_dataset(path, source.config, data_dir=folder, split=source.split, revision=source.revision)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        if isinstance(error, OSError) and not os.path.isdir(path):
            raise InputError(
                f"{path!r} is neither a file or folder here nor reachable as a Hugging Face data set "
                f"({type(error).__name__}: {error}). {_near_matches(path)} Correct the name, check "
                "the network and access to the hub, or give a file."
            ) from error
        cause = error.__cause__ or error  # a DatasetGenerationError says only that it is one
        raise InputError(
            f"The data set {path!r} cannot be loaded with split {source.split!r} and configuration {source.config!r}"
            + (f" from its folder {folder!r}" if folder else "")
            + f" ({type(cause).__name__}: {cause}). {_advice(str(cause), source.config)}"
        ) from error
    _require(f"The data set {path!r}", fields, data.column_names)
    columns = [name for name in {"id", *fields} if name in data.column_names]
    for number, record in enumerate(data.select_columns(columns), 1):
        yield f"Row {number} of {path}" + (f" ({folder})" if folder else ""), record


def _advice(reason: str, config: str | None) -> str:
    """What to do about a data set that cannot be loaded."""
    if "scripts are no longer supported" not in reason:
        return "Correct these names, or give a file."
    folder = config or "default"
    return (
        f"The hub keeps such data as Parquet files as well: give revision=refs/convert/parquet and data_dir={folder} "
        f"in place of config, or a file."
    )


_READERS: dict[str, Callable[[str, Sequence[str]], Iterator[_Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _text_lines,
}
