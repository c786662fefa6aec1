"""Grouped decoding attention gives what SDPA gives."""

import pytest
import torch

from sami.generation.decoding import NAME, decoding_attention
from tiny import BOS, PAD, tiny_model


def decode_logits(model: torch.nn.Module, attention: str) -> torch.Tensor:
    """Logits of two steps of decoding after a prompt with left padding."""
    model.set_attn_implementation(attention)
    ids = torch.tensor([[PAD, PAD, BOS, 40, 41, 42, 43, 44, 45, 46], [BOS, 50, 51, 52, 53, 54, 55, 56, 57, 58]])
    mask = (ids != PAD).long()
    steps = []
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, use_cache=True)
        for token in (60, 61):
            mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
            output = model(
                input_ids=torch.full((2, 1), token),
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            steps.append(output.logits[:, -1])
    return torch.stack(steps)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma3", "gpt2"])
def test_grouped_decoding_gives_the_logits_of_sdpa(architecture: str) -> None:
    model = tiny_model(architecture)
    assert (decode_logits(model, NAME) - decode_logits(model, "sdpa")).abs().max() <= 1e-5


def test_the_models_own_attention_is_back_after_the_block() -> None:
    model = tiny_model("llama")
    with decoding_attention(model):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_needs_eager_attention_keeps_it() -> None:
    model = tiny_model("gemma2")
    model.set_attn_implementation("eager")
    with decoding_attention(model):
        assert model.config._attn_implementation == "eager"
