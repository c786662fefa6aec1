"""Log-prob matrices of a packed batch: every response of a contrast under every constitution.

    M = logprob_matrix(model, collate(contrasts, pad_token_id))        # [B, C, R], fp32

All responses of a contrast share one row per constitution (see `contrasts`), so a prompt is computed once for its R
responses. Logits exist for response tokens only, and for a part of them at a time. The log-softmax is in fp32 whatever
the model's dtype.

Shapes: B contrasts, C constitutions, R responses, T response tokens, N sequences, L sequence length, X scored
positions, D hidden size, V vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sami.contrasts import Contrast, ContrastBatch, collate
from sami.errors import InputError
from sami.models import attention
from sami.models.structure import causal_lm, has_separate_head, head_logits, vocabulary_size

# Largest number of logits, [X, V], that exist at once; above it, they are recomputed in the backward pass.
MOST_LOGITS = 1 << 27


def logprob_matrix(model: nn.Module, batch: ContrastBatch, *, per_token: bool = True) -> Tensor:
    """Log-probability of each response under each constitution.

    Args:
        model: a causal language model of transformers, or a wrapper of one.
        batch: from `sami.contrasts.collate`.
        per_token: average over the response's tokens; False sums them.

    Returns:
        [B, C, R] fp32, in nats (per token).
    """
    return matrix_of_states(model, batch, scored_states(model, batch), per_token=per_token)


def matrix_of_states(model: nn.Module, batch: ContrastBatch, hidden_XD: Tensor, *, per_token: bool = True) -> Tensor:
    """`logprob_matrix` from `scored_states`."""
    return reduce_tokens(_token_logprobs(model, batch, hidden_XD), batch.response_mask, per_token=per_token)


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
    return _token_logprobs(model, batch, scored_states(model, batch))


def _token_logprobs(model: nn.Module, batch: ContrastBatch, hidden_XD: Tensor) -> Tensor:
    mask_BCRT = batch.response_mask[:, None].expand_as(batch.predictor)
    target_BCRT = batch.response_ids[:, None].expand_as(batch.predictor)
    scored = _head_logprobs(model, hidden_XD, batch.predictor[mask_BCRT], target_BCRT[mask_BCRT])
    logprobs_BCRT = torch.zeros(mask_BCRT.shape, device=scored.device).masked_scatter(mask_BCRT, scored)
    if not torch.isfinite(scored).all():
        bad = ~torch.isfinite(logprobs_BCRT).flatten(1).all(1)
        require_finite(scored, [name for name, is_bad in zip(batch.ids, bad.tolist(), strict=True) if is_bad])
    return logprobs_BCRT


@torch.no_grad()
def response_logprobs(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], pad_token_id: int
) -> list[list[float]]:
    """Log-prob of each token of a response after its prompt, in nats, for pairs of (prompt ids, response ids)."""
    scored = []
    for prompt, response in pairs:
        one = Contrast(  # a contrast has two responses; only the first is used
            id="response",
            query="",
            constitutions=["", ""],
            prompt_ids=[prompt, prompt],
            response_ids=[response, response],
            responses=["", ""],
            finish_reasons=["length", "length"],
            principles=[[], []],
        )
        batch = collate([one], pad_token_id, share_prefix=False, constitutions=[0])
        scored.append(token_logprobs(model, batch.to(next(model.parameters()).device))[0, 0, 0].tolist())
    return scored


def scored_states(model: nn.Module, batch: ContrastBatch) -> Tensor:
    """Last hidden states at the positions that predict response tokens, [X, D].

    Of a model without a separate head (see `has_separate_head`) they are the logits at these positions, [X, V].
    """
    lm = causal_lm(model)
    if batch.shared:
        attention.install(lm)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if batch.shared:  # other rows are numbered as the model does by itself, which a few do not begin at 0
        inputs["position_ids"] = batch.position_ids
    if has_separate_head(lm):
        states_NLD: Tensor = lm.base_model(**inputs).last_hidden_state
        return states_NLD.flatten(0, 1)[batch.scored]
    return _scored_logits(lm, batch, inputs)


def _scored_logits(lm: Any, batch: ContrastBatch, inputs: dict[str, Any]) -> Tensor:
    """The model's own logits at the scored positions, [X, V]."""
    length = batch.input_ids.shape[1]
    row_X, column_X = batch.scored // length, batch.scored % length
    if "logits_to_keep" in inspect.signature(lm.forward).parameters:
        kept, column_X = torch.unique(column_X, return_inverse=True)
        inputs = inputs | {"logits_to_keep": kept}
    logits_NKV: Tensor = lm(**inputs).logits
    return logits_NKV[row_X, column_X]


