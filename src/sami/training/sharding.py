"""Training in several processes: weights, gradients and optimiser states sharded with FSDP2.

Works over NCCL on GPUs and over gloo on CPUs. The first process has the whole weights, on its CPU; every process,
that one too, gets its shards from there, so no device ever holds more than those and what a pass gathers. Every
process scores contrasts of its own; weights are gathered layer by layer, and saved checkpoints are ordinary
safetensors.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
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

from sami.models.structure import decoder_layers

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
_FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
_Result = TypeVar("_Result")


class ShardedScorer(nn.Module):
    """A model in shards, and one forward pass for whatever scores with it: the pass gathers what it needs.

    Args:
        model: with fp32 weights on the CPU in the first process; in the others its weights and buffers are not
            looked at and may be on the meta device. It becomes the sharded model in place, in all of them.
        dtype: of forward and backward passes; gradients are reduced in fp32.
        device: that holds this process's shards.
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
        """A forward pass that no backward pass follows, after which all weights are shards again."""
        with torch.no_grad():
            result: _Result = self(work)
        cast(FSDPModule, self).reshard()  # embedding and head stay gathered for a backward pass
        return result


def _taken_out(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's weights and its buffers, with those that are never saved, such as rotary frequencies."""
    return model.state_dict(), {name: b.clone() for name, b in model.named_buffers(remove_duplicate=False)}


def _hollow_out(model: nn.Module) -> None:
    """Leave the weights' shapes only; tied weights stay tied."""
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(weight) not in empty:
                shape = torch.empty_like(weight, device="meta")
                empty[id(weight)] = nn.Parameter(shape, requires_grad=weight.requires_grad)
            module.register_parameter(name, empty[id(weight)])


def spread_weights(model: nn.Module, weights: dict[str, Any], *, strict: bool = True) -> None:
    """Give every process its shards of weights that the first one has. Every process must call it."""
    set_model_state_dict(model, weights, options=replace(_FROM_FIRST, strict=strict))


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first process; the others get nothing. Every process must call it."""
    return get_model_state_dict(model, options=_FULL)


def assembled(model: Any, weights: dict[str, Any]) -> Any:
    """A model like `model`, whose weights are shards, with whole weights; to be saved, not run."""
    with torch.device("meta"):
        whole_model = type(model)(model.config)
    whole_model.load_state_dict(weights, assign=True)
    whole_model.tie_weights()
    whole_model.generation_config = model.generation_config  # may name more end tokens than the config does
    return whole_model


def whole_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All optimiser states on the CPU of the first process. Every process must call it."""
    return get_optimizer_state_dict(model, optimizer, options=_FULL)


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> None:
    """Give every process its part of the states that the first one has read. Every process must call it."""
    filled = [bool(states and states["state"])]
    distributed.broadcast_object_list(filled, src=0)
    if filled[0]:  # plain SGD has none
        set_optimizer_state_dict(model, optimizer, states, options=_FROM_FIRST)


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def whole(value: Any) -> Any:
    """A figure such as a gradient norm that is spread over processes."""
    return value.full_tensor() if isinstance(value, DTensor) else value
