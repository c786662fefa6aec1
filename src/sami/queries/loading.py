"""Queries read, cleaned and counted."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sami.errors import InputError
from sami.queries.formats import FORMATS
from sami.queries.query import Query, normalize, text_hash
from sami.queries.sources import Part, rows


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
        """The reasons for which records were dropped, with how many each; empty where all are usable."""
        names = ("duplicates", "empty", "no_human_turn", "too_short", "too_long")
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name in names if (count := getattr(self, name)))


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
    """Read queries, strip them, and drop those that are empty, too short, too long or repeated.

    Args:
        path: a file, either .jsonl or .json (one object a line, or one array of objects), .csv, .tsv, .parquet or
            .txt (one query a line), any of them but Parquet also with .gz; otherwise a folder or a Hugging Face hub
            id, which go through `datasets.load_dataset`.
        format: "text", the query is in `field`, as text or as a conversation with one user turn; "hh", the first
            human turn of the transcripts `chosen` and `rejected` (HH-RLHF); "tldr", the post inside `info`
            (summarize_from_feedback).
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
            f"You passed field={field!r} with format {format!r}, which knows where the query is. Remove one of the two."
        )
    fields = FORMATS[format].fields or (field,)
    cleaning = _Cleaning(min_chars, max_chars)
    for place, record in rows(path, fields, Part(split, config, tuple(data_dir), revision)):
        cleaning.take(*FORMATS[format].extract(place, record, field))
    loaded = cleaning.loaded()
    if not loaded.queries:
        turns = f", {loaded.no_human_turn} transcripts that do not open with a human turn" if format == "hh" else ""
        raise InputError(
            f"No usable query is left of the {loaded.read} records in {path}: {loaded.empty} empty, "
            f"{loaded.too_short} shorter than {min_chars} characters, {loaded.too_long} longer than {max_chars}, "
            f"{loaded.duplicates} duplicates{turns}. Give a source with queries in the field "
            f"{' or '.join(map(repr, fields))}, or change the length limits."
        )
    return loaded


class _Cleaning:
    """The usable queries so far, and what was dropped."""

    def __init__(self, min_chars: int, max_chars: int) -> None:
        self._min_chars, self._max_chars = min_chars, max_chars
        self._queries: list[Query] = []
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._ids: set[str] = set()

    def take(self, record_id: object, text: str | None) -> None:
        self._counts["read"] += 1
        key = normalize(text or "")
        if reason := self._reason_to_drop(text, key):
            self._counts[reason] += 1
            return
        assert text is not None
        self._seen.add(key)
        self._queries.append(Query(self._unused_id(record_id, text), text))
        self._ids.add(self._queries[-1].id)

    def loaded(self) -> LoadedQueries:
        names = [field.name for field in dataclasses.fields(LoadedQueries) if field.name != "queries"]
        return LoadedQueries(self._queries, **{name: self._counts[name] for name in names})

    def _reason_to_drop(self, text: str | None, key: str) -> str | None:
        if text is None:
            return "no_human_turn"
        if not key:
            return "empty"
        if len(text) < self._min_chars:
            return "too_short"
        if len(text) > self._max_chars:
            return "too_long"
        return "duplicates" if key in self._seen else None

    def _unused_id(self, record_id: object, text: str) -> str:
        digest = text_hash(text)
        candidates = [digest[:16], digest]
        if isinstance(record_id, float) and record_id.is_integer():  # pandas makes floats of integers with gaps
            record_id = int(record_id)
        if isinstance(record_id, int | str) and not isinstance(record_id, bool):
            own = str(record_id).strip()
            if own and own.isprintable():
                candidates.insert(0, own)
        return next(candidate for candidate in candidates if candidate not in self._ids)
