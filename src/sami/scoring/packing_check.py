"""Whether packed rows give a model's own log-probs: compared with plain sequences before anything relies on them.

check_packing(model, longest_contrast, pad_token_id)   # PackingCheck(shared=True, difference=3e-6)
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sami.contrasts import Contrast, collate
from sami.errors import InputError
from sami.models.structure import causal_lm
from sami.scoring.logprobs import require_finite, token_logprobs

# The two paths differ by rounding, about 1e-5 nats in fp32; a mask that is wrong shows as 1e-2 and more.
PACKING_TOLERANCE = 1e-3
# In bf16 the plain path differs from itself between two paddings; more than this times that is a fault.
NOISE_FACTOR = 3.0
# Tokens of padding that noise is measured with: on a short contrast a single one may happen to change no rounding.
PADDINGS = (1, 3, 7, 16, 40)


@dataclass(frozen=True)
class PackingCheck:
    """Which rows are right for a model, and how far shared ones were off, in nats at the worst token."""

    shared: bool
    difference: float


@torch.no_grad()
def check_packing(model: nn.Module, contrast: Contrast, pad_token_id: int, share_prefix: bool = True) -> PackingCheck:
    """Compare packed rows with plain sequences on one contrast, in the dtype of the model's weights.

    A plain sequence is a prompt and one response, without padding, packing or a mask of ours. A model on which
    shared rows differ is scored with one response a row. In fp32 the two may differ by rounding; in other dtypes
    by what the plain sequences differ from themselves when they are padded. Without `share_prefix` only rows of
    one response are compared.

    Raises:
        InputError: the model cannot be scored in packed rows at all.
    """
    was_training = model.training
    model.eval()
    try:
        alone_CRT = plain_logprobs(model, contrast)

        def off(share: bool, padding: int = 3) -> float:
            scores_CRT = _token_logprobs_beside(model, contrast, pad_token_id, share, padding)
            return float("inf") if scores_CRT is None else float((scores_CRT - alone_CRT).abs().max())

        difference, tolerance = off(share_prefix), PACKING_TOLERANCE
        if next(model.parameters()).dtype == torch.float32:
            plain = off(False) <= tolerance
        elif plain := _obeys_masks(model, contrast, pad_token_id, alone_CRT):
            tolerance = max(tolerance, NOISE_FACTOR * max(off(False, padding) for padding in PADDINGS))
        if share_prefix and difference <= tolerance:
            return PackingCheck(True, difference)
        if plain:
            return PackingCheck(False, difference)
    finally:
        model.train(was_training)
    raise InputError(
        f"{type(causal_lm(model)).__name__} gives other log-probs in padded rows than for single sequences, so its "
        f"contrasts cannot be scored. It may use an attention that ignores masks; use a model of the llama, mistral, "
        f"mixtral, qwen or gemma families, or its eager attention."
    )


def _obeys_masks(model: nn.Module, contrast: Contrast, pad_token_id: int, alone_CRT: Tensor) -> bool:
    """Whether scores are those of any other padding token, up to what a larger batch alone rounds otherwise.

    How far padded rows are off does not tell in a narrow dtype: a mask that is ignored would count as noise.
    """
    one, other = (
        _token_logprobs_beside(model, contrast, pad, False, max(PADDINGS))
        for pad in (pad_token_id, contrast.prompt_ids[0][0])
    )
    if one is None or other is None:
        return False
    noise = float((plain_logprobs(model, contrast, copies=4) - alone_CRT).abs().max())
    return float((one - other).abs().max()) <= max(PACKING_TOLERANCE, NOISE_FACTOR * noise)


def plain_logprobs(model: nn.Module, contrast: Contrast, copies: int = 1) -> Tensor:
    """Token log-probs by plain calls of the model, one sequence at a time, [C, R, T]; `copies` of it in each batch."""
    longest = max(map(len, contrast.response_ids))
    device = next(model.parameters()).device
    alone_CRT = torch.zeros(len(contrast.prompt_ids), len(contrast.response_ids), longest, device=device)
    for c, prompt in enumerate(contrast.prompt_ids):
        for r, response in enumerate(contrast.response_ids):
            sequence = torch.tensor([prompt + response] * copies, device=device)
            logits_TV = model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            logprobs_T = logits_TV.log_softmax(-1)[range(len(response)), response]
            require_finite(logprobs_T, [contrast.id])
            alone_CRT[c, r, : len(response)] = logprobs_T
    return alone_CRT


def _token_logprobs_beside(
    model: nn.Module, contrast: Contrast, pad_token_id: int, share_prefix: bool, padding: int
) -> Tensor | None:
    """[C, R, T] in a batch with a contrast of longer prompts, as in a real one; None where the model cannot do it."""
    # Responses give up what prompts get, so that no sequence grows beyond the model's context.
    padding = min(padding, max(1, max(map(len, contrast.response_ids)) - 1))
    longer = replace(
        contrast,
        prompt_ids=[[*prompt, *prompt[-1:] * padding] for prompt in contrast.prompt_ids],
        response_ids=[response[: max(1, len(response) - padding)] for response in contrast.response_ids],
    )
    batch = collate([contrast, longer], pad_token_id, share_prefix).to(next(model.parameters()).device)
    try:
        return token_logprobs(model, batch)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError):  # a model that cannot be scored so
        return None
