"""One training pass over a contrast as the reference implementation does it, written from its description.

Each of the C x C pairs of prompt and response is a row of its own, padded to the longest pair. Logits exist for every
position and every token of the vocabulary. Weights and gradients are bf16, activations are checkpointed, and autograd's
anomaly detection is on.
"""

import warnings

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sami.contrasts import Contrast
from sami.objective import sami_loss


class ReferenceStep:
    """Forward and backward pass over one contrast; returns the number of tokens it computed, including padding.

    Args:
        model: with bf16 weights.
    """

    def __init__(self, model: PreTrainedModel, pad_token_id: int) -> None:
        self._model = model.train()
        self._model.set_attn_implementation("sdpa")
        self._model.gradient_checkpointing_enable()
        self._pad_token_id = pad_token_id

    def __call__(self, contrast: Contrast) -> int:
        ids_NL, real_NL, target_NL = (x.to(self._model.device) for x in self._padded(contrast))
        with warnings.catch_warnings(action="ignore"), torch.autograd.detect_anomaly():
            logits_NLV = self._model(input_ids=ids_NL, attention_mask=real_NL, use_cache=False).logits
            logprobs_NLV = logits_NLV.float().log_softmax(-1)
            chosen_NL = logprobs_NLV.gather(-1, target_NL.clamp(min=0)[..., None])[..., 0]
            scored_NL = target_NL >= 0
            mean_N = (chosen_NL * scored_NL).sum(-1) / scored_NL.sum(-1)
            sami_loss(mean_N.view(1, len(contrast.prompt_ids), -1)).backward()
        return ids_NL.numel()

    def _padded(self, contrast: Contrast) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask, and for each position the response token that follows or -1; all [C x R, L]."""
        pairs = [(prompt, response) for prompt in contrast.prompt_ids for response in contrast.response_ids]
        longest = max(len(prompt) + len(response) for prompt, response in pairs)
        ids_NL = torch.full((len(pairs), longest), self._pad_token_id)
        real_NL = torch.zeros_like(ids_NL)
        target_NL = torch.full_like(ids_NL, -1)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids_NL[row, :end] = torch.tensor(prompt + response)
            real_NL[row, :end] = 1
            target_NL[row, len(prompt) - 1 : end - 1] = torch.tensor(response)
        return ids_NL, real_NL, target_NL
