"""The check of packed rows: it neither gives up sound ones by luck nor takes a broken mask for rounding."""

from dataclasses import replace

import pytest
import torch

from sami.errors import InputError
from sami.models import attention
from sami.scoring.packing_check import PACKING_TOLERANCE, check_packing
from tests.support.scoring import TOLERANCE, bf16_copy, causal_rows, see_later_tokens
from tests.support.tiny import ARCHITECTURES, PAD, random_contrast, tiny_model

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
DTYPES = {torch.float32: lambda model: model, torch.bfloat16: bf16_copy}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def ignored_masks(monkeypatch):
    """An attention that ignores masks, and shared rows that are wrong."""
    sdpa, capped = attention.sdpa_attention_forward, attention._attend_capped

    def ignores(mask):
        return None if mask is None or mask.dtype != torch.int32 else mask

    monkeypatch.setattr(attention, "_attend_packed", causal_rows)
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda m, q, k, v, mask, **settings: sdpa(m, q, k, v, None, **settings)
    )
    monkeypatch.setattr(
        attention, "_attend_capped", lambda q, k, v, mask, **settings: capped(q, k, v, ignores(mask), **settings)
    )


@every_architecture
def test_shared_rows_are_used_on_a_sound_model_and_not_where_they_are_wrong(architecture, monkeypatch):
    check = check_packing(tiny_model(architecture), random_contrast(1), PAD)
    assert check.shared
    assert check.difference <= TOLERANCE
    monkeypatch.setattr(attention, "_attend_packed", causal_rows)
    check = check_packing(tiny_model(architecture), random_contrast(1), PAD)
    assert not check.shared
    assert check.difference > 10 * PACKING_TOLERANCE


def test_shared_rows_are_not_used_if_the_attention_takes_no_packed_mask(monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("expected a float mask")

    monkeypatch.setattr(attention, "_attend_packed", refuses)
    check = check_packing(tiny_model(), random_contrast(1), PAD)
    assert not check.shared
    assert check.difference == float("inf")


# In bf16 a padding of 3 tokens alone changes no score of these, so that any rounding of shared rows seemed a fault.
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_rounding_in_bf16_is_not_a_fault(architecture, monkeypatch):
    model = bf16_copy(tiny_model(architecture))
    contrasts = [random_contrast(seed, prompt_tokens=(20, 60), response_tokens=(5, 30)) for seed in range(12)]
    checks = [check_packing(model, contrast, PAD) for contrast in contrasts]
    assert all(check.shared for check in checks)
    assert max(check.difference for check in checks) > PACKING_TOLERANCE  # a fault by the limit of fp32
    monkeypatch.setattr(attention, "_attend_packed", causal_rows)
    assert not any(check_packing(model, contrast, PAD).shared for contrast in contrasts[:4])


@every_dtype
@every_architecture
@pytest.mark.usefixtures("ignored_masks")
def test_a_model_that_ignores_masks_is_scored_in_rows_that_need_none(architecture, dtype):
    model = DTYPES[dtype](tiny_model(architecture))
    attention.install(model)
    assert not check_packing(model, random_contrast(1), PAD).shared


@every_dtype
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2"])
def test_a_model_that_is_not_causal_is_refused(architecture, share, dtype, monkeypatch):
    see_later_tokens(monkeypatch)
    model = DTYPES[dtype](tiny_model(architecture))
    attention.install(model)
    with pytest.raises(InputError, match="its tokens attend to later ones"):
        check_packing(model, random_contrast(1), PAD, share)


@every_dtype
def test_a_contrast_that_fills_the_context_is_checked_within_it(dtype):
    """GPT-2 has no position beyond its context, so the padded neighbor must not need one."""
    model = DTYPES[dtype](tiny_model("gpt2"))
    contrast = random_contrast(0, prompt_tokens=(20, 20), response_tokens=(30, 30))
    contrast = replace(contrast, prompt_ids=[[20] * 10 + contrast.prompt_ids[0], [21] * (1024 - 30)])
    assert check_packing(model, contrast, PAD).shared


@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_the_check_leaves_the_model_as_it_was(mode):
    """GPT-2 has dropout: in training mode the two paths could not agree."""
    model = tiny_model("gpt2").train(mode)
    assert check_packing(model, random_contrast(1), PAD).shared
    assert model.training is mode
    assert all(p.grad is None for p in model.parameters())
