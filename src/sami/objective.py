"""The loss and the information bounds: pure functions of a log-prob tensor.

`logprobs[b, c, r]` is the log-probability of response r under constitution c for contrast b.
Shapes: B contrasts, C constitutions, R responses (C == R).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from sami.errors import InputError

ContrastDirection = Literal["both", "columns", "rows"]


def sami_loss(logprobs_BCR: Tensor, contrast: ContrastDirection = "both") -> Tensor:
    """The SAMI objective: cross-entropy of rows and columns of the log-prob matrix against its diagonal.

    Columns ask which constitution produced this response, rows which response belongs to this constitution;
    "both" is their mean. Fränken et al. 2024, section 3.

    Args:
        logprobs_BCR: [B, C, R] with C == R, in nats.

    Returns:
        [], the mean over contrasts.

    Raises:
        InputError: C != R, C < 2, or an unknown direction.
    """
    return contrast_losses(logprobs_BCR, contrast).mean()


def contrast_losses(logprobs_BCR: Tensor, contrast: ContrastDirection = "both") -> Tensor:
    """The loss of each contrast, [B]; see `sami_loss`."""
    _check(logprobs_BCR)
    match contrast:
        case "columns":
            return _cross_entropy(logprobs_BCR, over=1)
        case "rows":
            return _cross_entropy(logprobs_BCR, over=2)
        case "both":
            return (_cross_entropy(logprobs_BCR, over=1) + _cross_entropy(logprobs_BCR, over=2)) / 2
    raise InputError(f"contrast is {contrast!r}; it can be both, columns or rows.")


def information_bound(logprobs_BCR: Tensor) -> Tensor:
    """Lower bound on I(response; constitution | query) for each contrast, in nats.

    InfoNCE over constitutions (columns) with a tractable conditional: Poole et al. 2019, eq. 12. It holds
    for the mean over contrasts whose constitutions are drawn uniformly and independently of the query.

    Args:
        logprobs_BCR: [B, C, R] with C == R.

    Returns:
        [B], at most log(C).

    Raises:
        InputError: C != R, or C < 2.
    """
    losses_B = contrast_losses(logprobs_BCR, "columns")
    return math.log(logprobs_BCR.shape[1]) - losses_B


def row_figure(logprobs_BCR: Tensor) -> Tensor:
    """`log C` minus the row loss, [B] in nats. Not a bound: it assumes equal marginals of the responses."""
    losses_B = contrast_losses(logprobs_BCR, "rows")
    return math.log(logprobs_BCR.shape[1]) - losses_B


def column_accuracy(logprobs_BCR: Tensor) -> Tensor:
    """Share of responses that are likeliest under their own constitution, [B]; a tie counts 1/2 for two."""
    return _accuracy(logprobs_BCR, over=1)


def row_accuracy(logprobs_BCR: Tensor) -> Tensor:
    """Share of constitutions under which their own response is the likeliest, [B]; ties are shared."""
    return _accuracy(logprobs_BCR, over=2)


def _cross_entropy(logprobs_BCR: Tensor, over: int) -> Tensor:
    own_BC = torch.diagonal(logprobs_BCR, dim1=1, dim2=2)
    return (torch.logsumexp(logprobs_BCR, dim=over) - own_BC).mean(dim=1)


def _accuracy(logprobs_BCR: Tensor, over: int) -> Tensor:
    _check(logprobs_BCR)
    best_BCR = logprobs_BCR == logprobs_BCR.amax(dim=over, keepdim=True)
    own_BC = torch.diagonal(best_BCR, dim1=1, dim2=2).float()
    return (own_BC / best_BCR.sum(dim=over)).mean(dim=1)


def _check(logprobs_BCR: Tensor) -> None:
    if logprobs_BCR.dim() != 3 or logprobs_BCR.shape[1] != logprobs_BCR.shape[2] or logprobs_BCR.shape[1] < 2:
        raise InputError(
            f"The log-prob matrix has shape {tuple(logprobs_BCR.shape)}. It needs [B, C, R] with one response "
            f"for each of at least 2 constitutions."
        )
