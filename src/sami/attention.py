"""Attention over packed rows, and over one new token, behind the interface of transformers.

A packed batch is one flat sequence of rows `prompt | response 1 | … | response R` without padding (see
`contrasts`). A token sees its prompt and the earlier tokens of its own response. Which tokens those are
travels as the attention mask: an int32 tensor [1, 1, N, 1 + R] with the length of the prompt and of each
response of the N rows. Models hand a 4-D mask to their attention untouched, so every family works.

Shapes: H query heads, K key heads, G = H / K, S packed tokens, L tokens of a row, P of its prompt, R responses,
T tokens of the longest response, D head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sami"

RowLengths = tuple[int, ...]  # (prompt, response 1, …, response R)


def packed_mask(rows: list[RowLengths]) -> Tensor:
    """The attention mask of a packed batch, int32 [1, 1, N, 1 + R]."""
    return torch.tensor([[rows]], dtype=torch.int32)


def install(model: PreTrainedModel) -> None:
    """Let a model attend through this module; calls without a packed mask give what SDPA gives."""
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
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
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
    attended, start = [], 0
    for row in rows:
        part = slice(start, start := start + sum(row))
        q, k, v = query[:, :, part], key[:, :, part], value[:, :, part]
        mask = _row_mask(row, None if within_window else sliding_window, query.device)
        if softcap is not None:
            attended.append(_attend_capped(q, k, v, mask, softcap=softcap, scaling=scale, dropout=dropout))
        else:
            out = scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=_groups(q, k) > 1)
            attended.append(out.transpose(1, 2))
    return torch.cat(attended, 1)


@functools.lru_cache(maxsize=256)
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
    """Packed attention in pieces that need no mask: prompt, responses on prompt, responses on themselves.

    The two pieces of a response are merged by their log-sum-exps. In the backward pass the merged ones give the
    exact share of each piece, so the pieces' gradients add up; written as matrix products it takes half the time
    of PyTorch's own backward pass on CPU.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: list[RowLengths], scale: float) -> Tensor:
        output = query.new_empty(query.transpose(1, 2).shape)  # [1, S, H, D]
        lse = torch.empty(query.shape[1], query.shape[2], dtype=torch.float32)  # [H, S]
        start = 0
        for row in rows:
            prompt, end = start + row[0], start + sum(row)
            q, k, v = query[:, :, start:end], key[:, :, start:end], value[:, :, start:end]
            p = row[0]
            output[:, start:prompt], lse[:, start:prompt] = _flash(q[:, :, :p], k[:, :, :p], v[:, :, :p], True, scale)
            if end == prompt:  # responses of one token each, which their prompt predicts
                start = end
                continue
            on_prompt, lse_prompt = _flash(q[:, :, p:], k[:, :, :p], v[:, :, :p], False, scale)
            index_RT, real_RT = _responses(row)
            q_R, k_R, v_R = (_by_response(x, index_RT) for x in (q, k, v))
            own, lse_own = _flash(q_R, k_R, v_R, True, scale)
            on_own, lse_own = own[real_RT], lse_own.view(-1, *index_RT.shape).flatten(1)[:, real_RT.flatten()]
            merged = torch.logaddexp(lse_prompt, lse_own)
            share = (lse_own - merged).exp_().t()[..., None]  # of the response itself, [T', H, 1]
            output[0, prompt:end] = torch.lerp(on_prompt[0].float(), on_own.float(), share)
            lse[:, prompt:end] = merged
            start = end
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.rows, ctx.scale = rows, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, lse = ctx.saved_tensors
        keys, heads, size = key.shape[1], query.shape[1], query.shape[3]
        groups = heads // keys
        grad_q, grad_k, grad_v = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        delta = (grad.float() * output.float()).sum(-1)[0].t()  # [H, S]
        grad = grad.transpose(1, 2)
        start = 0
        for row in ctx.rows:
            p, end = row[0], start + sum(row)
            q, g = query[0, :, start:end], grad[0, :, start:end]
            k, v = key[0, :, start:end], value[0, :, start:end]
            lse_row, delta_row = lse[:, start:end], delta[:, start:end]
            # All tokens of the row on the prompt.
            q_K, g_K = q.reshape(keys, -1, size), g.reshape(keys, -1, size)
            dq, dk, dv = _gradients(q_K, g_K, k[:, :p], v[:, :p], lse_row, delta_row, ctx.scale)
            dq = dq.view(heads, -1, size)
            grad_k[0, :, start : start + p], grad_v[0, :, start : start + p] = dk, dv
            if row[0] == sum(row):
                grad_q[0, :, start:end], start = dq, end
                continue
            # The responses on themselves.
            index_RT, real_RT = _responses(row)
            responses, longest = index_RT.shape
            q_R, g_R, k_R, v_R = (x[:, index_RT] for x in (q, g, k, v))
            rq, rg = (
                x.view(keys, groups, responses, longest, size).transpose(1, 2).reshape(-1, groups * longest, size)
                for x in (q_R, g_R)
            )
            padded = lse_row[:, index_RT].masked_fill(~real_RT, torch.inf)
            lse_R, delta_R = (
                x.view(keys, groups, responses, longest).transpose(1, 2).reshape(-1, longest)
                for x in (padded, delta_row[:, index_RT])
            )
            dq_R, dk_R, dv_R = _gradients(
                rq, rg, k_R.reshape(-1, longest, size), v_R.reshape(-1, longest, size), lse_R, delta_R, ctx.scale
            )
            dq_R = dq_R.view(keys, responses, groups, longest, size).transpose(1, 2).reshape(heads, -1, size)
            real = real_RT.flatten()
            dq[:, p:] += dq_R[:, real]
            grad_q[0, :, start:end] = dq
            grad_k[0, :, start + p : end] = dk_R.view(keys, -1, size)[:, real]
            grad_v[0, :, start + p : end] = dv_R.view(keys, -1, size)[:, real]
            start = end
        return grad_q, grad_k, grad_v, None, None


