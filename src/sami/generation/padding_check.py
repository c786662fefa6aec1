"""Whether a model generates alike from padded prompts: compared once, before prompts of several lengths share a batch.

generates_alike_padded(model, shortest_prompt, pad_token_id)
"""

import inspect
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

# Nats by which the likeliest tokens may differ: rounding. A position that padding shifts, or padding that is attended
# to, moves them further.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
_PADDING, _TOKENS, _LIKELIEST = 5, 2, 10

_Tokens = tuple[list[int], torch.Tensor]


@torch.inference_mode()
def generates_alike_padded(model: PreTrainedModel, prompt: Sequence[int], pad_token_id: int) -> bool:
    """Whether padding on the left of a prompt leaves the log-probs of its first generated tokens as they are.

    In a narrow dtype a longer row may round differently, by more than any fixed limit. There a model passes if its
    tokens do not depend on what the padding is and it takes position ids, which `generate` derives from the mask.
    """
    padded = _generated(model, [pad_token_id] * _PADDING + list(prompt), _PADDING, pad_token_id)
    if model.dtype != torch.float32 and "position_ids" in inspect.signature(model.forward).parameters:
        other = _generated(model, [prompt[-1]] * _PADDING + list(prompt), _PADDING, pad_token_id)
        return _alike(padded, other, model.dtype)
    return _alike(_generated(model, list(prompt), 0, pad_token_id), padded, model.dtype)


def _alike(one: _Tokens, other: _Tokens, dtype: torch.dtype) -> bool:
    (ids, logprobs_TV), (other_ids, other_TV) = one, other
    for step in range(_TOKENS):
        likeliest = logprobs_TV[step].topk(min(_LIKELIEST, logprobs_TV.shape[1])).indices
        if not (logprobs_TV[step] - other_TV[step])[likeliest].abs().max() <= _ROUNDING[dtype]:
            return False
        if ids[step] != other_ids[step]:  # as good as a tie
            break
    return True


def _generated(model: PreTrainedModel, row: list[int], padding: int, pad_token_id: int) -> _Tokens:
    """Greedy tokens after a row, and their log-probs, [T, V]."""
    input_ids = torch.tensor([row], device=model.device)
    mask = torch.ones_like(input_ids)
    mask[:, :padding] = 0
    config = GenerationConfig(
        max_new_tokens=_TOKENS,
        min_new_tokens=_TOKENS,
        do_sample=False,
        pad_token_id=pad_token_id,
        return_dict_in_generate=True,
        output_logits=True,
    )
    own = model.generation_config
    model.generation_config = config  # `generate` takes what a config leaves open from the model's own
    try:
        output = model.generate(input_ids=input_ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
    finally:
        model.generation_config = own
    logprobs_TV = torch.stack([logits_1V[0].float().log_softmax(-1) for logits_1V in output.logits])
    return output.sequences[0, len(row) :].tolist(), logprobs_TV
