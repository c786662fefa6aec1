"""The order in which contrasts are trained: whole optimizer steps, seeded, the same in every process."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainerCallback

from sami.contrasts import Contrast


class ContrastDataset(Dataset[Contrast]):
    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts

    def __len__(self) -> int:
        return len(self.contrasts)

    def __getitem__(self, index: int) -> Contrast:
        return self.contrasts[index]


class EpochCallback(TrainerCallback):
    """Sets the sampler's epoch, which nothing else does in a resumed run of several processes."""

    def __init__(self, sampler: "StepSampler") -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._sampler.set_epoch(int(state.epoch + 1e-6))


class StepSampler(Sampler[int]):
    """A seeded order in whole optimizer steps; within a step, contrasts are sorted by length to save padding.

    Lengths do not decide which contrasts share a step, so they do not change any update. Contrasts that do not fill a
    step are left to the next epoch's order; fewer contrasts than a step takes are repeated to fill it.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self._lengths, self._step, self._seed, self._epoch = lengths, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self._lengths) // self._step) * self._step

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        order = list(itertools.islice(itertools.cycle(order), len(self)))
        for start in range(0, len(order), self._step):
            yield from sorted(order[start : start + self._step], key=lambda i: (-self._lengths[i], i))
