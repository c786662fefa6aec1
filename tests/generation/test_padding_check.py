"""Whether prompts of several lengths may share a batch: rounding never decides it, attended padding does."""

import pytest
import torch

from sami.generation.padding_check import generates_alike_padded
from sami.models import attention
from tests.support.tiny import PAD, random_contrast, tiny_model

PROMPTS = [prompt for seed in range(10) for prompt in random_contrast(seed).prompt_ids]


def telling_model(dtype):
    """A tiny model whose tokens depend on what it reads: larger weights than those it is initialized with."""
    model = tiny_model("llama")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_model_passes_whatever_its_rounding(dtype):
    model = telling_model(dtype)
    assert all(generates_alike_padded(model, prompt, PAD) for prompt in PROMPTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_attends_to_padding_does_not(dtype, monkeypatch):
    model, sdpa = telling_model(dtype), attention.sdpa_attention_forward
    attention.install(model)
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda m, q, k, v, mask, **settings: sdpa(m, q, k, v, None, **settings)
    )
    assert not any(generates_alike_padded(model, prompt, PAD) for prompt in PROMPTS[:4])
