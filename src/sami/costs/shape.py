"""Sizes of a model and of a run's sequences: what its memory and time follow from."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedConfig

from sami.models import quantization
from sami.models.loading import empty_of
from sami.models.structure import decoder_layers
from sami.training import memory


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, in weights."""

    config: PreTrainedConfig
    total: int
    head: int
    """Of the output head, which a tied model shares with its embedding."""
    layer: int
    """Of the largest block."""
    active: int
    """Used by one token in all blocks: in a mixture of experts, those of the experts it is routed to."""
    narrow: int
    """Held in 4 bits if the base is quantized."""

    @classmethod
    def of(cls, config: PreTrainedConfig, trust_remote_code: bool = False) -> "Shape":
        model: Any = empty_of(config, trust_remote_code)
        text = config.get_text_config()
        experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
        share = (text.num_experts_per_tok / experts) if experts else 1.0
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        outside = {id(head), id(embedding)}
        active = sum(
            weight.numel() * (share if ".experts." in name else 1.0)
            for name, weight in model.named_parameters()
            if id(weight) not in outside
        )
        return cls(
            config=text,
            total=sum(weight.numel() for weight in model.parameters()),
            head=head.numel(),
            layer=max(sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)),
            active=round(active),
            narrow=quantization.weights_in_4_bits(model),
        )

    @cached_property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @cached_property
    def vocabulary(self) -> int:
        return self.head // int(self.config.hidden_size)

    @cached_property
    def outside_blocks(self) -> int:
        """Weights of embedding, head and last norm."""
        return self.total - self.layers * self.layer

    def cache_bytes(self, tokens: float, dtype: torch.dtype) -> float:
        """Keys and values of `tokens` tokens."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return tokens * self.layers * 2 * heads * size * dtype.itemsize


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest sequences that a run is expected to contain."""

    prompt: int
    """Of a training prompt."""
    generation_prompt: int
    response: int

    def row(self, constitutions: int, *, shared: bool = True) -> int:
        """Tokens that a contrast computes for one constitution."""
        return memory.constitution_tokens(self.prompt, [self.response] * constitutions, shared=shared)
