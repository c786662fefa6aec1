"""KL divergence of a policy from a reference, token by token, without a large [tokens, vocabulary] tensor.

    M, kl = scored_with_divergence(model, batch, frozen(base)).split([R, 1], -1)

Shapes: B contrasts, C constitutions, R responses, T response tokens, X scored positions, D hidden size,
V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sami.contrasts import ContrastBatch
from sami.models import structure
from sami.scoring import logprobs

# Yields the reference model inside a `with` block.
Reference = Callable[[], AbstractContextManager[nn.Module]]


def frozen(model: nn.Module) -> Reference:
    """A reference that has weights of its own."""
    return lambda: nullcontext(model)


def adapter_off(model: PeftModel) -> Reference:
    """The policy's own base as the reference: its adapter and dropout are switched off."""

    @contextmanager
    def switched() -> Iterator[nn.Module]:
        training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(training)

    return switched


def scored_with_divergence(
    model: nn.Module, batch: ContrastBatch, reference: Reference, *, per_token: bool = True
) -> Tensor:
    """The log-prob matrix with one more column, the KL divergence, from one pass over a batch.

    Args:
        model, batch, per_token: as in `logprob_matrix`; per_token does not affect the divergence.
        reference: from `frozen` or `adapter_off`; it receives no gradient.

    Returns:
        [B, C, R + 1] fp32 in nats. The last column is KL(model || reference) of the next token, averaged over the
        tokens of the response that was sampled under this constitution.
    """
    hidden_XD = logprobs.scored_states(model, batch)
    matrix_BCR = logprobs.matrix_of_states(model, batch, hidden_XD, per_token=per_token)
    return torch.cat([matrix_BCR, _divergence(model, batch, hidden_XD, reference)[..., None]], -1)


def _divergence(model: nn.Module, batch: ContrastBatch, hidden_XD: Tensor, reference: Reference) -> Tensor:
    """[B, C], from the states of each response under its own constitution."""
    own = list(batch.constitutions)
    mask_BCT = batch.response_mask[:, own]
    at = batch.predictor[:, range(len(own)), own][mask_BCT]
    with torch.no_grad(), reference() as base:
        reference_XD = logprobs.scored_states(base, batch)[at]
    tokens = _token_divergence(model, hidden_XD[at], reference, reference_XD)
    tokens_BCT = torch.zeros(mask_BCT.shape, device=tokens.device).masked_scatter(mask_BCT, tokens)
    return tokens_BCT.sum(-1) / mask_BCT.sum(-1).clamp(min=1)


def _token_divergence(model: nn.Module, hidden_XD: Tensor, reference: Reference, reference_XD: Tensor) -> Tensor:
    """[X]: exact KL over the vocabulary at each position."""
    size = max(1, logprobs.MOST_LOGITS // (2 * structure.vocabulary_size(model)))  # logits of two models

    def part(hidden: Tensor, reference_hidden: Tensor) -> Tensor:
        with torch.no_grad(), reference() as base:
            reference_logits = structure.head_logits(base, reference_hidden)
        kl: Tensor = _Divergence.apply(structure.head_logits(model, hidden), reference_logits)
        return kl

    if len(hidden_XD) <= size:
        return part(hidden_XD, reference_XD)
    pairs = zip(hidden_XD.split(size), reference_XD.split(size), strict=True)
    return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in pairs])


class _Divergence(torch.autograd.Function):
    """KL(softmax(logits) || softmax(reference)) in fp32, [X]; fp32 logits exist for a few rows at a time."""

    ROWS_AT_ONCE = 256

    @staticmethod
    def forward(ctx: Any, logits_XV: Tensor, reference_XV: Tensor) -> Tensor:
        ratios = map(_log_ratio, *zip(*_rows(logits_XV, reference_XV), strict=True))  # one part at a time
        kl_X = torch.cat([(p * ratio).sum(-1) for p, ratio in ratios])
        ctx.save_for_backward(logits_XV, reference_XV, kl_X)
        return kl_X

    @staticmethod
    def backward(ctx: Any, grad_X: Tensor) -> tuple[Tensor, None]:
        logits_XV, reference_XV, kl_X = ctx.saved_tensors
        grad_XV = torch.empty_like(logits_XV)
        for into, kl, grad, rows in zip(
            grad_XV.split(_Divergence.ROWS_AT_ONCE),
            kl_X.split(_Divergence.ROWS_AT_ONCE),
            grad_X.split(_Divergence.ROWS_AT_ONCE),
            _rows(logits_XV, reference_XV),
            strict=True,
        ):
            p, ratio = _log_ratio(*rows)
            into.copy_(p.mul_(ratio.sub_(kl[:, None])).mul_(grad[:, None]))
        return grad_XV, None


def _rows(logits_XV: Tensor, reference_XV: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = _Divergence.ROWS_AT_ONCE
    return zip(logits_XV.split(size), reference_XV.split(size), strict=True)


def _log_ratio(logits_XV: Tensor, reference_XV: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, and their logarithms minus the reference's, both fp32 [X, V]."""
    log_p = logits_XV.float().log_softmax(-1)
    return log_p.exp(), log_p.sub_(reference_XV.float().log_softmax(-1))
