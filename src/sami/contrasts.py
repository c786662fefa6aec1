"""The record that training eats: its Parquet file, the filters before it, and the packed batch.

A batch holds one row for each (contrast, constitution):

    [pad … prompt | response 1 | response 2 | … | response R | pad]

Prompts are padded on the left, so that all responses of a batch start at one index. Positions restart at
the prompt's length for each response, and the mask keeps responses from seeing each other: every response
is scored as if it alone followed the prompt, and the prompt is computed once.

Shapes: B contrasts, C constitutions, R responses, T response tokens (longest), L row length, N = B * C rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from sami.errors import InputError
from sami.evaluation.leaks import leakage
from sami.evaluation.text_health import repeated_loop, template_leftover
from sami.files import replacing
from sami.generation import FinishReason
from sami.recipe import Filters

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Contrast:
    """One query with C constitutions and one response sampled under each.

    `response_ids[i]` was sampled under `constitutions[i]` and ends with EOS where `finish_reasons[i]` is
    "stop". `prompt_ids[i]` is the training prompt of constitution i. `principles[i]` holds the
    (principle id, is it the definition rather than the antithesis) pairs of constitution i.
    """

    id: str
    query: str
    constitutions: list[str]
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    responses: list[str]
    finish_reasons: list[FinishReason]
    principles: list[list[tuple[str, bool]]]

    def __post_init__(self) -> None:
        c, r = len(self.prompt_ids), len(self.response_ids)
        if c != r or c < 2:
            raise InputError(
                f"Contrast {self.id} has {c} prompts and {r} responses. "
                f"A contrast needs one response for each of at least 2 constitutions."
            )
        for kind, sequences in (("Prompt", self.prompt_ids), ("Response", self.response_ids)):
            empty = [i for i, ids in enumerate(sequences) if not ids]
            if empty:
                raise InputError(f"{kind} {empty[0]} of contrast {self.id} has no tokens, so it cannot be scored.")


SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "query": pa.string(),
        "constitutions": pa.list_(pa.string()),
        "prompt_ids": pa.list_(pa.list_(pa.int32())),
        "response_ids": pa.list_(pa.list_(pa.int32())),
        "responses": pa.list_(pa.string()),
        "finish_reasons": pa.list_(pa.string()),
        "principles": pa.list_(pa.list_(pa.struct({"id": pa.string(), "positive": pa.bool_()}))),
    }
)


def write_contrasts(path: Path, contrasts: Iterable[Contrast]) -> None:
    """Write contrasts to a Parquet file, whole or not at all."""
    rows = []
    for contrast in contrasts:
        row = asdict(contrast)
        row["principles"] = [[{"id": name, "positive": positive} for name, positive in c] for c in contrast.principles]
        rows.append(row)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


def read_contrasts(path: Path) -> list[Contrast]:
    """Read a Parquet file of contrasts.

    Raises:
        InputError: missing, not Parquet, or without the columns of a contrast.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"The contrasts in {path} cannot be read: {' '.join(str(error).split())}.") from None
    missing = [f.name for f in fields(Contrast) if f.name not in table.column_names]
    if missing:
        raise InputError(f"The file {path} lacks the columns {', '.join(missing)} of a contrasts file.")
    try:
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
        return [
            Contrast(**{**row, "principles": [[(p["id"], p["positive"]) for p in c] for c in row["principles"]]})
            for row in rows
        ]
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"The contrasts in {path} are damaged: {' '.join(str(error).split())}.") from None


def filter_contrasts(
    contrasts: Sequence[Contrast], filters: Filters, stop: Sequence[str] = ()
) -> tuple[list[Contrast], dict[str, int]]:
    """Keep the contrasts that pass every filter, and count the others by the first filter that took them.

    Raises:
        InputError: a smaller share than `filters.min_survivors` is left.
    """
    leftovers = [s.strip() if len(s.strip()) > 1 else s for s in stop if s.strip()]
    unwanted = [term.casefold() for term in filters.unwanted]
    checks: dict[str, Callable[[Contrast], bool]] = {}
    if filters.empty:
        checks["empty"] = lambda c: any(not r.strip() for r in c.responses)
    if filters.identical:
        checks["identical"] = lambda c: len({r.strip() for r in c.responses}) < len(c.responses)
    if filters.unfinished:
        checks["unfinished"] = lambda c: "length" in c.finish_reasons
    if filters.stop_leftovers:
        checks["stop_leftovers"] = lambda c: any(
            template_leftover(r) is not None or any(s in r for s in leftovers) for r in c.responses
        )
    if unwanted:
        checks["unwanted"] = lambda c: any(term in r.casefold() for r in c.responses for term in unwanted)
    if filters.loops:
        checks["loops"] = lambda c: any(repeated_loop(r) is not None for r in c.responses)
    if filters.leaks:
        checks["leaks"] = lambda c: any(leakage(r, c.constitutions, c.query) is not None for r in c.responses)

    kept: list[Contrast] = []
    dropped: Counter[str] = Counter({name: 0 for name in checks})
    for contrast in contrasts:
        reason = next((name for name, takes in checks.items() if takes(contrast)), None)
        if reason is None:
            kept.append(contrast)
        else:
            dropped[reason] += 1
    if not kept or len(kept) < filters.min_survivors * len(contrasts):
        taken = ", ".join(f"{name} {count}" for name, count in dropped.most_common() if count)
        worst = dropped.most_common(1)[0][0] if taken else ""
        example = next((c for c in contrasts if worst and checks[worst](c)), None)
        raise InputError(
            f"Only {len(kept)} of {len(contrasts)} contrasts passed the filters ({taken or 'none generated'}); "
            f"filters.min_survivors asks for {filters.min_survivors:.0%}. Raise generation.max_new_tokens, choose "
            f"other principles, or turn off the filter that took most, in a new run."
            + (f" An example of {worst}: {[r[:160] for r in example.responses]}." if example else "")
        )
    return kept, dict(dropped)


