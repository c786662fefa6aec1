"""Whether packed rows give a model's own log-probs: compared with plain sequences before anything relies on them.

check_packing(model, longest_contrast, pad_token_id)   # PackingCheck(shared=True, difference=3e-6)
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sami.contrasts import Contrast, collate
from sami.errors import InputError, one_line
from sami.models.structure import causal_lm, context_length
from sami.scoring.logprobs import require_finite, token_logprobs

# The two paths differ by rounding, about 1e-5 nats in fp32; a mask that is wrong shows as 1e-2 and more.
PACKING_TOLERANCE = 1e-3
# In bf16 the plain path differs from itself between two paddings; more than this times that is a fault.
NOISE_FACTOR = 3.0
# Tokens of padding that noise is measured with: on a short contrast a single one may happen to change no rounding.
PADDINGS = (1, 3, 7, 16, 40)
_SCORING_FAILS = (RuntimeError, TypeError, IndexError, KeyError, ValueError, AttributeError, AssertionError)


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

        def off(share: bool) -> float:
            scores_CRT = _token_logprobs_beside(model, contrast, pad_token_id, share)
            return float("inf") if scores_CRT is None else float((scores_CRT - alone_CRT).abs().max())

        difference, tolerance = off(share_prefix), PACKING_TOLERANCE
        if next(model.parameters()).dtype != torch.float32:
            tolerance = max(tolerance, NOISE_FACTOR * _rounding(model, contrast, pad_token_id, alone_CRT))
        if share_prefix and difference <= tolerance:
            return PackingCheck(True, difference)
        if off(False) <= tolerance:
            return PackingCheck(False, difference)
        reason = _reason(model, contrast, pad_token_id)
        raise InputError(f"{type(causal_lm(model)).__name__} cannot be scored: {reason}")
    finally:
        model.train(was_training)


def _reason(model: nn.Module, contrast: Contrast, pad_token_id: int) -> str:
    """Why rows of one response each, padded at their end, are not scored as single sequences are."""
    if not _is_causal(model, contrast):
        return (
            "its tokens attend to later ones, so it does not predict the next token. Use a causal language model; "
            "if this is one, set is_decoder=true in its config.json."
        )
    try:
        _scores_in_batch(model, contrast, pad_token_id, False)
    except _SCORING_FAILS as error:
        return (
            f"its forward pass fails on a batch with {type(error).__name__}: {one_line(error)[:300]}. Use a causal "
            f"language model of transformers that takes input_ids, attention_mask and position_ids."
        )
    return (
        "its log-probs in a batch differ from those of single sequences, so other rows influence them. Use a model "
        "of the llama, mistral, mixtral, qwen or gemma families."
    )


def _is_causal(model: nn.Module, contrast: Contrast) -> bool:
    """Whether log-probs of a prompt's tokens stay the same when other tokens follow."""
    prompt, response = contrast.prompt_ids[0], contrast.response_ids[0]
    device = next(model.parameters()).device
    alone, followed = (
        model(input_ids=torch.tensor([ids], device=device)).logits[0, : len(prompt)].float()
        for ids in (prompt, prompt + response)
    )
    return bool((alone - followed).abs().max() <= 0.05 * alone.abs().max())


def _rounding(model: nn.Module, contrast: Contrast, pad_token_id: int, alone_CRT: Tensor) -> float:
    """How far plain sequences in a narrow dtype are from themselves in a larger batch or beside padding, in nats.

    Padding on a side counts only if it does not matter which token it is: a broken mask would pass for rounding.
    """

    def off(other_CRT: Tensor, than_CRT: Tensor = alone_CRT) -> float:
        return float((other_CRT - than_CRT).abs().max())

    def padded(token: int, count: int, side: str) -> Tensor:
        padding = [token] * count
        if side == "after":
            return plain_logprobs(model, contrast, after=padding)
        return plain_logprobs(model, contrast, before=padding)

    lm = causal_lm(model)
    longest = max(map(len, contrast.prompt_ids)) + max(map(len, contrast.response_ids))
    room = (context_length(lm.config) or float("inf")) - longest  # padding at the end has positions of its own
    numbered = "position_ids" in inspect.signature(lm.forward).parameters
    sides = [*(["after"] if room >= max(PADDINGS) else []), *(["before"] if numbered else [])]
    noise = batch_noise = off(plain_logprobs(model, contrast, copies=4))
    for side in sides:
        one, other = (padded(token, max(PADDINGS), side) for token in (pad_token_id, contrast.prompt_ids[0][0]))
        if off(one, other) <= max(PACKING_TOLERANCE, NOISE_FACTOR * batch_noise):
            noise = max(noise, *(off(padded(pad_token_id, count, side)) for count in PADDINGS))
    return noise


def plain_logprobs(
    model: nn.Module, contrast: Contrast, copies: int = 1, before: Sequence[int] = (), after: Sequence[int] = ()
) -> Tensor:
    """Token log-probs by plain calls of the model, one sequence at a time, [C, R, T].

    Args:
        copies: of the sequence in each batch.
        before: padding in front of it, which the attention mask leaves out.
        after: padding at its end, which no causal model sees.
    """
    longest = max(map(len, contrast.response_ids))
    device = next(model.parameters()).device
    alone_CRT = torch.zeros(len(contrast.prompt_ids), len(contrast.response_ids), longest, device=device)
    for c, prompt in enumerate(contrast.prompt_ids):
        for r, response in enumerate(contrast.response_ids):
            sequence = torch.tensor([[*before, *prompt, *response, *after]] * copies, device=device)
            masks = {}
            if before:
                mask = (torch.arange(sequence.shape[1], device=device) >= len(before)).long().expand_as(sequence)
                masks = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
            start = len(before) + len(prompt) - 1
            logits_XV = model(input_ids=sequence, use_cache=False, **masks).logits[0]
            logits_TV = logits_XV[start : start + len(response)].float()
            logprobs_T = logits_TV.log_softmax(-1)[range(len(response)), response]
            require_finite(logprobs_T, [contrast.id])
            alone_CRT[c, r, : len(response)] = logprobs_T
    return alone_CRT


def _token_logprobs_beside(
    model: nn.Module, contrast: Contrast, pad_token_id: int, share_prefix: bool
) -> Tensor | None:
    """`_scores_in_batch`; None if the model cannot do it."""
    try:
        return _scores_in_batch(model, contrast, pad_token_id, share_prefix)
    except torch.OutOfMemoryError:
        raise
    except _SCORING_FAILS:
        return None


def _scores_in_batch(model: nn.Module, contrast: Contrast, pad_token_id: int, share_prefix: bool) -> Tensor:
    """[C, R, T] in a batch with a contrast of longer prompts, as in a real one."""
    # Responses give up what prompts get, so that no sequence grows beyond the model's context.
    padding = min(3, max(1, max(map(len, contrast.response_ids)) - 1))
    longer = replace(
        contrast,
        prompt_ids=[[*prompt, *prompt[-1:] * padding] for prompt in contrast.prompt_ids],
        response_ids=[response[: max(1, len(response) - padding)] for response in contrast.response_ids],
    )
    batch = collate([contrast, longer], pad_token_id, share_prefix).to(next(model.parameters()).device)
    return token_logprobs(model, batch)[0]
