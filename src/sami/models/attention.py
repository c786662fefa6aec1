"""Attention over packed rows, and over one new token, behind the interface of transformers.

A packed batch is one flat sequence of rows `prompt | response 1 | … | response R` without padding (see
`contrasts`). A token sees its prompt and the earlier tokens of its own response. Which tokens those are
travels as the attention mask: an int32 tensor [1, 1, N, 1 + R] with the length of the prompt and of each
response of the N rows. Models hand a 4-D mask to their attention untouched, so every family works.

Shapes: H query heads, K key heads, G = H / K, S packed tokens, L tokens of a row, P of its prompt, R responses,
T tokens of the longest response, D head size.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sami"

RowLengths = tuple[int, ...]  # (prompt, response 1, …, response R)
# Rows of at most so many tokens are attended together; for longer ones masked pairs would cost more than calls.
SHORT = 256


def packed_mask(rows: Sequence[Sequence[int]]) -> Tensor:
    """The attention mask of a packed batch, int32 [1, 1, N, 1 + R]."""
    return torch.tensor([[rows]], dtype=torch.int32)


def install(model: PreTrainedModel) -> None:
    """Let a model attend through this module; calls without a packed mask give what SDPA gives.

    A model that SDPA does not serve, such as one with attention sinks, keeps its own attention.
    """
    if model._supports_sdpa and model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B, H, S, D], key and value [B, K, S, D]; gives [B, S, H, D]."""
    if attention_mask is not None and attention_mask.dtype == torch.int32:
        return _attend_packed(query, key, value, attention_mask, **settings), None
    if settings.get("softcap") is not None:
        return _attend_capped(query, key, value, attention_mask, **settings), None
    if query.shape[2] == 1 and query.device.type == "cpu" and _groups(query, key) > 1:
        plain = settings.get("position_bias") is None and settings.get("cache") is None
        if plain and attention_mask is not None and attention_mask.shape[1] == 1:
            return _attend_one(query, key, value, attention_mask, settings.get("scaling")), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """One new token: the query heads of a group stand as the query positions of their shared key head.

    The same numbers as repeating keys and values for each query head, without copying the cache: a quarter of
    the time of generation on two CPU cores.
    """
    sequences, heads, _, size = query.shape
    grouped = query.reshape(sequences, key.shape[1], _groups(query, key), size)
    output = scaled_dot_product_attention(
        grouped, key, value, attn_mask=_additive(mask, query.dtype)[..., : key.shape[2]], scale=scaling
    )
    return output.reshape(sequences, 1, heads, size)


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    softcap: float,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    """Attention with soft-capped scores, which SDPA drops without a word; the softmax is in fp32."""
    groups, scale = _groups(query, key), scaling or query.shape[-1] ** -0.5
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.tanh(query @ key.transpose(-1, -2) * scale / softcap).float() * softcap
    if mask is None:
        new, seen = scores.shape[-2:]
        mask = torch.ones(new, seen, dtype=torch.bool, device=scores.device).tril(seen - new)
    weights = (scores + _additive(mask, torch.float32)[..., : key.shape[2]]).softmax(-1).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, training=dropout > 0)
    return (weights @ value).transpose(1, 2).contiguous()


def _attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packed: Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> Tensor:
    rows = [tuple(lengths) for lengths in packed[0, 0].tolist()]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    within_window = sliding_window is None or max(row[0] + max(row[1:]) for row in rows) <= sliding_window
    if query.device.type == "cpu" and within_window and not dropout and softcap is None:
        output: Tensor = _PackedOnCPU.apply(query, key, value, rows, scale)
        return output
    masks = _row_masks(tuple(rows), None if within_window else sliding_window, query.device)
    attended, start = [], 0
    for row, mask in zip(rows, masks, strict=True):
        part = slice(start, start := start + sum(row))
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]
        if softcap is not None:
            attended.append(_attend_capped(q, k, v, mask, softcap=softcap, scaling=scale, dropout=dropout))
        else:
            k, v = (x.repeat_interleave(_groups(q, x), 1) for x in (k, v))
            attended.append(scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale).transpose(1, 2))
    return torch.cat(attended, 1)


@functools.lru_cache(maxsize=4)
def _row_masks(rows: tuple[RowLengths, ...], window: int | None, device: torch.device) -> list[Tensor]:
    """The masks of a batch, made once for all layers of a kind."""
    return [_row_mask(row, window, device) for row in rows]


def _row_mask(row: RowLengths, window: int | None, device: torch.device) -> Tensor:
    """Which tokens of a row see which, bool [L, L]. A window is measured in positions, which restart in responses."""
    segment_L = torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row))
    index_L = torch.arange(sum(row))
    allowed = (index_L[:, None] >= index_L) & ((segment_L[:, None] == segment_L) | (segment_L == 0))
    if window is not None:
        starts = torch.tensor([0, *(sum(row[:i]) for i in range(1, len(row)))])
        position_L = index_L - starts[segment_L] + (segment_L > 0) * row[0]
        allowed &= position_L[:, None] - position_L < window
    return allowed.to(device)