@dataclass
class ContrastBatch:
    """B contrasts packed into rows for one forward pass.

    With `shared`, N = B * C rows hold a prompt and all R responses; otherwise N = B * C * R rows hold a
    prompt and one response. Either way all responses start at index `prompt_width`, and cell (b, c, r) has
    its token t at row `cell_row[b, c, r]`, index `cell_start[b, c, r] + t`.
    """

    input_ids: "torch.Tensor"  # [N, L]
    position_ids: "torch.Tensor"  # [N, L]
    segments: "torch.Tensor"  # [N, L]: 0 padding, 1 prompt, 2… one number for each response of the row
    cell_row: "torch.Tensor"  # [B, C, R]
    cell_start: "torch.Tensor"  # [B, C, R]
    response_mask: "torch.Tensor"  # [B, R, T]: True for real tokens
    response_ids: "torch.Tensor"  # [B, R, T]
    prompt_width: int
    shared: bool
    ids: tuple[str, ...]

    def to(self, device: "torch.device | str") -> "ContrastBatch":
        moved = {
            f.name: value.to(device) if hasattr(value := getattr(self, f.name), "to") else value for f in fields(self)
        }
        return ContrastBatch(**moved)

    def __len__(self) -> int:
        return len(self.ids)


def collate(
    contrasts: Sequence[Contrast], pad_token_id: int, share_prefix: bool = True, train_eos: bool = True
) -> ContrastBatch:
    """Pack contrasts of one C into rows; without `train_eos` the EOS of finished responses is not scored.

    >>> one = Contrast("a", "q", ["+", "-"], [[1, 2], [3]], [[7, 9], [8, 9]], ["x", "y"],
    ...                ["stop", "stop"], [[("p", True)], [("p", False)]])
    >>> collate([one], pad_token_id=0).input_ids
    tensor([[1, 2, 7, 9, 8, 9],
            [0, 3, 7, 9, 8, 9]])

    Raises:
        InputError: contrasts of different C in one batch.
    """
    import torch

    c = len(contrasts[0].prompt_ids)
    if any(len(contrast.prompt_ids) != c for contrast in contrasts):
        raise InputError("Contrasts of one batch must have the same number of constitutions.")
    width = max(len(prompt) for contrast in contrasts for prompt in contrast.prompt_ids)
    rows: list[tuple[list[int], list[list[int]]]] = []  # (prompt, responses) of each row
    cell_row = torch.empty(len(contrasts), c, c, dtype=torch.long)
    cell_start = torch.full_like(cell_row, width)
    for b, contrast in enumerate(contrasts):
        for i, prompt in enumerate(contrast.prompt_ids):
            if share_prefix:
                start = width
                for r, response in enumerate(contrast.response_ids):
                    cell_row[b, i, r], cell_start[b, i, r] = len(rows), start
                    start += len(response)
                rows.append((prompt, contrast.response_ids))
            else:
                for r, response in enumerate(contrast.response_ids):
                    cell_row[b, i, r] = len(rows)
                    rows.append((prompt, [response]))

    length = width + max(sum(map(len, responses)) for _, responses in rows)
    input_ids = torch.full((len(rows), length), pad_token_id)
    position_ids = torch.zeros((len(rows), length), dtype=torch.long)
    segments = torch.zeros((len(rows), length), dtype=torch.long)
    for n, (prompt, responses) in enumerate(rows):
        at = width - len(prompt)
        for segment, (first, ids) in enumerate([(0, prompt), *((len(prompt), r) for r in responses)], start=1):
            input_ids[n, at : at + len(ids)] = torch.tensor(ids)
            position_ids[n, at : at + len(ids)] = torch.arange(first, first + len(ids))
            segments[n, at : at + len(ids)] = segment
            at += len(ids)

    longest = max(len(r) for contrast in contrasts for r in contrast.response_ids)
    response_ids = torch.full((len(contrasts), c, longest), pad_token_id)
    response_mask = torch.zeros((len(contrasts), c, longest), dtype=torch.bool)
    for b, contrast in enumerate(contrasts):
        for r, ids in enumerate(contrast.response_ids):
            unscored_eos = not train_eos and contrast.finish_reasons[r] == "stop" and len(ids) > 1
            response_ids[b, r, : len(ids)] = torch.tensor(ids)
            response_mask[b, r, : len(ids) - unscored_eos] = True
    return ContrastBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        cell_row=cell_row,
        cell_start=cell_start,
        response_mask=response_mask,
        response_ids=response_ids,
        prompt_width=width,
        shared=share_prefix,
        ids=tuple(contrast.id for contrast in contrasts),
    )


def row_tokens(contrast: Contrast) -> int:
    """Tokens of the contrast's longest row, the key by which batches are sorted to save padding."""
    return max(map(len, contrast.prompt_ids)) + sum(map(len, contrast.response_ids))
