"""Generation with transformers, in the process that called."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from sami.contrasts import FinishReason
from sami.generation import Completion, Progress, SamplingSettings
from sami.generation.decoding import decoding_attention


class TransformersEngine:
    """Batches of similar length, longest prompts first, so that running out of memory shows at once.

    Args:
        model: in evaluation mode, in the dtype and on the device to generate with.
        batch_size: sequences generated together.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 128) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        ids = model.generation_config.eos_token_id
        self._eos_ids = {
            tokenizer.eos_token_id,
            *(ids if isinstance(ids, list) else [ids] if ids is not None else []),
        }

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, progress: Progress | None = None
    ) -> list[Completion]:
        """One completion for each prompt."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        completions: dict[int, Completion] = {}
        total = len(prompts) * settings.max_new_tokens
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            counter = _StepCounter(progress or Progress(), start * settings.max_new_tokens, len(chosen), total)
            torch.manual_seed(settings.seed + start)
            rows = self._generate_batch([prompts[i] for i in chosen], settings, counter)
            completions.update({i: self._completion(row, settings) for i, row in zip(chosen, rows, strict=True)})
            (progress or Progress()).on_tokens((start + len(chosen)) * settings.max_new_tokens, total)
        return [completions[i] for i in range(len(prompts))]

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, counter: StoppingCriteria
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        criteria = StoppingCriteriaList([counter])
        if settings.stop:
            criteria.append(_StopInResponse(self._tokenizer, settings.stop, width))
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": 0,
            }
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=sorted(self._eos_ids),
            pad_token_id=pad,
            bos_token_id=self._tokenizer.bos_token_id,
            **sampling,
        )
        with decoding_attention(self._model), _generating_by(config, self._model):
            output = self._model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(self._model.device),
                attention_mask=attention.to(self._model.device),
                generation_config=config,
                stopping_criteria=criteria,
            )
        generated: list[list[int]] = output[:, width:].tolist()
        return generated

    def _completion(self, row: list[int], settings: SamplingSettings) -> Completion:
        """Cut a row at its EOS or stop string; what the batch generated after that is padding."""
        finish: FinishReason = "length"
        end = next((at for at, token in enumerate(row) if token in self._eos_ids), None)
        ids = row
        if end is not None:
            ids, finish = row[:end], "stop"
        text = self._text(ids)
        found = [at for stop in settings.stop if (at := text.find(stop)) >= 0]
        if found:
            finish = "stop"
            while len(text) > min(found):
                ids = ids[:-1]
                text = self._text(ids)
        if finish == "stop":
            ids = [*ids, self._tokenizer.eos_token_id]
        return Completion(token_ids=list(ids), text=text, finish_reason=finish)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@contextmanager
def _generating_by(config: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """Set aside the model's own generation config: `generate` takes what ours leaves open from it."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class _StopInResponse(StoppingCriteria):
    """Stop strings count in the response only; a prompt may end with a part of one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_width: int) -> None:
        self._criterion, self._width = StopStringCriteria(tokenizer, list(stop)), prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **settings: Any) -> torch.Tensor:
        return self._criterion(input_ids[:, self._width :], scores, **settings)


class _StepCounter(StoppingCriteria):
    """Called once for each step of a batch; stops nothing."""

    def __init__(self, progress: Progress, done: int, sequences: int, total: int) -> None:
        self._progress, self._done, self._sequences, self._total = progress, done, sequences, total

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._done += self._sequences
        self._progress.on_tokens(self._done, self._total)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