def _head_logprobs(model: nn.Module, hidden_XD: Tensor, predictor: Tensor, target: Tensor) -> Tensor:
    """Log-prob of each target from the hidden state that predicts it, without a large [X, V] tensor.

    `predictor` and `target` are flat lists of equal length.
    """
    size = max(1, MOST_LOGITS // vocabulary_size(model))

    def part(hidden: Tensor, index: Tensor, wanted: Tensor) -> Tensor:
        return _TokenLogProb.apply(head_logits(model, hidden), index, wanted)

    if len(hidden_XD) <= size:
        return part(hidden_XD, predictor, target)
    scored = hidden_XD.new_zeros(len(predictor), dtype=torch.float32)
    for start in range(0, len(hidden_XD), size):
        chosen = (predictor >= start) & (predictor < start + size)
        values = checkpoint(
            part, hidden_XD[start : start + size], predictor[chosen] - start, target[chosen], use_reentrant=False
        )
        scored = scored.masked_scatter(chosen, values)
    return scored


class _TokenLogProb(torch.autograd.Function):
    """log_softmax(logits)[index, target] in fp32, without an fp32 copy of the logits."""

    @staticmethod
    def forward(ctx: Any, logits_XV: Tensor, index: Tensor, target: Tensor) -> Tensor:
        lse_X = _softmax.logsumexp(logits_XV)
        ctx.save_for_backward(logits_XV, lse_X, index, target)
        return logits_XV[index, target].float() - lse_X[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits_XV, lse_X, index, target = ctx.saved_tensors
        weight_X = torch.zeros_like(lse_X).index_add_(0, index, grad)
        grad_XV = _softmax.weighted(logits_XV, lse_X, -weight_X)
        grad_XV.index_put_((index, target), grad.to(grad_XV.dtype), accumulate=True)
        return grad_XV, None, None


def _logsumexp(logits_XV: Tensor) -> Tensor:
    return logits_XV.float().logsumexp(-1)


def _weighted_softmax(logits_XV: Tensor, lse_X: Tensor, weight_X: Tensor) -> Tensor:
    return ((logits_XV.float() - lse_X[:, None]).exp_() * weight_X[:, None]).to(logits_XV.dtype)


class _Softmax:
    """The elementwise work on logits in fp32: a few rows at a time, or all at once if it is compiled."""

    ROWS_AT_ONCE = 256

    def __init__(self) -> None:
        self._compiled: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None

    def fuse(self) -> None:
        if self._compiled is None:
            self._compiled = (
                torch.compile(_logsumexp, dynamic=True),
                torch.compile(_weighted_softmax, dynamic=True),
            )

    def logsumexp(self, logits_XV: Tensor) -> Tensor:
        """log-sum-exp of each row, [X] fp32."""
        if self._compiled:
            return self._compiled[0](logits_XV)
        return torch.cat([_logsumexp(rows) for rows in logits_XV.split(self.ROWS_AT_ONCE)])

    def weighted(self, logits_XV: Tensor, lse_X: Tensor, weight_X: Tensor) -> Tensor:
        """Softmax of each row times its weight, [X, V] in the dtype of the logits."""
        if self._compiled:
            return self._compiled[1](logits_XV, lse_X, weight_X)
        result_XV = torch.empty_like(logits_XV)
        parts = (x.split(self.ROWS_AT_ONCE) for x in (result_XV, logits_XV, lse_X, weight_X))
        for result, logits, lse, weight in zip(*parts, strict=True):
            result.copy_(_weighted_softmax(logits, lse, weight))
        return result_XV


_softmax = _Softmax()


def fuse_softmax() -> None:
    """Compile the elementwise work on logits, which otherwise takes a sixth of a training pass on CPU."""
    _softmax.fuse()


def require_finite(logprobs: Tensor, contrasts: Sequence[str]) -> None:
    if not torch.isfinite(logprobs).all():
        raise InputError(
            f"The model's log-probs are not finite for the contrasts {', '.join(contrasts)}. Its weights are damaged, "
            f"or its dtype overflows. Try model.dtype=float32 or a lower training.lr."
        )
