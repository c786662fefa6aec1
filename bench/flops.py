"""Floating-point operations that a contrast needs, however many an engine spends on it.

They are counted as if every prompt were computed once for all its responses, without padding and without recomputation.
A multiplication with an addition counts as two operations, and the backward pass as twice the forward pass. Elementwise
work is not counted, as usual.
"""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from sami.contrasts import Contrast
from sami.models.structure import decoder_layers

FORMULA = (
    "needed FLOPs = 6 x block parameters x tokens + 12 x layers x heads x head size x pairs "
    "+ 6 x vocabulary x hidden size x scored. "
    "tokens: each prompt once and under it every response without its last token; pairs: (query, key) pairs that the "
    "mask allows; scored: positions that predict a response token."
)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a dense model that the formula uses."""

    block_parameters: int
    head_parameters: int  # vocabulary x hidden size
    layers: int
    attention_width: int  # heads x head size


def model_sizes(config: PreTrainedConfig) -> ModelSizes:
    """Sizes of a model, from its architecture alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = decoder_layers(model)
    text = config.get_text_config()
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return ModelSizes(
        block_parameters=sum(p.numel() for layer in layers for p in layer.parameters()),
        head_parameters=model.get_output_embeddings().weight.numel(),
        layers=len(layers),
        attention_width=text.num_attention_heads * head_size,
    )


def needed_tokens(contrast: Contrast) -> int:
    """Tokens of the contrast's shared rows."""
    return sum(map(len, contrast.prompt_ids)) + len(contrast.prompt_ids) * sum(_inputs(contrast))


def needed_flops(contrast: Contrast, sizes: ModelSizes) -> int:
    """Operations of one forward and backward pass, by `FORMULA`."""
    inputs = _inputs(contrast)
    pairs = sum(p * (p + 1) // 2 + sum(t * p + t * (t + 1) // 2 for t in inputs) for p in map(len, contrast.prompt_ids))
    scored = len(contrast.prompt_ids) * (1 + sum(inputs))
    return (
        6 * sizes.block_parameters * needed_tokens(contrast)
        + 12 * sizes.layers * sizes.attention_width * pairs
        + 6 * sizes.head_parameters * scored
    )


def _inputs(contrast: Contrast) -> list[int]:
    """Number of tokens in each response that predict another one."""
    return [len(ids) - 1 for ids in contrast.response_ids]
