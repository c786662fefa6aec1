"""Training in several processes: weights, gradients and optimiser states sharded with FSDP2.

Works over NCCL on GPUs and over gloo on CPUs. Every process scores contrasts of its own; weights are gathered
layer by layer, and saved checkpoints are ordinary safetensors.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sami.contrasts import ContrastBatch
from sami.scoring import decoder_layers, logprob_matrix

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ShardedScorer(nn.Module):
    """`logprob_matrix` as a module, so that one forward pass gathers what it needs and no more.

    Args:
        model: with fp32 weights, which become shards in place.
        dtype: of forward and backward passes; gradients are reduced in fp32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = model
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for layer in decoder_layers(model):
            fully_shard(layer, mp_policy=policy)
        fully_shard(self, mp_policy=policy)

    def forward(self, batch: ContrastBatch, per_token: bool) -> Tensor:
        return logprob_matrix(self.module, batch, per_token=per_token)


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """All weights on the CPU of the first process; the others get nothing. Every process must call it."""
    return get_model_state_dict(model, options=_FULL)


def assembled(model: Any, weights: dict[str, Any]) -> Any:
    """A model like `model`, whose weights are shards, with whole weights."""
    with torch.device("meta"):
        whole_model = type(model)(model.config)
    whole_model.load_state_dict(weights, assign=True)
    whole_model.tie_weights()
    return whole_model


def whole_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All optimiser states on the CPU of the first process. Every process must call it."""
    return get_optimizer_state_dict(model, optimizer, options=_FULL)


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, states: dict[str, Any]) -> None:
    """Shard states that every process has read."""
    if states["state"]:  # plain SGD has none
        set_optimizer_state_dict(model, optimizer, states, options=StateDictOptions(full_state_dict=True))


def local(weight: Tensor) -> Tensor:
    """This process's part of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def whole(value: Any) -> Any:
    """A figure such as a gradient norm that is spread over processes."""
    return value.full_tensor() if isinstance(value, DTensor) else value
