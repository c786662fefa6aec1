"""Reading text strictly, and writing files so that a name never refers to a half-written one."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sami.errors import InputError, one_line, quoted

MOST_NESTED = 100  # lists and mappings inside each other
MOST_DIGITS = 40  # of an integer
MOST_YAML_BYTES = 2_000_000
MOST_YAML_VALUES = 100_000  # of a YAML document, after every alias is replaced by what it refers to

# libyaml where PyYAML was built with it: ten times faster.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_JSON_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_COLON = re.compile(r"\s*:")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


# Reading.


def parse_json(text: str | bytes, place: str, advice: str = "Correct it, or create it again.") -> Any:
    """The value of a JSON text that means the same to every reader.

    Args:
        text: one JSON value.
        place: what the text is, as the subject of a sentence, such as "Line 7 of queries.jsonl".
        advice: what to do about text that is not JSON, as whole sentences.

    Raises:
        InputError: the text is not JSON, a key occurs twice in one object, values are nested more than 100 deep,
            an integer has more than 40 digits, or a string contains a NUL character or half a surrogate pair.
    """
    text = _decoded(text, place, advice)
    if text.count("[") + text.count("{") > MOST_NESTED and _json_depth(text) > MOST_NESTED:
        raise InputError(_too_deep(place))
    repeated: list[str] = []

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.append(next(key for key in keys if keys.count(key) > 1))
        return value

    try:
        value = json.loads(text, object_pairs_hook=mapping, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise InputError(f"{place} is not valid JSON: {error}. {advice}") from None
    except _UnusableError as error:
        raise InputError(f"{place} cannot be used: {error}.") from None
    if repeated:
        raise InputError(f"{place} {_json_duplicate(text, repeated[0])}. Remove one of them.")
    if ("\\u0000" in text or _SURROGATE_ESCAPE.search(text)) and (reason := _unusable_text(value)):
        raise InputError(f"{place} contains {reason}. Remove it.")
    return value


def parse_yaml(text: str | bytes, place: str, advice: str = "Correct it.") -> Any:
    """The value of a YAML document of ordinary size, in which no key is given twice.

    Args:
        text: one document, at most 2 MB.
        place: what the text is, as the subject of a sentence, such as "The recipe quickstart.yaml".
        advice: what to do about text that is not YAML, as whole sentences.

    Raises:
        InputError: the text is not YAML or asks for Python objects, a key occurs twice in one mapping, values are
            nested more than 100 deep, aliases expand to more than 100,000 values or refer to themselves, an integer
            has more than 40 digits, or a string contains a NUL character or half a surrogate pair.
    """
    text = _decoded(text, place, advice)
    if len(text) > MOST_YAML_BYTES:
        raise InputError(f"{place} has {len(text):,} characters, and at most {MOST_YAML_BYTES:,} are read. Shorten it.")
    try:
        _check_yaml_depth(text)
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        _CheckedNodes().measure(node)
        return _Loader("").construct_document(node)
    except _UnusableError as error:
        raise InputError(f"{place} {error}.") from None
    except Exception as error:  # a tag over an unfit value, such as `!!int ""`, ends in errors of every kind
        raise InputError(f"{place} is not valid YAML: {one_line(error) or type(error).__name__}. {advice}") from None


def read_yaml(path: Path, place: str, advice: str = "Correct it.") -> Any:
    """The value of a YAML file; see `parse_yaml`.

    Raises:
        InputError: the file cannot be read, or its text is refused by `parse_yaml`.
    """
    return parse_yaml(read_text(path, place), place, advice)


def read_text(path: Path, place: str) -> str:
    """The text of an ordinary file in UTF-8.

    Raises:
        InputError: it is not a file, cannot be read, or is not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{place} is not an ordinary file. Give the path of a text file.")
    try:
        return _decoded(path.read_bytes(), place, "Convert it, for instance with `iconv -f latin1 -t utf-8`.")
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}. Check the path and its permissions.") from None


class CutValue(NamedTuple):
    """A plain YAML value that a comment follows on its line, so that ` #` may have cut it."""

    line: int
    key: str
    value: str
    comment: str


def cut_values(text: str) -> Iterator[CutValue]:
    """The values of mappings in a YAML text that are followed by a comment on their line.

    >>> list(cut_values("definition: Rank by # of votes"))
    [CutValue(line=1, key='definition', value='Rank by', comment='# of votes')]
    """
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    for key, value in _pairs(yaml.compose(text, Loader=_Loader)):
        if isinstance(value, yaml.ScalarNode) and not value.style:
            end = value.end_mark
            comment = lines[end.line][end.column :] if end.line < len(lines) else ""
            if comment.lstrip().startswith("#"):
                yield CutValue(end.line + 1, str(key.value), value.value, comment.strip())


