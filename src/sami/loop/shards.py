"""Contrasts of one iteration that several machines generate: each writes a shard, and a merge checks all of them.

A shard is an ordinary contrasts file that also records which part it is and what it was made from. Files that were
copied together are therefore either the parts of one whole, or refused.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sami.contrasts import Contrast, read_contrasts, write_contrasts
from sami.errors import InputError, one_line
from sami.loop.directory import differences

_KEY = "sami.shard"


@dataclass(frozen=True)
class Shard:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/8".

        Raises:
            InputError: not of that form, or no such part.
        """
        match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(
                f"You passed the shard {text!r}. It must have the form I/N with I from 1 to N, such as 2/8."
            )
        return cls(int(match[1]), int(match[2]))

    def part(self, count: int) -> slice:
        """Which of `count` things in a row are this part's; sizes differ by one at most."""
        return slice(count * (self.number - 1) // self.of, count * self.number // self.of)

    def file(self, folder: Path) -> Path:
        return folder / f"{self.number}-of-{self.of}.parquet"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def write_shard(path: Path, contrasts: Sequence[Contrast], shard: Shard, inputs: dict[str, Any]) -> None:
    """Write a part, with what it was made from as JSON values."""
    origin = json.dumps({"shard": str(shard), "inputs": inputs})
    write_contrasts(path, contrasts, {_KEY: origin})


def made_from(path: Path) -> tuple[Shard, dict[str, Any]]:
    """Which part a file is, and its inputs.

    Raises:
        InputError: the file cannot be read or is not a shard.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        origin = json.loads(metadata[_KEY.encode()])
        return Shard.parse(origin["shard"]), origin["inputs"]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(
            f"The file {path} cannot be read as a shard ({one_line(error)[:200]}). Delete it and generate it again."
        ) from None


def require_same(path: Path, inputs: dict[str, Any]) -> None:
    """Refuse a shard whose inputs differ.

    Raises:
        InputError: with the difference.
    """
    shard, recorded = made_from(path)
    if changed := differences(recorded, inputs):
        raise InputError(
            f"The shard {shard} in {path} does not belong to this recipe and run, because its inputs "
            f"differ:\n{changed}\nDelete it and generate it again, or restore the inputs."
        )


def merge(folder: Path, inputs: dict[str, Any], ids: Sequence[str]) -> list[Contrast]:
    """The contrasts of all parts, in order.

    Args:
        ids: of the contrasts that were planned.

    Raises:
        InputError: a part is missing, damaged, or of another whole.
    """
    files = {made_from(path)[0]: path for path in sorted(folder.glob("*.parquet"))}
    if not files:
        raise InputError(f"There are no shards in {folder}. Generate them with `sami generate RECIPE --shard I/N`.")
    counts = sorted({shard.of for shard in files})
    if len(counts) > 1:
        raise InputError(
            f"The folder {folder} mixes shards of different divisions ({' and '.join(map(str, counts))} parts). "
            f"Delete those that do not belong."
        )
    whole = [Shard(number, counts[0]) for number in range(1, counts[0] + 1)]
    if missing := [str(shard) for shard in whole if shard not in files]:
        raise InputError(
            f"The shards {', '.join(missing)} are missing in {folder}. Generate them or copy them there, then merge."
        )
    merged: list[Contrast] = []
    for shard in whole:
        require_same(files[shard], inputs)
        contrasts = read_contrasts(files[shard])
        if [contrast.id for contrast in contrasts] != list(ids[shard.part(len(ids))]):
            raise InputError(
                f"The shard {shard} in {files[shard]} does not hold the contrasts that this recipe plans for it. "
                f"Delete it and generate it again."
            )
        merged += contrasts
    return merged
