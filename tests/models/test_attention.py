"""Attention of ours gives what transformers' own gives: one new token, soft-capped, packed."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig

from sami.models import attention
from sami.scoring.packing_check import check_packing
from tests.support.tiny import BOS, PAD, VOCABULARY, random_contrast, tiny_model


def decode_logits(model: Any, implementation: str, padding: bool) -> torch.Tensor:
    """Logits of two steps of decoding after a prompt, with left padding or without."""
    model.set_attn_implementation(implementation)
    left = [PAD, PAD] if padding else [BOS, 39]
    ids = torch.tensor([[*left, BOS, 40, 41, 42, 43, 44, 45, 46], [BOS, 50, 51, 52, 53, 54, 55, 56, 57, 58]])
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


@pytest.mark.parametrize(
    "architecture", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "cohere2", "granite"]
)
@pytest.mark.parametrize("padding", [True, False], ids=["padded", "whole"])
def test_decoding_gives_the_logits_of_eager_attention(architecture: str, padding: bool) -> None:
    model = tiny_model(architecture)
    ours, theirs = (decode_logits(model, name, padding) for name in (attention.NAME, "eager"))
    assert (ours - theirs).abs().max() <= 2e-5


def test_a_model_with_attention_sinks_keeps_its_own_attention_and_is_scored_by_the_plain_path() -> None:
    """SDPA would leave the sinks out without a word."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 4}
    config = GptOssConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=VOCABULARY, pad_token_id=PAD
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(2.0)
    before = model.config._attn_implementation
    attention.install(model)
    assert model.config._attn_implementation == before != attention.NAME
    assert not check_packing(model, random_contrast(1), PAD).shared


ROWS = [(13, 4, 7, 1), (20, 1, 0, 9), (5, 6, 6, 6), (3, 0, 0, 0)]


def by_masks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: list[tuple[int, ...]]) -> torch.Tensor:
    """In fp64, row by row, with a mask that is written down token by token."""
    parts, start = [], 0
    for row in rows:
        part = slice(start, start := start + sum(row))
        segments = [s for s, length in enumerate(row) for _ in range(length)]
        mask = torch.tensor(
            [[j <= i and segments[j] in (0, segments[i]) for j in range(len(segments))] for i in range(len(segments))]
        )
        q, k, v = (x[:, :, part].double() for x in (query, key, value))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        parts.append(out.transpose(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("heads", [(6, 2), (4, 4)], ids=["grouped", "plain"])
@pytest.mark.parametrize("short", [0, 20, 256], ids=["long rows", "both", "short rows"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_packed_attention_in_pieces_gives_values_and_gradients_of_a_mask(
    heads: tuple[int, int], dtype: torch.dtype, tolerance: float, short: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention._by_length.cache_clear()
    monkeypatch.setattr(attention, "SHORT", short)
    generator = torch.Generator().manual_seed(0)
    tokens = sum(map(sum, ROWS))
    tensors = [torch.randn(1, h, tokens, 16, generator=generator).to(dtype) for h in (heads[0], heads[1], heads[1])]
    upstream = torch.randn(1, tokens, heads[0], 16, generator=generator).to(dtype)
    results = []
    for attend in (lambda *x: attention._attend_packed(*x, attention.packed_mask(ROWS)), lambda *x: by_masks(*x, ROWS)):
        inputs = [x.clone().requires_grad_() for x in tensors]
        out = attend(*inputs)
        out.backward(upstream.to(out.dtype))
        results.append([out.detach().double(), *(x.grad.double() for x in inputs)])
    attention._by_length.cache_clear()
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() / expected.abs().max() <= tolerance


def test_the_gradient_of_the_scores_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, grad = (torch.randn(1, 3, 5, 4, generator=generator) for _ in range(2))
    lse, delta = (torch.randn(1, 3, 5, generator=generator) for _ in range(2))
    mask = torch.ones(5, 4, dtype=torch.bool).tril()
    weights, grad_scores = attention._softmax_gradient(scores, grad, lse, delta, mask, 0.5)
    for z, i, j in ((0, 0, 0), (1, 3, 2), (2, 4, 3)):
        expected = float((scores[0, z, i, j] * 0.5 - lse[0, z, i]).exp())
        assert float(weights[0, z, i, j]) == pytest.approx(expected, rel=1e-5)
        wanted = expected * float(grad[0, z, i, j] - delta[0, z, i]) * 0.5
        assert float(grad_scores[0, z, i, j]) == pytest.approx(wanted, rel=1e-4)
    assert not weights[0, :, 0, 1:].any()  # what the mask forbids has no weight
