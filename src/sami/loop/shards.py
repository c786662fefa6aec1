"""Contrasts of one iteration generated on several machines: each writes a shard, and a merge checks them.

A shard is an ordinary contrasts file that also tells which part it is and what it was made from, so that files
copied together from anywhere are either the parts of one whole or refused.
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
            raise InputError(f"The shard {text!r} is not of the form I/N with I from 1 to N, such as 2/8.")
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
    told = json.dumps({"shard": str(shard), "inputs": inputs})
    write_contrasts(path, contrasts, {_KEY: told})


def made_from(path: Path) -> tuple[Shard, dict[str, Any]]:
    """Which part a file is, and its inputs.

    Raises:
        InputError: the file cannot be read, or is no shard.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        told = json.loads(metadata[_KEY.encode()])
        return Shard.parse(told["shard"]), told["inputs"]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(
            f"The file {path} is no shard that can be read ({one_line(error)[:200]}). Generate it again."
        ) from None


def require_same(path: Path, inputs: dict[str, Any]) -> None:
    """Refuse a shard that was made from other inputs.

    Raises:
        InputError: with the difference.
    """
    shard, recorded = made_from(path)
    if changed := differences(recorded, inputs):
        raise InputError(
            f"The shard {shard} in {path} was made from other inputs than this recipe and run give:\n{changed}\n"
            f"Delete it and generate it again, or restore the inputs."
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
        raise InputError(f"There are no shards in {folder}. Make them with `sami generate RECIPE --shard I/N`.")
    counts = sorted({shard.of for shard in files})
    if len(counts) > 1:
        raise InputError(
            f"The folder {folder} holds parts of {' and of '.join(map(str, counts))}. Delete those that do not belong."
        )
    whole = [Shard(number, counts[0]) for number in range(1, counts[0] + 1)]
    if missing := [str(shard) for shard in whole if shard not in files]:
        raise InputError(
            f"The folder {folder} lacks the shards {', '.join(missing)}. Generate or copy them there, then merge."
        )
    merged: list[Contrast] = []
    for shard in whole:
        require_same(files[shard], inputs)
        contrasts = read_contrasts(files[shard])
        if [contrast.id for contrast in contrasts] != list(ids[shard.part(len(ids))]):
            raise InputError(
                f"The shard {shard} in {files[shard]} does not hold the contrasts that the recipe plans for it. "
                f"Delete it and generate it again."
            )
        merged += contrasts
    return merged
