"""Where the parts of a causal language model are: its layers, its head, its vocabulary and its context.

Shapes: X positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPast


def context_length(config: PreTrainedConfig) -> int | None:
    """Most tokens of a sequence; None where the architecture sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def head_logits(model: nn.Module, hidden_XD: Tensor) -> Tensor:
    """Logits of hidden states by the model's own final steps, scaling and soft-capping included; [X, V]."""
    lm = causal_lm(model)
    with _given_states(lm, hidden_XD[None]):
        logits_1XV: Tensor = lm(input_ids=hidden_XD.new_zeros(1, 1, dtype=torch.long), use_cache=False).logits
    return logits_1XV.squeeze(0)  # indexing would copy the gradient


class _Given(BaseModelOutputWithPast):
    """A base model's output that holds hidden states and None for whatever else a model asks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


class _StatesGiven(nn.Module):
    """Stands in for a base model and answers with states that are already computed."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> _Given:
        return _Given(last_hidden_state=self.states)  # type: ignore[arg-type]


@contextmanager
def _given_states(lm: Any, states: Tensor) -> Iterator[None]:
    """Inside the block the model's forward pass is its final steps on `states`."""
    name = lm.base_model_prefix
    base = lm._modules[name]
    lm._modules[name] = _StatesGiven(states)
    try:
        yield
    finally:
        lm._modules[name] = base


def vocabulary_size(model: nn.Module) -> int:
    """V: width of the logits."""
    return int(causal_lm(model).get_output_embeddings().weight.shape[0])


def causal_lm(model: nn.Module) -> Any:
    """The causal language model inside its wrappers: data parallelism, adapters."""
    inner: Any = model
    while not hasattr(inner, "config") and hasattr(inner, "module"):
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a causal language model, in order."""
    lists: list[nn.Module] = [m for m in causal_lm(model).base_model.modules() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())).children())
