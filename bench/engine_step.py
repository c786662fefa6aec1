"""One training pass over a contrast as `SAMITrainer` does it, or with a row for every response."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sami.contrasts import Contrast, ContrastBatch, collate
from sami.objective import sami_loss
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from sami.training.compilation import compile_layers
from sami.training.precision import ComputeCopy


class EngineStep:
    """Forward and backward pass over one contrast; returns the number of tokens it computed, including padding.

    Args:
        model: with fp32 weights; weights in bf16 are trained themselves, as `master_weights: bfloat16` does.
        share_prefix: False uses plain rows, each a prompt and one response, with logits for responses only.
        gradient_cache: keep the activations of one constitution at a time.
        compiled: compile the transformer blocks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token_id: int,
        *,
        share_prefix: bool = True,
        gradient_cache: bool = False,
        compiled: bool = True,
    ) -> None:
        narrow = next(model.parameters()).dtype == torch.bfloat16
        self._model = (model if narrow else ComputeCopy(model, torch.bfloat16).model).train()
        if compiled:
            compile_layers(self._model)
        self._pad_token_id, self._share_prefix, self._cache = pad_token_id, share_prefix, gradient_cache

    def __call__(self, contrast: Contrast) -> int:
        rows = [[c] for c in range(len(contrast.prompt_ids))] if self._cache else [None]
        batches = [
            collate([contrast], self._pad_token_id, self._share_prefix, constitutions=constitutions).to(
                self._model.device
            )
            for constitutions in rows
        ]
        sami_loss(cached_logprob_matrix(self._score, batches) if self._cache else self._score(batches[0])).backward()
        return sum(batch.input_ids.numel() for batch in batches)

    def _score(self, batch: ContrastBatch) -> Tensor:
        return logprob_matrix(self._model, batch)
