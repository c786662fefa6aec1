"""Measures at every step how much training changes the weights that will be saved, after rounding."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from sami.errors import InputError
from sami.training.sharding import local

# Values of each weight tensor that are sampled: enough to know the share that changed within 1 point.
WATCHED_VALUES = 1 << 14
# If a smaller share of the sampled weights changes after rounding, the saved model is the one that was loaded.
UNCHANGED_BELOW = 1e-3


class WeightChange(TrainerCallback):
    """Samples every weight tensor at random: how far a step moves it, and whether rounding undoes that.

    Args:
        dtype: in which the weights are saved.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._before: list[Tensor] = []
        self._relative = 0.0

    def watch(self, model: nn.Module) -> None:
        """Measure change from the weights as they are now; with several processes, from their shards."""
        self._weights = [p for p in model.parameters() if p.requires_grad and local(p).numel()]
        generator = torch.Generator().manual_seed(0)
        self._watched = [
            torch.randint(p.numel(), (WATCHED_VALUES,), generator=generator)
            if p.numel() > WATCHED_VALUES
            else torch.arange(p.numel())
            for p in map(local, self._weights)
        ]
        self._start = self._sample()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._before = self._sample()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        after = self._sample()
        moved = self._over_all([(a - b).double().square().mean() for a, b in zip(after, self._before, strict=True)])
        size = self._over_all([b.double().square().mean() for b in self._before])
        self._relative = (moved / size) ** 0.5 if size else 0.0

    def figures(self) -> dict[str, float]:
        """Size of the last step relative to the weights, and the share of weights changed after rounding."""
        return {"relative_weight_change": self._relative, "weights_changed": self.share_changed()}

    def share_changed(self) -> float:
        """Share of weights that differ from the start after rounding to the dtype they are saved in."""
        return self._over_all(
            [
                (start.to(self.dtype) != now.to(self.dtype)).double().mean()
                for start, now in zip(self._start, self._sample(), strict=True)
            ]
        )

    def _over_all(self, means: list[Tensor]) -> float:
        """Mean over all weights, from the means of each tensor's sample."""
        sizes = [local(p).numel() for p in self._weights]
        return sum(size * float(mean) for size, mean in zip(sizes, means, strict=True)) / sum(sizes)

    def _sample(self) -> list[Tensor]:
        return [
            local(weight.detach()).flatten()[watched.to(weight.device)].cpu()
            for weight, watched in zip(self._weights, self._watched, strict=True)
        ]


def require_changed(share: float, steps: int, lr: float, dtype: torch.dtype) -> None:
    """Refuse a model if rounding to `dtype` undoes what training changed.

    Raises:
        InputError: a smaller share of the weights than `UNCHANGED_BELOW` differs from the start.
    """
    if share < UNCHANGED_BELOW:
        raise InputError(
            f"After {steps} steps at learning rate {lr:g}, {share:.2%} of the weights differ from the start "
            f"once rounded to {str(dtype).removeprefix('torch.')}, so the saved model would equal the one "
            f"that was loaded. Raise training.lr or training.steps, or set model.dtype=float32."
        )
