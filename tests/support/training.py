"""Trainers on tiny models, and their weights compared."""

from collections.abc import Callable
from typing import Any

import torch

from sami.contrasts import Contrast
from sami.training.trainer import SAMITrainer
from tests.support.tiny import random_contrast


def contrasts_of(count: int, constitutions: int = 2) -> list[Contrast]:
    return [random_contrast(seed, constitutions) for seed in range(count)]


Make = Callable[..., SAMITrainer]


def weights_of(trainer: SAMITrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.trained_model.named_parameters()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).detach().float().abs().max()) for name in first)


def trained(make: Make, *positional: Any, **named: Any) -> dict[str, torch.Tensor]:
    trainer = make(*positional, **named)
    trainer.train()
    return weights_of(trainer)
