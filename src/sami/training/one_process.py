"""Training in one process: `transformers.Trainer`'s own way, with passes through a compute copy of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer

from sami.models.loading import load_model
from sami.recipe import Model
from sami.training import checkpoint
from sami.training.config import SAMIConfig
from sami.training.precision import ComputeCopy

_Result = TypeVar("_Result")


class OneProcess:
    """How one process holds, runs, saves and restores the model that `SAMITrainer` trains; see `Sharded`."""

    def __init__(self, args: SAMIConfig) -> None:
        self._args = args
        self._copy: ComputeCopy | None = None
        self.frozen_dtype = args.torch_compute_dtype
        """Dtype in which an adapter's frozen base is held."""

    def load(self, source: Model, *, adapted: bool) -> PreTrainedModel:
        """The model to train, on this device, in the dtype in which it is held."""
        dtype = self.frozen_dtype if adapted else self._args.torch_master_dtype
        return load_model(source, dtype, self._args.device)

    def move(self, trainer: Trainer, model: nn.Module, device: torch.device) -> None:
        Trainer._move_model_to_device(trainer, model, device)

    def start(self, model: nn.Module) -> None:
        """Called before the first pass."""

    def wrap(self, trainer: Trainer, model: nn.Module, training: bool, dataloader: Any) -> nn.Module:
        return Trainer._wrap_model(trainer, model, training, dataloader)

    # Passes.

    def module(self, trained: nn.Module, training: bool) -> nn.Module:
        """The module that passes go through, in the compute dtype."""
        if isinstance(trained, PeftModel) or self._args.master_weights == self._args.compute_dtype:
            return trained
        if self._copy is None:
            self._copy = ComputeCopy(trained, self._args.torch_compute_dtype)
        self._copy.refresh()
        module: nn.Module = self._copy.model.train(training)
        return module

    def forward(self, module: nn.Module, work: Callable[[nn.Module], _Result]) -> _Result:
        """A forward pass: `work(module)`."""
        return work(module)

    def without_gradient(self, trained: nn.Module, work: Callable[[nn.Module], _Result]) -> _Result:
        """A forward pass through the trained weights that no backward pass follows."""
        with torch.no_grad():
            return work(trained)

    # Saving and resuming.

    def whole_model(self, trained: nn.Module) -> Any:
        return trained

    def save_model(self, trainer: Trainer, folder: str | None, internal: bool) -> None:
        Trainer.save_model(trainer, folder, internal)

    def load_weights(self, trainer: Any, folder: Path) -> None:
        trained = trainer.trained_model
        if isinstance(trained, PeftModel):
            checkpoint.require_adapter(trained, folder)
            Trainer._load_from_checkpoint(trainer, str(folder))
        else:
            trained.load_state_dict(checkpoint.trained_weights(trained, folder))

    def save_optimizer(self, trainer: Trainer, folder: Path) -> None:
        Trainer._save_optimizer_and_scheduler(trainer, str(folder))

    def load_optimizer(self, trainer: Trainer, folder: Path) -> None:
        Trainer._load_optimizer_and_scheduler(trainer, str(folder))
