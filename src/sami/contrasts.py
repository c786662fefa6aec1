"""`Contrast`, the record that a model is trained on: its Parquet file and the packed batch.

A batch holds one row for each (contrast, constitution), one after the other without padding:

    prompt | response 1 | response 2 | … | response R | prompt | response 1 | …

Positions restart at the prompt's length for each response, and attention keeps responses from seeing each
other: every response is scored as if it alone followed the prompt, and the prompt is computed once. The last
token of a response is predicted but predicts nothing, so it is not part of its row.

Shapes: B contrasts, C constitutions, R responses, T response tokens (longest), N sequences of L tokens,
X scored positions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sami.errors import InputError, one_line
from sami.files import replacing

if TYPE_CHECKING:
    import torch

# "unsplit" is not an engine's: a response that was asked for reasoning and an answer, but has no answer of its own.
FinishReason = Literal["stop", "length", "unsplit"]


@dataclass(frozen=True)
class Contrast:
    """One query with C constitutions and one response sampled under each.

    `response_ids[i]` was sampled under `constitutions[i]` and ends with an end token where `finish_reasons[i]` is
    "stop"; "unsplit" is reasoning without an answer, which is evaluated and never trained on. `prompt_ids[i]` is the
    training prompt of constitution i. `principles[i]` holds the (principle id, is it the definition rather than the
    antithesis) pairs of constitution i. `reasoning[i]` is the text that was written before response i, to be shown
    only; the list is empty if no response has any.
    """

    id: str
    query: str
    constitutions: list[str]
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    responses: list[str]
    finish_reasons: list[FinishReason]
    principles: list[list[tuple[str, bool]]]
    reasoning: list[str] = field(default_factory=list)

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
        "reasoning": pa.list_(pa.string()),
    }
)


def write_contrasts(path: Path, contrasts: Iterable[Contrast], notes: Mapping[str, str] | None = None) -> None:
    """Write contrasts to a Parquet file, whole or not at all, with notes in the file's metadata."""
    rows = []
    for contrast in contrasts:
        row = asdict(contrast)
        row["principles"] = [[{"id": name, "positive": positive} for name, positive in c] for c in contrast.principles]
        rows.append(row)
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(notes)), temporary)


def read_contrasts(path: Path) -> list[Contrast]:
    """Read a Parquet file of contrasts.

    Raises:
        InputError: missing, not Parquet, or without the columns of a contrast.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"The contrasts in {path} cannot be read: {one_line(error)}.") from None
    required = [f.name for f in fields(Contrast) if f.default_factory is MISSING]
    missing = [name for name in required if name not in table.column_names]
    if missing:
        raise InputError(f"{path} is not a contrasts file: the columns {', '.join(missing)} are missing.")
    try:
        if "reasoning" not in table.column_names:  # files of earlier versions
            table = table.append_column("reasoning", pa.array([[]] * len(table), SCHEMA.field("reasoning").type))
        rows = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
        return [
            Contrast(**{**row, "principles": [[(p["id"], p["positive"]) for p in c] for c in row["principles"]]})
            for row in rows
        ]
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"The contrasts in {path} are damaged: {one_line(error)}.") from None


def require_scorable(contrasts: Iterable[Contrast], context: int | None, vocabulary: int) -> None:
    """Refuse contrasts that a model cannot read.

    Args:
        context: most tokens that a prompt with one response may have; None for no limit.
        vocabulary: size of the model's.

    Raises:
        InputError: a response beyond the context, or token ids beyond the vocabulary, with the contrast.
    """
    for contrast in contrasts:
        longest = max(map(len, contrast.prompt_ids))
        r = max(range(len(contrast.response_ids)), key=lambda i: len(contrast.response_ids[i]))
        if context and longest + len(contrast.response_ids[r]) > context:
            raise InputError(
                f"Response {r} of contrast {contrast.id} has {len(contrast.response_ids[r])} tokens and its longest "
                f"prompt {longest}, but the model's context is {context}. Leave the contrast out, or generate shorter "
                f"responses."
            )
        largest = max(map(max, (*contrast.prompt_ids, *contrast.response_ids)))
        if largest >= vocabulary:
            raise InputError(
                f"Contrast {contrast.id} holds the token id {largest}, but the model's vocabulary has {vocabulary} "
                f"tokens. The contrasts were made with another tokenizer: generate them with this model's."
            )


@dataclass
class ContrastBatch:
    """B contrasts as the input of one forward pass.

    Shared rows are packed into one sequence, N = 1. Otherwise every pair of prompt and response is a sequence of
    its own, N = B * C * R, padded on the right.
    """

    input_ids: "torch.Tensor"  # [N, L]
    position_ids: "torch.Tensor"  # [N, L]
    attention_mask: "torch.Tensor"  # packed: int32 [1, 1, rows, 1 + R], see `sami.models.attention`; otherwise [N, L]
    scored: "torch.Tensor"  # [X]: positions of the flattened input that predict a response token
    predictor: "torch.Tensor"  # [B, C, R, T]: which of the scored positions predicts token t
    response_mask: "torch.Tensor"  # [B, R, T]: True for tokens that count
    response_ids: "torch.Tensor"  # [B, R, T]
    shared: bool
    ids: tuple[str, ...]
    constitutions: tuple[int, ...]  # which row of the log-prob matrix each of the C is

    def to(self, device: "torch.device | str") -> "ContrastBatch":
        """A copy on a device; the mask of packed rows is read on the CPU and stays there."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)
            if hasattr(value := getattr(self, f.name), "to") and not (self.shared and f.name == "attention_mask")
        }
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.ids)