class _PackedOnCPU(torch.autograd.Function):
    """Packed attention as few large products.

    Short rows are padded to one length and attended together under a mask. A long row is attended in pieces that
    need no mask: prompt, responses on prompt, responses on themselves. The two pieces of a response are merged by
    their log-sum-exps; in the backward pass the merged ones give the exact share of each piece, so the pieces'
    gradients add up. As matrix products the backward pass takes half the time of PyTorch's own on CPU.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: list[RowLengths], scale: float) -> Tensor:
        output = query.new_empty(query.transpose(1, 2).shape)  # [1, S, H, D]
        lse = torch.empty(query.shape[1], query.shape[2], dtype=torch.float32)  # [H, S]
        heads_first = output[0].transpose(0, 1)
        short, long, responses = _by_length(tuple(rows))
        if short is not None:
            q, k, v = (x[0][:, short.index_NL].transpose(0, 1) for x in (query, key, value))
            out, lse_NHL = _flash(q, k, v, scale, mask=_additive(short.mask_NLL[:, None], query.dtype))
            heads_first[:, short.real_S] = out.transpose(0, 1).flatten(1, 2)[:, short.real_NL]
            lse[:, short.real_S] = lse_NHL.transpose(0, 1).flatten(1)[:, short.real_NL]
        own, lse_own = _attend_responses(query[0], key[0], value[0], responses, scale) if responses else (None, None)
        seen = 0
        for start, row in long:
            prompt, rest = slice(start, start + row[0]), slice(start + row[0], start + sum(row))
            k, v = key[:, :, prompt], value[:, :, prompt]
            out, lse_1HL = _flash(query[:, :, prompt], k, v, scale, causal=True)
            heads_first[:, prompt], lse[:, prompt] = out[0], lse_1HL[0]
            if own is None or lse_own is None or sum(row) == row[0]:  # responses that their prompt alone predicts
                continue
            out, lse_1HL = _flash(query[:, :, rest], k, v, scale)
            mine = slice(seen, seen := seen + sum(row[1:]))
            merged = torch.logaddexp(lse_1HL[0], lse_own[:, mine], out=lse[:, rest])
            share = (lse_own[:, mine] - merged).exp_()[..., None]  # of the response itself
            heads_first[:, rest] = torch.lerp(out[0].float(), own[:, mine].float(), share)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, lse = ctx.saved_tensors
        delta = (grad.float() * output.float()).sum(-1)[0].t()  # [H, S]
        tensors = (query[0], grad[0].transpose(0, 1), key[0], value[0], lse, delta)
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        short, long, responses = _by_length(tuple(ctx.rows))
        if short is not None:
            q, g, k, v, lse_N, delta_N = (x[:, short.index_NL].transpose(0, 1) for x in tensors)
            pieces = _gradients(q, g, k, v, lse_N, delta_N, short.mask_NLL[:, None], ctx.scale)
            for whole, piece in zip(gradients, pieces, strict=True):
                whole[0][:, short.real_S] = piece.transpose(0, 1).flatten(1, 2)[:, short.real_NL]
        own = _response_gradients(tensors, responses, ctx.scale) if responses else None
        grad_q, grad_k, grad_v = (whole[0] for whole in gradients)
        seen = 0
        for start, row in long:
            part, prompt = slice(start, start + sum(row)), slice(start, start + row[0])
            q, g, k, v, lse_L, delta_L = (
                x[None, :, i] for x, i in zip(tensors, (part, part, prompt, prompt, part, part), strict=True)
            )
            mask = _lower(sum(row), row[0])
            grad_q[:, part], grad_k[:, prompt], grad_v[:, prompt] = (
                piece[0] for piece in _gradients(q, g, k, v, lse_L, delta_L, mask, ctx.scale)
            )
            if own is None or sum(row) == row[0]:
                continue
            rest, mine = slice(start + row[0], start + sum(row)), slice(seen, seen := seen + sum(row[1:]))
            grad_q[:, rest] += own[0][:, mine]
            grad_k[:, rest], grad_v[:, rest] = own[1][:, mine], own[2][:, mine]
        return (*gradients, None, None)


@dataclass(frozen=True)
class _ShortRows:
    """Rows that are attended together, padded to L tokens."""

    index_NL: Tensor  # where the tokens stand in the batch; padding repeats the first
    mask_NLL: Tensor  # which tokens see which; padding sees nothing and is not seen
    real_NL: Tensor  # flat positions of real tokens in [N, L]
    real_S: Tensor  # and in the batch


@functools.lru_cache(maxsize=64)
def _by_length(
    rows: tuple[RowLengths, ...],
) -> tuple[_ShortRows | None, list[tuple[int, RowLengths]], "_Responses | None"]:
    """The short rows of a batch as one group, the long ones with where each starts, and the responses of these."""
    starts = [sum(map(sum, rows[:n])) for n in range(len(rows))]
    short = [(start, row) for start, row in zip(starts, rows, strict=True) if sum(row) <= SHORT]
    long = [(start, row) for start, row in zip(starts, rows, strict=True) if sum(row) > SHORT]
    if not short:
        return None, long, _responses(long)
    length = max(sum(row) for _, row in short)
    step_L = torch.arange(length)
    lengths_N1 = torch.tensor([[sum(row)] for _, row in short])
    real_NL = step_L < lengths_N1
    index_NL = torch.tensor([[start] for start, _ in short]) + torch.where(real_NL, step_L, 0)
    mask_NLL = torch.zeros(len(short), length, length, dtype=torch.bool)
    for mask, (_, row) in zip(mask_NLL, short, strict=True):
        mask[: sum(row), : sum(row)] = _row_mask(row, None, torch.device("cpu"))
    return _ShortRows(index_NL, mask_NLL, real_NL.flatten().nonzero()[:, 0], index_NL[real_NL]), long, _responses(long)


@dataclass(frozen=True)
class _Responses:
    """The M responses of all long rows, attended on themselves together, padded to T tokens."""

    index_M1T: Tensor  # where the tokens stand in the batch; padding repeats the response's first
    mask_M1TT: Tensor  # which tokens see which; padding sees nothing and is not seen
    response_X: Tensor  # of each of the X real tokens, in the order of the batch: its response,
    step_X: Tensor  # and its place there

    def padded(self, x: Tensor) -> Tensor:
        """[M, H, T, …] of [H, S, …]."""
        return x[torch.arange(len(x))[:, None], self.index_M1T]

    def in_order(self, x: Tensor) -> Tensor:
        """[H, X, …] of [M, H, T, …]."""
        return x[self.response_X, torch.arange(x.shape[1])[:, None], self.step_X]


def _responses(long: Sequence[tuple[int, RowLengths]]) -> _Responses | None:
    starts = [start + sum(row[:r]) for start, row in long for r in range(1, len(row)) if row[r]]
    lengths = [length for _, row in long for length in row[1:] if length]
    if not lengths:
        return None
    step_T = torch.arange(max(lengths))
    real_MT = step_T < torch.tensor(lengths)[:, None]
    response_X, step_X = real_MT.nonzero(as_tuple=True)
    return _Responses(
        index_M1T=(torch.tensor(starts)[:, None] + torch.where(real_MT, step_T, 0))[:, None],
        mask_M1TT=_lower(len(step_T), len(step_T)) & real_MT[:, None, :, None],
        response_X=response_X,
        step_X=step_X,
    )


def _attend_responses(
    query: Tensor, key: Tensor, value: Tensor, responses: _Responses, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [H, X, D] and log-sum-exp [H, X] of responses that see only themselves."""
    q, k, v = map(responses.padded, (query, key, value))
    output, lse = _flash(q, k, v, scale, causal=True)
    return responses.in_order(output), responses.in_order(lse)


