"""Trainers on tiny models, and comparisons of their weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sami.contrasts import Contrast
from sami.training import SAMIConfig, SAMITrainer
from tests.support.tiny import random_contrast, tiny_model, tiny_tokenizer

Make = Callable[..., SAMITrainer]
# Plain gradient descent shows every difference between gradients; Adam would turn rounding into full steps.
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}


def contrasts_of(count: int, constitutions: int = 2) -> list[Contrast]:
    return [random_contrast(seed, constitutions) for seed in range(count)]


def make_trainer(
    out: Path,
    contrasts: Sequence[Contrast],
    steps: int = 2,
    *,
    model: PreTrainedModel | str | None = None,
    peft_config: Any = None,
    ref_model: PreTrainedModel | None = None,
    callbacks: list[Any] | None = None,
    **arguments: Any,
) -> SAMITrainer:
    """A trainer of the tiny llama in fp32, at a learning rate that moves it."""
    settings = {
        "output_dir": str(out),
        "max_steps": steps,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "compute_dtype": "float32",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SAMITrainer(
        model=model if model is not None else tiny_model("llama"),
        args=SAMIConfig(**{**settings, **arguments}),
        train_dataset=contrasts,
        processing_class=None if isinstance(model, str) else tiny_tokenizer(chat=False),
        peft_config=peft_config,
        ref_model=ref_model,
        callbacks=callbacks,
    )


def weights_of(trainer: SAMITrainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.trained_model.named_parameters()}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).detach().float().abs().max()) for name in first)


def trained(make: Make, *positional: Any, **named: Any) -> dict[str, torch.Tensor]:
    """The weights after training."""
    trainer = make(*positional, **named)
    trainer.train()
    return weights_of(trainer)


def steps_logged(trainer: SAMITrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer: SAMITrainer, figure: str) -> list[float]:
    return [entry[figure] for entry in steps_logged(trainer)]
