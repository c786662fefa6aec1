"""Log-prob matrices of a packed batch: every response of a contrast under every constitution.

    M = logprob_matrix(model, collate(contrasts, pad_token_id))        # [B, C, R], fp32

All responses of a contrast share one row per constitution (see `contrasts`), so a prompt is computed once
for its R responses, and logits exist for response tokens only. The log-softmax is in fp32 whatever the
model's dtype.

Shapes: B contrasts, C constitutions, R responses, T response tokens, N rows, L row length, V vocabulary,
K kept positions (the last prompt token and the responses), M = N * K, X scored tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sami.contrasts import Contrast, ContrastBatch, collate
from sami.errors import InputError

# The two paths differ by rounding, about 1e-5 nats in fp32; a mask that is wrong shows as 1e-2 and more.
PACKING_TOLERANCE = 1e-3
LOGIT_ROWS_AT_ONCE = 256


def logprob_matrix(model: nn.Module, batch: ContrastBatch, *, per_token: bool = True) -> Tensor:
    """Log-probability of each response under each constitution.

    Args:
        model: a causal language model of transformers, or a wrapper that forwards to one.
        batch: from `sami.contrasts.collate`.
        per_token: average over the response's tokens; False sums them.

    Returns:
        [B, C, R] fp32, in nats (per token).
    """
    return reduce_tokens(token_logprobs(model, batch), batch.response_mask, per_token=per_token)


def reduce_tokens(logprobs_BCRT: Tensor, mask: Tensor, *, per_token: bool = True) -> Tensor:
    """Sum or average token log-probs over the tokens that `mask`, [B, R, T], keeps; [B, C, R]."""
    total_BCR = logprobs_BCRT.masked_fill(~mask[:, None], 0.0).sum(-1)
    return total_BCR / mask.sum(-1)[:, None].clamp(min=1) if per_token else total_BCR


def token_logprobs(model: nn.Module, batch: ContrastBatch) -> Tensor:
    """Log-probability of each response token under each constitution.

    Returns:
        [B, C, R, T] fp32 in nats, 0 at padding.

    Raises:
        InputError: non-finite log-probs, with the contrasts they belong to.
    """
    first = batch.prompt_width - 1  # the last prompt token predicts the first token of every response
    kept_K = torch.arange(first, batch.input_ids.shape[1] - 1, device=batch.input_ids.device)
    logits_NKV = model(
        input_ids=batch.input_ids,
        attention_mask=attention_mask(model, batch),
        position_ids=batch.position_ids,
        logits_to_keep=kept_K,
        use_cache=False,
    ).logits
    steps_T = torch.arange(batch.response_ids.shape[-1], device=kept_K.device)
    # Token t > 0 is predicted at the index of token t - 1, token 0 at the end of the prompt.
    kept_BCRT = torch.where(steps_T == 0, 0, batch.cell_start[..., None] + steps_T - 1 - first)
    index_BCRT = batch.cell_row[..., None] * len(kept_K) + kept_BCRT
    mask_BCRT = batch.response_mask[:, None].expand_as(index_BCRT)
    target_BCRT = batch.response_ids[:, None].expand_as(index_BCRT)
    scored_X = _TokenLogProb.apply(logits_NKV.flatten(0, 1), index_BCRT[mask_BCRT], target_BCRT[mask_BCRT])
    logprobs_BCRT = torch.zeros(index_BCRT.shape, device=scored_X.device).masked_scatter(mask_BCRT, scored_X)
    if not torch.isfinite(scored_X).all():
        bad = ~torch.isfinite(logprobs_BCRT).flatten(1).all(1)
        _require_finite(scored_X, [name for name, is_bad in zip(batch.ids, bad.tolist(), strict=True) if is_bad])
    return logprobs_BCRT


class _TokenLogProb(torch.autograd.Function):
    """log_softmax(logits)[index, target] in fp32, without an fp32 copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, index_X: Tensor, target_X: Tensor) -> Tensor:
        lse_M = torch.cat([rows.float().logsumexp(-1) for rows in logits_MV.split(LOGIT_ROWS_AT_ONCE)])
        ctx.save_for_backward(logits_MV, lse_M, index_X, target_X)
        return logits_MV[index_X, target_X].float() - lse_M[index_X]

    @staticmethod
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None, None]:
        logits_MV, lse_M, index_X, target_X = ctx.saved_tensors
        weight_M = torch.zeros_like(lse_M).index_add_(0, index_X, grad_X)
        grad_MV = torch.empty_like(logits_MV)
        for start in range(0, len(logits_MV), LOGIT_ROWS_AT_ONCE):
            rows = slice(start, start + LOGIT_ROWS_AT_ONCE)
            softmax = (logits_MV[rows].float() - lse_M[rows, None]).exp_()
            grad_MV[rows] = softmax.mul_(-weight_M[rows, None])
        grad_MV.index_put_((index_X, target_X), grad_X.to(grad_MV.dtype), accumulate=True)
        return grad_MV, None, None