def _response_gradients(tensors: Sequence[Tensor], responses: _Responses, scale: float) -> list[Tensor]:
    """What the same pieces add to the gradients of q, [H, X, D], k and v, [K, X, D]."""
    q, g, k, v, lse, delta = map(responses.padded, tensors)
    return [responses.in_order(piece) for piece in _gradients(q, g, k, v, lse, delta, responses.mask_M1TT, scale)]


def _gradients(
    q: Tensor, g: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of the output, g.

    q, g are [N, H, Q, D], k, v [N, K, P, D], lse and delta [N, H, Q], mask is broadcast to [N, H, Q, P]. The query
    heads of a group stand as positions of their key head, so keys are not repeated and their gradients are summed.
    """
    grouped = (k.shape[0], k.shape[1], -1, k.shape[3])
    q_G, g_G = q.reshape(grouped), g.reshape(grouped)
    scores, grad = q_G @ k.transpose(-1, -2), g_G @ v.transpose(-1, -2)
    shape = (*lse.shape, k.shape[2])
    weights, grad_scores = _softmax_gradient_of(scores.view(shape), grad.view(shape), lse, delta, mask, scale)
    weights, grad_scores = weights.view_as(scores), grad_scores.view_as(scores)
    return (
        (grad_scores @ k).view(q.shape),
        grad_scores.transpose(-1, -2) @ q_G,
        weights.transpose(-1, -2) @ g_G,
    )


def _softmax_gradient(
    scores: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention weights and the gradient of the scores, [N, H, Q, P] each."""
    weights = ((scores.float() * scale - lse[..., None]).exp()).masked_fill(~mask, 0.0)
    grad_scores = weights * (grad.float() - delta[..., None]) * scale
    return weights.to(scores.dtype), grad_scores.to(scores.dtype)


_softmax_gradient_of: Callable[..., tuple[Tensor, Tensor]] = _softmax_gradient


def fuse_softmax_gradient() -> None:
    """Compile the elementwise part of the backward pass, half of its time on CPU."""
    global _softmax_gradient_of
    if _softmax_gradient_of is _softmax_gradient:
        _softmax_gradient_of = torch.compile(_softmax_gradient, dynamic=True)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PyTorch's flash attention on CPU: output [N, H, Q, D] and log-sum-exp [N, H, Q]."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, lse


@functools.lru_cache(maxsize=64)
def _lower(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril()


def _groups(query: Tensor, key: Tensor) -> int:
    return query.shape[1] // key.shape[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
