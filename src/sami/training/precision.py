"""fp32 master weights with forward and backward passes in another dtype."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ComputeCopy:
    """A copy of a model in a compute dtype whose gradients land on the fp32 masters.

    A pass through `model` is bit for bit that of a model saved in `dtype`. Each gradient is added to its master in
    fp32 as soon as it is complete, so accumulation over micro-batches loses nothing, and the copy's own gradients
    never exist all at once.
    """

    def __init__(self, masters: nn.Module, dtype: torch.dtype) -> None:
        self._pairs: list[tuple[nn.Parameter, nn.Parameter]] = []
        memo: dict[int, Any] = {}
        for master in masters.parameters():
            if master.dtype != torch.float32:
                continue
            narrow = nn.Parameter(master.detach().to(dtype), requires_grad=master.requires_grad)
            memo[id(master)] = narrow
            self._pairs.append((master, narrow))
            if narrow.requires_grad:
                narrow.register_post_accumulate_grad_hook(_hand_over(master))
        # Buffers such as rotary frequencies keep their dtype, as in a model that is loaded in `dtype`.
        self.model: Any = copy.deepcopy(masters, memo)
        self._seen = self._versions()

    def refresh(self) -> None:
        """Copy the masters' values if an optimizer step or a checkpoint changed them."""
        if (now := self._versions()) != self._seen:
            self._seen = now
            with torch.no_grad():
                for master, narrow in self._pairs:
                    narrow.copy_(master)

    def _versions(self) -> list[int]:
        return [master._version for master, _ in self._pairs]


def count_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Increment the weights' versions after a step: fused kernels do not, and copies would become stale."""
    torch.autograd.graph.increment_version([weight for group in optimizer.param_groups for weight in group["params"]])


def frozen_copy(model: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a model in another dtype, in evaluation mode and without gradients; buffers keep their dtype."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, memo).eval()


def _hand_over(master: nn.Parameter) -> Any:
    def add(narrow: Tensor) -> None:
        assert narrow.grad is not None
        if master.grad is None:
            master.grad = narrow.grad.to(master.dtype)
        else:
            master.grad.add_(narrow.grad)
        narrow.grad = None

    return add