def attention_mask(model: nn.Module, batch: ContrastBatch) -> Tensor | dict[str, Tensor]:
    """Additive 4-D mask [N, 1, L, L]: a token sees its prompt and the earlier tokens of its own response.

    A sliding window is measured in positions, because a response's neighbours in the row are other
    responses. Models that mix layer types take a mask for each type.
    """
    config = _unwrapped(model).config.get_text_config()
    segments = batch.segments
    query, key = segments[:, :, None], segments[:, None, :]
    index = torch.arange(segments.shape[1], device=segments.device)
    allowed = (index[None, :, None] >= index[None, None, :]) & (key > 0) & ((key == query) | (key == 1))
    itself = torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    full = _additive(allowed | itself, _dtype(model))
    window = getattr(config, "sliding_window", None)
    if not window:
        return full
    distance = batch.position_ids[:, :, None] - batch.position_ids[:, None, :]
    sliding = _additive((allowed & (distance < window)) | itself, _dtype(model))
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if kinds == {"full_attention"}:
        return full
    if kinds == {"sliding_attention"} and not hasattr(config, "layer_types"):
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def _additive(allowed_NLL: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed_NLL.shape, dtype=dtype, device=allowed_NLL.device)
    return mask.masked_fill_(~allowed_NLL, torch.finfo(dtype).min)[:, None]


def _dtype(model: nn.Module) -> torch.dtype:
    return getattr(model, "compute_dtype", None) or next(model.parameters()).dtype


class ComputeIn(nn.Module):
    """Runs a model whose weights are fp32 masters in another dtype.

    Parameters are cast for each forward pass, so gradients arrive in fp32 at the masters, and the pass is
    the one that a copy saved in `dtype` will make.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = model
        self.compute_dtype = dtype

    def forward(self, **inputs: Any) -> Any:
        weights = {
            name: weight.to(self.compute_dtype)
            for name, weight in self.module.named_parameters()
            if weight.dtype == torch.float32
        }
        return functional_call(self.module, weights, kwargs=inputs)


@dataclass(frozen=True)
class PackingCheck:
    """Which rows are right for a model, and how far shared ones were off, in nats at the worst token."""

    shared: bool
    difference: float


@torch.no_grad()
def check_packing(model: nn.Module, contrast: Contrast, pad_token_id: int) -> PackingCheck:
    """Compare packed rows with plain sequences on one contrast, in the dtype of the model's weights.

    A plain sequence is a prompt and one response, without padding, packing or a mask of ours. A model on which
    shared rows differ is scored with one response a row.

    Raises:
        InputError: the model cannot be scored in packed rows at all.
    """
    was_training = model.training
    model.eval()
    try:
        alone_CRT = _token_logprobs_alone(model, contrast)
        difference = _difference(model, contrast, pad_token_id, True, alone_CRT)
        if difference <= PACKING_TOLERANCE:
            return PackingCheck(True, difference)
        if _difference(model, contrast, pad_token_id, False, alone_CRT) <= PACKING_TOLERANCE:
            return PackingCheck(False, difference)
    finally:
        model.train(was_training)
    raise InputError(
        f"{type(_unwrapped(model)).__name__} gives other log-probs in padded rows than for single sequences, so its "
        f"contrasts cannot be scored. It may use an attention that ignores masks; use a model of the llama, mistral, "
        f"mixtral, qwen or gemma families, or its eager attention."
    )


def _token_logprobs_alone(model: nn.Module, contrast: Contrast) -> Tensor:
    longest = max(map(len, contrast.response_ids))
    device = next(model.parameters()).device
    alone_CRT = torch.zeros(len(contrast.prompt_ids), len(contrast.response_ids), longest, device=device)
    for c, prompt in enumerate(contrast.prompt_ids):
        for r, response in enumerate(contrast.response_ids):
            sequence = torch.tensor([prompt + response], device=device)
            logits_TV = model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            logprobs_T = logits_TV.log_softmax(-1)[range(len(response)), response]
            _require_finite(logprobs_T, [contrast.id])
            alone_CRT[c, r, : len(response)] = logprobs_T
    return alone_CRT


def _difference(model: nn.Module, contrast: Contrast, pad_token_id: int, shared: bool, alone_CRT: Tensor) -> float:
    # A longer neighbour, so that the contrast is padded as it is in a real batch.
    longer = replace(contrast, prompt_ids=[prompt + prompt[-1:] * 3 for prompt in contrast.prompt_ids])
    batch = collate([contrast, longer], pad_token_id, share_prefix=shared).to(alone_CRT.device)
    try:
        return float((token_logprobs(model, batch)[0] - alone_CRT).abs().max())
    except (RuntimeError, TypeError, IndexError, ValueError):  # an attention that cannot take such a mask
        return float("inf")


def _require_finite(logprobs: Tensor, contrasts: Sequence[str]) -> None:
    if not torch.isfinite(logprobs).all():
        raise InputError(
            f"The model gives log-probs that are not finite for the contrasts {', '.join(contrasts)}. "
            f"Its weights are damaged or its dtype overflows: try model.dtype=float32 or a lower training.lr."
        )


def _unwrapped(model: nn.Module) -> Any:
    inner: Any = model
    while not hasattr(inner, "config") and hasattr(inner, "module"):
        inner = inner.module
    return inner