def _flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """PyTorch's flash attention on CPU: output [B, S, H, D] and log-sum-exp [H, B * S] (of one sequence, [H, S])."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )
    return output.transpose(1, 2), lse.transpose(0, 1).flatten(1)


def _softmax_gradient(scores: Tensor, grad: Tensor, lse: Tensor, delta: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention weights and the gradient of the scores, [Z, Q, P] each; later keys than the query are masked."""
    weights = (scores.float() * scale - lse[..., None]).exp().tril()
    grad_scores = weights * (grad.float() - delta[..., None]) * scale
    return weights.to(scores.dtype), grad_scores.to(scores.dtype)


_fused_softmax_gradient: Callable[..., tuple[Tensor, Tensor]] = _softmax_gradient


def fuse_softmax_gradient() -> None:
    """Compile the elementwise part of the backward pass, half of its time on CPU."""
    global _fused_softmax_gradient
    if _fused_softmax_gradient is _softmax_gradient:
        _fused_softmax_gradient = torch.compile(_softmax_gradient, dynamic=True)


def _gradients(
    q: Tensor, g: Tensor, k: Tensor, v: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a causal piece: q, g [Z, G * Q, D], k, v [Z, P, D], lse and delta [Z * G, Q]."""
    scores, grad = q @ k.transpose(-1, -2), g @ v.transpose(-1, -2)
    shape = (*lse.shape, k.shape[1])
    weights, grad_scores = _fused_softmax_gradient(scores.view(shape), grad.view(shape), lse, delta, scale)
    weights, grad_scores = weights.view_as(scores), grad_scores.view_as(scores)
    return grad_scores @ k, grad_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ g


@functools.lru_cache(maxsize=256)
def _responses(row: RowLengths) -> tuple[Tensor, Tensor]:
    """Where the tokens of a row's responses stand, [R, T], and which of these are real."""
    lengths = torch.tensor(row[1:])
    starts = row[0] + lengths.cumsum(0) - lengths
    step_T = torch.arange(int(lengths.max()))
    real_RT = step_T < lengths[:, None]
    return torch.where(real_RT, starts[:, None] + step_T, row[0]), real_RT


def _by_response(x: Tensor, index_RT: Tensor) -> Tensor:
    """[1, H, L, D] to [R, H, T, D]."""
    return x[0][:, index_RT].transpose(0, 1)


def _groups(query: Tensor, key: Tensor) -> int:
    return query.shape[1] // key.shape[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
