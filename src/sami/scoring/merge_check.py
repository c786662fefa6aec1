"""Merging an adapter into its base, with the check that the merged model is the one that was trained.

merged, changed = checked_merge(adapted_model, longest_contrast)
"""

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from sami.contrasts import Contrast
from sami.errors import InputError
from sami.models import adapters
from sami.scoring.packing_check import plain_logprobs

# Mean difference that rounding explains, in nats per token. Merged weights are rounded to their dtype: in bf16 that
# moved SmolLM2-135M by 0.04 to 0.06, in fp32 by 4e-6. Adapters on a tied head, merged, moved a model by 3.
LARGEST_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@torch.no_grad()
def checked_merge(model: PeftModel, contrast: Contrast) -> tuple[PreTrainedModel, float]:
    """The base model with the adapter added to its weights, and the share of adapted weights that this changed.

    Args:
        model: an adapter on its base; the base gets the merged weights.
        contrast: scored before and after.

    Raises:
        InputError: the merged model scores the contrast differently.
    """
    model.eval()
    expected = plain_logprobs(model, contrast)
    merged, changed = adapters.merge(model)
    gap = float((plain_logprobs(merged, contrast) - expected).abs().mean())
    limit = LARGEST_GAP[merged.dtype]
    if not gap <= limit:
        raise InputError(
            f"The merged model differs from the base with its adapter by {gap:.3g} nats per token on contrast "
            f"{contrast.id}, and rounding explains {limit:g}. It would not be the model that was trained, so it was "
            f"not saved. Set adapter.merge=false, or adapt other modules (adapter.target_modules)."
        )
    return merged, changed