def _pairs(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key, value
            yield from _pairs(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _pairs(value)


class _UnusableError(Exception):
    """Why a text cannot be used, as the rest of a sentence."""


def _decoded(text: str | bytes, place: str, advice: str) -> str:
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8-sig")
        text.encode()
        return text.removeprefix("\ufeff")
    except UnicodeError as error:
        raise InputError(f"{place} is not valid UTF-8: {one_line(error)}. {advice}") from None


def _too_deep(place: str) -> str:
    return f"{place} nests lists and mappings more than {MOST_NESTED} deep. Make it flatter."


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _UnusableError(f"it contains an integer of {len(digits)} digits, and at most {MOST_DIGITS} are read")
    return int(digits)


def _unusable_text(value: Any) -> str | None:
    """The first character of any string in a value that no file or tokenizer takes, in words."""
    if isinstance(value, str):
        if "\0" in value:
            return "a NUL character"
        return "half a surrogate pair, which is not a character" if re.search(r"[\ud800-\udfff]", value) else None
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next(filter(None, map(_unusable_text, inner)), None)


def _json_depth(text: str) -> int:
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(token, 0) for token in _JSON_TOKEN.findall(text))
    return max(accumulate(steps), default=0)


def _json_duplicate(text: str, key: str) -> str:
    """Where the key of an object occurs for the second time, in words."""
    objects: list[dict[str, int]] = []
    for token in _JSON_TOKEN.finditer(text):
        found = token.group()
        if found in "[{":
            objects.append({})
        elif found in "]}":
            objects.pop()
        elif _COLON.match(text, token.end()) and json.loads(found) == key:
            if key in objects[-1]:
                return f"gives the key {quoted(key)} twice, {_both(text, objects[-1][key], token.start())}"
            objects[-1][key] = token.start()
    raise AssertionError(key)


def _both(text: str, first: int, second: int) -> str:
    lines = [text.count("\n", 0, at) + 1 for at in (first, second)]
    if lines[0] != lines[1]:
        return f"in lines {lines[0]} and {lines[1]}"
    columns = [at - text.rfind("\n", 0, at) for at in (first, second)]
    return f"in columns {columns[0]} and {columns[1]}" + (f" of line {lines[0]}" if "\n" in text.strip() else "")


def _check_yaml_depth(text: str) -> None:
    """Refuse deep nesting by the parser's events: to compose the document would exhaust the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED:
            raise _UnusableError(f"nests lists and mappings more than {MOST_NESTED} deep; make it flatter")


class _CheckedNodes:
    """Sizes of a document's nodes with every alias expanded, refused where a reader would choke on them."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, int]] = {}  # by node: values inside, and how deep they are nested
        self._open: set[int] = set()

    def measure(self, node: Any) -> tuple[int, int]:
        if id(node) in self._open:
            raise _UnusableError(f"contains an alias that refers to itself, in line {_line(node)}; write the value out")
        if id(node) not in self._sizes:
            self._open.add(id(node))
            self._sizes[id(node)] = self._measured(node)
            self._open.remove(id(node))
        return self._sizes[id(node)]

    def _measured(self, node: Any) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
            return 1, 0
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            inner = [one for pair in node.value for one in pair]
        sizes = [self.measure(one) for one in inner]
        values, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
        if values > MOST_YAML_VALUES:
            raise _UnusableError(f"expands to more than {MOST_YAML_VALUES:,} values; shorten it")
        if depth > MOST_NESTED:
            raise _UnusableError(f"nests lists and mappings more than {MOST_NESTED} deep; make it flatter")
        return values, depth


def _check_scalar(node: Any) -> None:
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        raise _UnusableError(
            f"contains an integer of {len(node.value)} digits in line {_line(node)}, and at most {MOST_DIGITS} are read"
        )
    if reason := _unusable_text(node.value):
        raise _UnusableError(f"contains {reason} in line {_line(node)}; remove it")


def _check_keys(node: Any) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if first := lines.get((key.tag, key.value)):
            lines_of = f"lines {first} and {_line(key)}" if first != _line(key) else f"line {first}"
            raise _UnusableError(f"gives the key {quoted(key.value)} twice, in {lines_of}; remove one of them")
        lines[key.tag, key.value] = _line(key)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


# Writing.


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file or folder to; synced and renamed at the end, removed on an error.

    Raises:
        InputError: the path is a device, a pipe or a socket, which the rename would replace.
    """
    _refuse_device(path)
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
    """Check that a file can be created at a path, before the work that fills it.

    Raises:
        InputError: the path is a device or a folder, or a folder on the way to it is missing or read-only.
    """
    _refuse_device(path)
    if path.is_dir():
        raise InputError(f"The file {path} cannot be written: the path is a folder. Give the path of a file.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "is not writable" if folder.is_dir() else "is not a folder"
        raise InputError(f"The file {path} cannot be created: {folder} {reason}. Choose another path for it.")


def _refuse_device(path: Path) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"The output {path} is a device, a pipe or a socket. Give the path of an ordinary file.")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def append_json_line(path: Path, value: Any) -> None:
    """Add one line and sync it, so that what was recorded once is never lost."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
