"""The first-use check where rounding is large: it neither falls back by luck nor takes a broken mask for noise."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sami.models import attention
from sami.scoring.packing_check import check_packing
from tests.support.scoring import bf16_copy, causal_rows
from tests.support.tiny import PAD, random_contrast, tiny_model


# Of these the padding of 3 tokens alone changes no score in bf16, so that any rounding of shared rows seemed a fault.
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_rounding_in_bf16_is_no_fault(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bf16_copy(tiny_model(architecture))
    contrasts = [random_contrast(seed, prompt_tokens=(20, 60), response_tokens=(5, 30)) for seed in range(12)]
    assert all(check_packing(model, contrast, PAD).shared for contrast in contrasts)
    monkeypatch.setattr(attention, "_attend_packed", causal_rows)
    assert not any(check_packing(model, contrast, PAD).shared for contrast in contrasts[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_contrast_that_fills_the_context_is_checked_within_it(dtype: torch.dtype) -> None:
    """GPT-2 has no position beyond its context, so the padded neighbour must not need one."""
    model: Any = tiny_model("gpt2") if dtype == torch.float32 else bf16_copy(tiny_model("gpt2"))
    contrast = random_contrast(0, prompt_tokens=(20, 20), response_tokens=(30, 30))
    contrast = replace(contrast, prompt_ids=[[20] * 10 + contrast.prompt_ids[0], [21] * (1024 - 30)])
    assert check_packing(model, contrast, PAD).shared
