"""Generation with transformers in the calling process."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from sami.generation import Completion, OnProgress, SamplingSettings
from sami.generation.endings import completion, end_tokens
from sami.generation.padding_check import generates_alike_padded
from sami.models.loading import Weights
from sami.recipe import Generation


class TransformersEngine:
    """Generates in batches of similar length, longest prompts first, so that a lack of memory shows at once.

    Args:
        model: in evaluation mode, in the dtype and on the device to generate with.
        batch_size: sequences generated together.
    """

    @staticmethod
    def unavailable(settings: Generation) -> str | None:
        """Always available: transformers is a dependency of this package."""
        return None

    @staticmethod
    def fits_machine() -> bool:
        return True

    @classmethod
    def for_weights(
        cls, settings: Generation, weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path, rescore: Any
    ) -> Self:
        return cls(weights.load(), tokenizer, settings.batch_size)

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 128) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._end_ids = end_tokens(model.generation_config, tokenizer)
        self._pads: bool | None = None

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_progress: OnProgress | None = None
    ) -> list[Completion]:
        """One completion for each prompt."""
        return self._generate(prompts, settings, on_progress, [])

    def stream(self, prompt: Sequence[int], settings: SamplingSettings, on_text: Callable[[str], None]) -> Completion:
        """The completion of one prompt; `on_text` is called with its text so far after each token."""

        def seen(row: list[int]) -> None:
            on_text(completion(row, settings, self._end_ids, self._tokenizer).text)

        return self._generate([prompt], settings, None, [_Watch(len(prompt), seen)])[0]

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_progress: OnProgress | None,
        watching: Sequence[StoppingCriteria],
    ) -> list[Completion]:
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        completions: dict[int, Completion] = {}
        tokens = 0
        start = 0
        for chosen in self._batches(order, prompts):
            steps = None
            if on_progress:
                share = len(chosen) / len(prompts)
                steps = _StepCounter(on_progress, start / len(prompts), share / settings.max_new_tokens, tokens)
            torch.manual_seed(settings.seed + start)
            rows = self._generate_batch([prompts[i] for i in chosen], settings, steps, watching)
            ended = [completion(row, settings, self._end_ids, self._tokenizer) for row in rows]
            completions.update(zip(chosen, ended, strict=True))
            tokens += sum(len(completions[i].token_ids) for i in chosen)
            start += len(chosen)
            if on_progress:
                on_progress(start / len(prompts), tokens)
        return [completions[i] for i in range(len(prompts))]

    def _batches(self, order: list[int], prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """The prompts in order, some at a time; of one length if padding would change what the model generates."""
        lengths = [len(prompts[i]) for i in order]
        if len(set(lengths)) > 1 and self._pads is None:
            self._pads = generates_alike_padded(self._model, prompts[order[-1]], self._tokenizer.pad_token_id)
        groups = [order]
        if self._pads is False:
            groups = [list(group) for _, group in itertools.groupby(order, key=lambda i: len(prompts[i]))]
        for group in groups:
            for start in range(0, len(group), self._batch_size):
                yield group[start : start + self._batch_size]

    @torch.inference_mode()
    def _generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        steps: "_StepCounter | None",
        watching: Sequence[StoppingCriteria],
    ) -> list[list[int]]:
        width = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        criteria = StoppingCriteriaList([*watching, *([steps.watching(width, self._end_ids)] if steps else [])])
        if settings.stop:
            criteria.append(_StopInResponse(self._tokenizer, settings.stop, width))
        config = self._config(settings)
        with _generating_by(config, self._model):
            output = self._model.generate(  # type: ignore[operator]
                input_ids=input_ids.to(self._model.device),
                attention_mask=attention.to(self._model.device),
                generation_config=config,
                stopping_criteria=criteria,
            )
        generated: list[list[int]] = output[:, width:].tolist()
        return generated

    def _config(self, settings: SamplingSettings) -> GenerationConfig:
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=settings.max_new_tokens,
            eos_token_id=sorted(self._end_ids),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            **sampling,
        )


@contextmanager
def _generating_by(config: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """Set the model's own generation config aside, from which `generate` would fill what ours leaves open."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


class _StopInResponse(StoppingCriteria):
    """Looks for stop strings in the response alone, because a prompt may end with a part of one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_width: int) -> None:
        self._criterion, self._width = StopStringCriteria(tokenizer, list(stop)), prompt_width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **settings: Any) -> torch.Tensor:
        return self._criterion(input_ids[:, self._width :], scores, **settings)


class _Watch(StoppingCriteria):
    """Reports the ids of one response after each token, and never stops generation."""

    def __init__(self, prompt_width: int, seen: Callable[[list[int]], None]) -> None:
        self._width, self._seen = prompt_width, seen

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._seen(input_ids[0, self._width :].tolist())
        return torch.zeros(1, dtype=torch.bool, device=input_ids.device)


class _StepCounter(StoppingCriteria):
    """Reports each step of a batch with the tokens of rows that have not ended, and never stops generation."""

    def __init__(self, on_progress: OnProgress, done: float, share_of_a_step: float, tokens: int) -> None:
        self._on_progress, self._done, self._step, self._tokens = on_progress, done, share_of_a_step, tokens
        self._width, self._end_ids = 0, torch.tensor([])

    def watching(self, prompt_width: int, end_ids: set[int]) -> "_StepCounter":
        self._width, self._end_ids = prompt_width, torch.tensor(sorted(end_ids))
        return self

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        before = input_ids[:, self._width : -1]
        ended = torch.isin(before, self._end_ids.to(before.device)).any(dim=1)
        self._done += self._step
        self._tokens += int((~ended).sum())
        self._on_progress(self._done, self._tokens)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
