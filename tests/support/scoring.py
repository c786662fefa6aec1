"""A slow, obvious reference for log-prob matrices and their gradients."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sami.contrasts import Contrast
from sami.models import attention
from sami.objective import sami_loss
from tests.support.tiny import random_contrast

TOLERANCE = 2e-5  # nats a token, fp32


COSINE = 0.99999


def contrasts_of(constitutions: int = 2, count: int = 3) -> list[Contrast]:
    """Ragged ones; lengths go well beyond the sliding window of 8."""
    return [
        random_contrast(seed, constitutions, prompt_tokens=(3, 14), response_tokens=(1, 12)) for seed in range(count)
    ]


def reference_tokens(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probs [T] of a response after a prompt, by the definition, with the attention of transformers."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager" if model.config.model_type == "gemma2" else "sdpa")
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
    model.set_attn_implementation(before)
    predictions = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return predictions[torch.arange(len(response)), torch.tensor(response)]


def reference(model: nn.Module, contrasts: Sequence[Contrast], per_token: bool = True) -> Tensor:
    """[B, C, R]"""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.stack(
                        [
                            getattr(reference_tokens(model, p, r), "mean" if per_token else "sum")()
                            for r in c.response_ids
                        ]
                    )
                    for p in c.prompt_ids
                ]
            )
            for c in contrasts
        ]
    )


def gradient(model: nn.Module, matrix: Tensor) -> Tensor:
    """The loss's gradient with respect to all parameters, flat, fp64; 0 where none arrives."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(sami_loss(matrix), parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).double().flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def causal_rows(query: Tensor, key: Tensor, value: Tensor, packed: Tensor, **settings: Any) -> Tensor:
    """What a careless packing does: a token sees all tokens of its row before it, other responses included."""
    return RIGHT(query, key, value, torch.tensor([[[[sum(r), *[0] * (len(r) - 1)] for r in packed[0, 0]]]]), **settings)


RIGHT = attention._attend_packed


def bf16_copy(model: nn.Module) -> nn.Module:
    """Parameters only, as loading a saved bf16 model gives them: rotary frequencies stay fp32."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.bfloat16()
    return copied


def see_later_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every token attend to all others, as in an encoder."""
    sdpa = attention.sdpa_attention_forward

    def both_ways(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **settings: Any) -> Any:
        everything = query.new_zeros(1, 1, query.shape[2], key.shape[2])
        return sdpa(module, query, key, value, everything, **settings)

    monkeypatch.setattr(attention, "sdpa_attention_forward", both_ways)
