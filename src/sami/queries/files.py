"""Records of files: JSON, comma- or otherwise separated values, Parquet, and lines of text."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from sami.errors import InputError, one_line, quoted
from sami.files import parse_json
from sami.queries.formats import Record

# UTF-32 first: its mark starts like that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = ",\t;|"
_MISSING = frozenset({"NaN", "nan", "<NA>"})  # as pandas and numpy write a missing value


def suffix_of(path: str) -> str:
    """The suffix in lower case, without the .gz of a compressed file."""
    name = path.lower().removesuffix(".gz")
    return Path(name).suffix


def require_fields(place: str, wanted: Sequence[str], fields: Iterable[str]) -> None:
    """Check that records have the fields, each once.

    Raises:
        InputError: a field is missing, or any name occurs twice.
    """
    names = list(fields)
    if repeated := [name for name, count in Counter(names).items() if name and count > 1]:
        raise InputError(
            f"{place} has the field {repeated[0]!r} twice, so that it is not clear which one is meant. Rename "
            "or remove one of them."
        )
    for field in wanted:
        if field not in names:
            near = [name for name in names if name.strip().casefold() == field.strip().casefold()]
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{place} has no field {field!r}; its fields are {', '.join(map(quoted, names))}.{meant} "
                "Name the one that holds the queries."
            )


def text_lines(path: str, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """One record a line."""
    for number, line in enumerate(_lines_of_any_end(path), 1):
        yield f"Line {number} of {path}", {fields[0]: line}


def json_records(path: str, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The objects of one array, or one object a line."""
    lines = _lines(path)
    first = next((line for line in lines if line.strip()), "")
    lines.close()
    records = _json_array(path) if first.lstrip().startswith("[") else _json_lines(path)
    for place, record in records:
        if not isinstance(record, dict):
            raise InputError(
                f"{place} is a JSON {type(record).__name__}, not an object. Each must be one object with the field "
                f"{fields[0]!r}."
            )
        require_fields(place, fields, record)
        yield place, record


def _json_lines(path: str) -> Iterator[tuple[str, object]]:
    advice = "Each line must be one whole object. Repair it, or copy the file again if it was cut off."
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            place = f"Line {number} of {path}"
            yield place, parse_json(line, place, advice)


def _json_array(path: str) -> Iterator[tuple[str, object]]:
    advice = "Give one array of objects, or one object a line."
    for number, record in enumerate(parse_json("".join(_lines(path)), path, advice), 1):
        yield f"Record {number} of {path}", record


def delimited_records(path: str, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Rows of a table with a header; its separator is the first of , tab ; | under which the header has the fields."""
    header_line = next((line for line in _lines_of_any_end(path) if line.strip()), None)
    if header_line is None:
        return
    separator, padded = _separator(header_line, fields)
    csv.field_size_limit(2**31 - 1)  # cells of any length; the limit is one for the whole process
    reader = csv.reader(_lines_of_any_end(path), strict=True, delimiter=separator, skipinitialspace=padded)
    header: list[str] = []
    start = 1  # where the record being read starts: an unclosed quote is only noticed at the file's end
    try:
        for row in reader:
            place, start = f"Line {start} of {path}", reader.line_num + 1
            if not row:
                continue
            if not header:
                header = [name.strip() for name in row] if padded else row
                require_fields(place, fields, header)
            elif len(row) != len(header):
                raise InputError(
                    f"{place} has {len(row)} columns where the header has {len(header)}. Put quotes around values "
                    f"that contain {separator!r}, or repair the line."
                )
            else:
                yield place, dict(zip(header, (None if cell in _MISSING else cell for cell in row), strict=True))
    except csv.Error as error:
        raise InputError(
            f"Line {start} of {path} starts a malformed record ({error}). Look for a quote that is not closed or not "
            'doubled (""), and repair the line.'
        ) from error


def _separator(header: str, fields: Sequence[str]) -> tuple[str, bool]:
    """The separator, and whether the header has spaces after it."""
    for separator in _SEPARATORS:
        names = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        if set(fields) <= {name.strip() for name in names}:
            plain = next(csv.reader([header], delimiter=separator), [])
            return separator, not set(fields) <= {name.strip("\r\n") for name in plain}
    return max(_SEPARATORS, key=header.count), False


def parquet_records(path: str, fields: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require_fields(path, fields, names)
            number = 0
            columns = [name for name in {"id", *fields} if name in names]
            for batch in file.iter_batches(columns=columns):
                values = [batch.column(name).to_pylist() for name in columns]
                for row in zip(*values, strict=True):
                    number += 1
                    yield f"Row {number} of {path}", dict(zip(columns, row, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({one_line(error)}). It is truncated, damaged or in another format. "
            "Write or copy it again."
        ) from error


def _lines(path: str) -> Generator[str]:
    """Lines with their ends; only a newline ends a line (not U+2028).

    The file is UTF-8, or what its byte-order mark says, and is unpacked where its name ends in .gz.
    """
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(_decoded_lines(file), 1):
                if "\0" in line:
                    raise InputError(
                        f"Line {number} of {path} contains a NUL byte, so the file is damaged, binary, or in UTF-16 "
                        "without a byte-order mark. Repair it, or save it as UTF-8."
                    )
                yield line
    except UnicodeDecodeError as error:
        raise InputError(
            f"Line {number + 1} of {path} is not {error.encoding.upper()} (byte {error.object[error.start]:#04x}: "
            f"{error.reason}). Convert the file, for instance with `iconv -f latin1 -t utf-8`."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be unpacked ({one_line(error)}). It is truncated, damaged or not compressed. Copy it "
            "again, or remove the suffix .gz."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from error


def _lines_of_any_end(path: str) -> Iterator[str]:
    """Lines where a carriage return alone ends one too, as on old Macs."""
    return (piece for line in _lines(path) for piece in re.split("(?<=\r)(?!\n)", line) if piece)


def _opened(path: str) -> IO[bytes]:
    if path.lower().endswith(".gz"):
        return cast(IO[bytes], gzip.open(path))
    return open(path, "rb")


def _decoded_lines(file: IO[bytes]) -> Iterator[str]:
    start = file.read(4)
    file.seek(0)
    encoding = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), None)
    if encoding is None:
        for number, line in enumerate(file):
            yield (line if number else line.removeprefix(codecs.BOM_UTF8)).decode()
    else:
        yield from io.TextIOWrapper(file, encoding=encoding, newline="\n")
