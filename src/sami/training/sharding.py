"""Training in several processes: weights, gradients and optimizer states are sharded with FSDP2.

It works over NCCL on GPUs and over gloo on CPUs. The first process has the whole weights, on its CPU; every process,
including the first, receives its shards from there, so no device ever holds more than its shards and what a pass
gathers. Every process scores contrasts of its own, weights are gathered layer by layer, and saved checkpoints are
ordinary safetensors.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from sami.errors import InputError
from sami.models.loading import load_for_shards
from sami.models.structure import decoder_layers
from sami.recipe import Model
from sami.training import checkpoint
from sami.training.config import SAMIConfig

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
_Result = TypeVar("_Result")


class Sharded:
    """How several processes hold, run, save and restore the model that `SAMITrainer` trains; see `OneProcess`.

    Every method must be called by every process.
    """

    def __init__(self, args: SAMIConfig) -> None:
        self._args = args
        self._scorer: ShardedScorer | None = None
        self.frozen_dtype = torch.float32
        """Shards of one group have one dtype, so FSDP narrows the weights of an adapter's base instead."""

    def load(self, source: Model, *, adapted: bool) -> PreTrainedModel:
        """The whole weights in the first process, their shapes in the others."""
        return load_for_shards(source, torch.float32, self._args.process_index)

    def move(self, trainer: Any, model: nn.Module, device: torch.device) -> None:
        """Nothing: `start` puts shards on their devices."""

    def start(self, model: nn.Module) -> None:
        """Shard the model, once, before the first pass."""
        if self._scorer is None:
            self._scorer = ShardedScorer(model, self._args.torch_compute_dtype, self._args.device)

    def wrap(self, trainer: Any, model: nn.Module, training: bool, dataloader: Any) -> nn.Module:
        return self._scorer if self._scorer is not None else model

    # Passes.

    @property
    def scorer(self) -> "ShardedScorer":
        assert self._scorer is not None, "start was not called"
        return self._scorer

    def module(self, trained: nn.Module, training: bool) -> nn.Module:
        return self.scorer.module

    def forward(self, module: nn.Module, work: Callable[[nn.Module], _Result]) -> _Result:
        result: _Result = self.scorer(work)
        return result

    def without_gradient(self, trained: nn.Module, work: Callable[[nn.Module], _Result]) -> _Result:
        return self.scorer.without_gradient(work)

    # Saving and resuming.

    def whole_model(self, trained: nn.Module) -> Any:
        """The model with its whole weights in the first process, None in the others."""
        if isinstance(trained, PeftModel):
            raise InputError(
                "Several processes trained an adapter, and whole_model puts together models only. Call save_model, "
                "which saves the adapter."
            )
        weights = whole_weights(trained)
        return assembled(trained, weights) if distributed.get_rank() == 0 else None

    def save_model(self, trainer: Any, folder: str | None, internal: bool) -> None:
        weights = whole_weights(trainer.trained_model)
        if self._args.should_save:
            trainer._save(folder, state_dict=weights)

    def load_weights(self, trainer: Any, folder: Path) -> None:
        first = distributed.get_rank() == 0
        weights = checkpoint.trained_weights(trainer.trained_model, folder) if first else {}
        spread_weights(trainer.trained_model, weights, strict=False)  # it holds only what is trained

    def save_optimizer(self, trainer: Any, folder: Path) -> None:
        states = whole_optimizer(trainer.trained_model, trainer.optimizer.optimizer)
        if self._args.should_save:
            torch.save(states, folder / OPTIMIZER_NAME)
            torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def load_optimizer(self, trainer: Any, folder: Path) -> None:
        states = {}
        if distributed.get_rank() == 0:
            states = torch.load(folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        restore_optimizer(trainer.trained_model, trainer.optimizer.optimizer, states)
        trainer.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))


class ShardedScorer(nn.Module):
    """A sharded model, with one forward pass for whatever scores with it: the pass gathers the weights it needs.

    Args:
        model: with fp32 weights on the CPU in the first process; in the others its weights and buffers are ignored
            and may be on the meta device. It becomes the sharded model in place, in all of them.
        dtype: of forward and backward passes; gradients are reduced in fp32.
        device: where this process's shards are held.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.module = model
        weights, buffers = _taken_out(model) if distributed.get_rank() == 0 else ({}, {})
        _hollow_out(model)
        settings: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (distributed.get_world_size(),)),
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32),
        }
        for layer in decoder_layers(model):
            fully_shard(layer, **settings)
        fully_shard(self, **settings)
        self.to_empty(device=device)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            if buffers:
                buffer.copy_(buffers[name])
            distributed.broadcast(buffer, src=0)
        spread_weights(model, weights)

    def forward(self, work: Callable[[nn.Module], _Result]) -> _Result:
        return work(self.module)

    def without_gradient(self, work: Callable[[nn.Module], _Result]) -> _Result:
        """A forward pass that no backward pass follows; afterwards all weights are sharded again."""
        with torch.no_grad():
            result: _Result = self(work)
        cast(FSDPModule, self).reshard()  # embedding and head stay gathered for a backward pass
        return result


def _taken_out(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's weights and all its buffers, including those that are never saved, such as rotary frequencies."""
    return model.state_dict(), {name: b.clone() for name, b in model.named_buffers(remove_duplicate=False)}


def _hollow_out(model: nn.Module) -> None:
    """Keep only the shapes of the weights; tied weights stay tied."""
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) not in empty:
                shape = torch.empty_like(weight, device="meta")
                empty[id(weight)] = nn.Parameter(shape, requires_grad=weight.requires_grad)
            module.register_parameter(name, empty[id(weight)])


def spread_weights(model: nn.Module, weights: dict[str, Any], *, strict: bool = True) -> None:
    """Give every process its shards of the first one's weights. Every process must call it."""
    set_model_state_dict(model, weights, options=replace(_FROM_FIRST, strict=strict))


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first process, nothing in the others. Every process must call it."""
    return get_model_state_dict(model, options=_FULL)


def assembled(model: Any, weights: dict[str, Any]) -> Any:
    """A copy of a sharded model with whole weights, to be saved and not run."""
    with torch.device("meta"):
        whole_model = type(model)(model.config)
    whole_model.load_state_dict(weights, assign=True)
    whole_model.tie_weights()
    whole_model.generation_config = model.generation_config  # may have more end tokens than the config
    return whole_model


def whole_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All optimizer states on the CPU of the first process. Every process must call it."""
    return get_optimizer_state_dict(model, optimizer, options=_FULL)


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> None:
    """Give every process its part of the states that the first one read. Every process must call it."""
    filled = [bool(states and states["state"])]
    distributed.broadcast_object_list(filled, src=0)
    if filled[0]:  # plain SGD has none
        set_optimizer_state_dict(model, optimizer, states, options=_FROM_FIRST)


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def whole(value: Any) -> Any:
    """A value, such as a gradient norm, that may be sharded over processes."""
    return value.full_tensor() if isinstance(value, DTensor) else value
