"""Where the parts of a causal language model are: its layers, its head, its vocabulary and its context.

Shapes: X positions, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

_SEPARATE_HEAD = "_sami_separate_head"
# Share of the largest logit by which the two routes may differ: rounding, far below a forgotten scale or cap.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def context_length(config: PreTrainedConfig) -> int | None:
    """Largest number of tokens in a sequence; None if the architecture sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def vocabulary_size(model: nn.Module) -> int:
    """V: width of the logits."""
    lm = causal_lm(model)
    head = lm.get_output_embeddings()
    return int(lm.config.get_text_config().vocab_size if head is None else head.weight.shape[0])


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


def has_separate_head(model: nn.Module) -> bool:
    """Whether the base model's last hidden states, put through `head_logits`, give the model's logits.

    Then logits are computed for chosen positions and in parts. Some architectures reach into their base model, or
    transform its states before the head. Found out once for each model, by comparing both routes on four tokens.
    """
    lm = causal_lm(model)
    known = getattr(lm, _SEPARATE_HEAD, None)
    if known is None:
        known = _gives_own_logits(lm)
        setattr(lm, _SEPARATE_HEAD, known)
    return bool(known)


@torch.no_grad()
def _gives_own_logits(lm: Any) -> bool:
    weight = next(lm.parameters())
    training = lm.training
    lm.eval()  # no dropout between the two routes
    try:
        tokens = {"input_ids": torch.arange(1, 5, device=weight.device)[None], "use_cache": False}
        own = lm(**tokens).logits[0].float()
        ours = _logits_of_states(lm, lm.base_model(**tokens).last_hidden_state[0]).float()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    finally:
        lm.train(training)
    return ours.shape == own.shape and bool((ours - own).abs().max() <= _ROUNDING[weight.dtype] * own.abs().max())


def head_logits(model: nn.Module, hidden_XD: Tensor) -> Tensor:
    """Logits of hidden states by the model's own final steps, scaling and soft-capping included; [X, V].

    Of a model without a separate head (see `has_separate_head`) the states already are logits.
    """
    lm = causal_lm(model)
    return _logits_of_states(lm, hidden_XD) if has_separate_head(lm) else hidden_XD


def _logits_of_states(lm: Any, hidden_XD: Tensor) -> Tensor:
    with _given_states(lm, hidden_XD[None]):
        logits_1XV: Tensor = lm(input_ids=hidden_XD.new_zeros(1, 1, dtype=torch.long), use_cache=False).logits
    return logits_1XV.squeeze(0)  # indexing would copy the gradient


class _Given(BaseModelOutputWithPast):
    """A base model's output that holds hidden states, and None for whatever else a model asks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
        return None


class _StatesGiven(nn.Module):
    """Replaces a base model and answers with states that are already computed."""

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