def collate(
    contrasts: Sequence[Contrast],
    pad_token_id: int,
    share_prefix: bool = True,
    train_eos: bool = True,
    constitutions: Sequence[int] | None = None,
) -> ContrastBatch:
    """Pack contrasts of one C; without `train_eos` the EOS of finished responses is not scored.

    Args:
        constitutions: which rows of the log-prob matrix to score; all by default.

    >>> one = Contrast("a", "q", ["+", "-"], [[1, 2], [3]], [[7, 9], [8, 9]], ["x", "y"],
    ...                ["stop", "stop"], [[("p", True)], [("p", False)]])
    >>> batch = collate([one], pad_token_id=0)
    >>> batch.input_ids, batch.position_ids
    (tensor([[1, 2, 7, 8, 3, 7, 8]]), tensor([[0, 1, 2, 2, 0, 1, 1]]))
    >>> batch.scored  # the last token of each prompt predicts the first token of both responses
    tensor([1, 2, 3, 4, 5, 6])

    Raises:
        InputError: contrasts of different C in one batch.
    """
    import torch

    c = len(contrasts[0].prompt_ids)
    if any(len(contrast.prompt_ids) != c for contrast in contrasts):
        raise InputError("Contrasts of one batch must have the same number of constitutions.")
    rows = range(c) if constitutions is None else constitutions
    longest = max(len(r) for contrast in contrasts for r in contrast.response_ids)
    response_ids = torch.full((len(contrasts), c, longest), pad_token_id)
    response_mask = torch.zeros((len(contrasts), c, longest), dtype=torch.bool)
    for b, contrast in enumerate(contrasts):
        for r, ids in enumerate(contrast.response_ids):
            unscored_eos = not train_eos and contrast.finish_reasons[r] == "stop" and len(ids) > 1
            response_ids[b, r, : len(ids)] = torch.tensor(ids)
            response_mask[b, r, : len(ids) - unscored_eos] = True
    at_BCRT, inputs = (_packed if share_prefix else _padded)(contrasts, rows, longest, pad_token_id)
    scored, predictor = torch.unique(at_BCRT[response_mask[:, None].expand_as(at_BCRT)], return_inverse=True)
    predictor_BCRT = torch.zeros_like(at_BCRT).masked_scatter_(response_mask[:, None].expand_as(at_BCRT), predictor)
    return ContrastBatch(
        **inputs,
        scored=scored,
        predictor=predictor_BCRT,
        response_mask=response_mask,
        response_ids=response_ids,
        shared=share_prefix,
        ids=tuple(contrast.id for contrast in contrasts),
        constitutions=tuple(rows),
    )


def _packed(
    contrasts: Sequence[Contrast], constitutions: Sequence[int], longest: int, pad_token_id: int
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """Where each response token is predicted, [B, C, R, T], and the model's inputs."""
    import torch

    from sami.models.attention import packed_mask

    responses = len(contrasts[0].response_ids)
    at_BCRT = torch.zeros(len(contrasts), len(constitutions), responses, longest, dtype=torch.long)
    input_ids: list[int] = []
    position_ids: list[int] = []
    lengths: list[list[int]] = []
    for b, contrast in enumerate(contrasts):
        for i, constitution in enumerate(constitutions):
            prompt = contrast.prompt_ids[constitution]
            input_ids += prompt
            position_ids += range(len(prompt))
            lengths.append([len(prompt)])
            before = len(input_ids) - 1
            for r, ids in enumerate(contrast.response_ids):
                at_BCRT[b, i, r, 0] = before
                at_BCRT[b, i, r, 1 : len(ids)] = torch.arange(len(input_ids), len(input_ids) + len(ids) - 1)
                input_ids += ids[:-1]
                position_ids += range(len(prompt), len(prompt) + len(ids) - 1)
                lengths[-1].append(len(ids) - 1)
    return at_BCRT, {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "attention_mask": packed_mask(lengths),
    }


def _padded(
    contrasts: Sequence[Contrast], constitutions: Sequence[int], longest: int, pad_token_id: int
) -> "tuple[torch.Tensor, dict[str, torch.Tensor]]":
    """The same with a sequence for each pair of prompt and response.

    All padding comes last, where no causal model sees it, whatever it does with masks and positions.
    """
    import torch

    responses = len(contrasts[0].response_ids)
    sequences = [
        (contrast.prompt_ids[c], response)
        for contrast in contrasts
        for c in constitutions
        for response in contrast.response_ids
    ]
    length = max(len(prompt) + len(response) - 1 for prompt, response in sequences)
    input_ids = torch.full((len(sequences), length), pad_token_id)
    real = torch.zeros_like(input_ids)
    for row, (prompt, response) in enumerate(sequences):
        filled = slice(0, len(prompt) + len(response) - 1)
        input_ids[row, filled] = torch.tensor(prompt + response[:-1])
        real[row, filled] = 1
    starts = torch.tensor([row * length + len(prompt) - 1 for row, (prompt, _) in enumerate(sequences)])
    starts = starts.view(len(contrasts), len(constitutions), responses, 1)
    return starts + torch.arange(longest), {
        "input_ids": input_ids,
        "position_ids": real.cumsum(-1) - 1,
        "attention_mask": real,
    }


def row_tokens(contrast: Contrast) -> int:
    """Tokens of the contrast's longest row."""
    return max(map(len, contrast.prompt_ids)) + sum(map(len, contrast.response_ids))
