"""Gradients of a loss over a whole log-prob matrix, with the activations of one constitution at a time.

Every row of the matrix is first scored without a graph. In the backward pass each row is scored again, with a graph,
and receives the gradient that the loss assigned to it. The result is exact and costs one more forward pass. The idea is
from Gao et al. 2021 (arXiv 2101.06983), with rows of the matrix in place of representations.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from sami.contrasts import ContrastBatch

Score = Callable[[ContrastBatch], Tensor]


def cached_logprob_matrix(score: Score, rows: Sequence[ContrastBatch]) -> Tensor:
    """[B, C, R] from `score`, which returns [B, 1, R] for each of the C batches, one per constitution.

    Further columns, such as a divergence, are handled the same way.
    """
    # Autograd calls a backward pass only if an input requires a gradient.
    matrix: Tensor = _Cached.apply(torch.zeros((), requires_grad=True), score, rows)
    return matrix


class _Cached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, score: Score, rows: Sequence[ContrastBatch]) -> Tensor:
        ctx.score, ctx.rows, ctx.random = score, rows, []
        scored = []
        for row in rows:
            ctx.random.append(_RandomState(row.input_ids))  # both passes must drop the same units
            scored.append(score(row))
        return torch.cat(scored, 1)

    @staticmethod
    def backward(ctx: Any, grad_BCR: Tensor) -> tuple[None, None, None]:
        for c, (row, random) in enumerate(zip(ctx.rows, ctx.random, strict=True)):
            with random, torch.enable_grad():
                ctx.score(row).backward(grad_BCR[:, c : c + 1])
        return None, None, None


class _RandomState:
    """The state of the random generators with which a row was scored, restored inside a `with` block."""

    def __init__(self, *tensors: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*(t for t in tensors if t.is_cuda))

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=self._devices)
        self._fork.__enter__()
        torch.set_rng_state(self._cpu)
        set_device_states(self._devices, self._states)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
