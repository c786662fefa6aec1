"""The loss and the information bounds: pure functions of a log-prob tensor.

`logprobs[b, c, r]` is the log-probability of response r under constitution c for contrast b. Two settings choose the
loss: the *direction* in which a matrix is contrasted, and the *estimator* of mutual information that is applied there.

Shapes: B contrasts, C constitutions, R responses (C == R).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sami.errors import InputError

ContrastDirection = Literal["both", "columns", "rows"]

# Loss of each contrast, [B], from [B, C, R] and the dimension whose entries compete: 1 in columns, 2 in rows.
Estimator = Callable[[Tensor, int], Tensor]


def infonce(logprobs_BCR: Tensor, over: int) -> Tensor:
    """Cross-entropy against the diagonal, [B]: `log C` minus it is InfoNCE (Poole et al. 2019, eq. 12)."""
    own_BC = torch.diagonal(logprobs_BCR, dim1=1, dim2=2)
    return (torch.logsumexp(logprobs_BCR, dim=over) - own_BC).mean(dim=1)


# Another bound, such as NWJ or JS, is one function like `infonce` and one line here.
ESTIMATORS: dict[str, Estimator] = {
    "infonce": infonce,
}
_DIRECTIONS: dict[str, tuple[int, ...]] = {"columns": (1,), "rows": (2,), "both": (1, 2)}


def sami_loss(logprobs_BCR: Tensor, contrast: ContrastDirection = "both", *, estimator: str = "infonce") -> Tensor:
    """The SAMI objective: the estimator's loss over columns and rows of the log-prob matrix.

    Columns ask which constitution produced a response, rows which response a constitution produced; "both" is their
    mean. Fränken et al. 2024, section 3.

    Args:
        logprobs_BCR: [B, C, R] with C == R, in nats.
        contrast: the direction.
        estimator: a key of `ESTIMATORS`.

    Returns:
        [], the mean over contrasts.

    Raises:
        InputError: C != R, C < 2, an unknown direction or an unknown estimator.
    """
    return contrast_losses(logprobs_BCR, contrast, estimator=estimator).mean()


def contrast_losses(
    logprobs_BCR: Tensor, contrast: ContrastDirection = "both", *, estimator: str = "infonce"
) -> Tensor:
    """The loss of each contrast, [B]; see `sami_loss`."""
    _check(logprobs_BCR)
    require_objective(contrast, estimator)
    losses = [ESTIMATORS[estimator](logprobs_BCR, over) for over in _DIRECTIONS[contrast]]
    return losses[0] if len(losses) == 1 else (losses[0] + losses[1]) / 2


def require_objective(contrast: str, estimator: str) -> None:
    """Check the two settings of the loss.

    Raises:
        InputError: an unknown direction or an unknown estimator.
    """
    if contrast not in _DIRECTIONS:
        raise InputError(f"contrast is {contrast!r}. Set it to both, columns or rows.")
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator is {estimator!r}, which does not exist. Set it to {' or '.join(ESTIMATORS)}.")


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
    """`log C` minus the row loss, [B] in nats. It is not a bound: it assumes equal marginals of the responses."""
    losses_B = contrast_losses(logprobs_BCR, "rows")
    return math.log(logprobs_BCR.shape[1]) - losses_B


def column_accuracy(logprobs_BCR: Tensor) -> Tensor:
    """Share of responses that are most likely under their own constitution, [B]; n tied constitutions get 1/n each."""
    return _accuracy(logprobs_BCR, over=1)


def row_accuracy(logprobs_BCR: Tensor) -> Tensor:
    """Share of constitutions under which their own response is the most likely, [B]; ties are shared."""
    return _accuracy(logprobs_BCR, over=2)


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
