"""What the model sees of one contrast: token ids, where prompts end, which tokens are trained, which tell.

    seen = of_run(FinishedRun("runs/quickstart"), "2-00003")
    print(seen.responses[0].words[:3])

A token tells constitutions apart by its log-probability under the response's own constitution minus the mean of
that under the others, in nats. Such a difference is taken after the tokens before it, as in training.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sami.contrast_plan import Planned
from sami.contrasts import Contrast, collate, read_contrasts
from sami.errors import InputError
from sami.generation.transformers_engine import TransformersEngine
from sami.loop.directory import BASE, policy_name
from sami.loop.finished_run import FinishedRun
from sami.loop.respond import as_contrasts, complete
from sami.models import loading, sources
from sami.pipeline import Pipeline
from sami.principle_writing import files as principle_files
from sami.scoring.logprobs import token_logprobs
from sami.text.leaks import leak_mask, leaked_words, token_spans
from sami.text.words import word_spans


@dataclass(frozen=True)
class Token:
    """One token of a response.

    `trained` tells whether it counts in the loss, `leaked` whether it is part of a word that is masked when the
    frozen base model is asked. `logprobs` holds, by scorer, its log-prob under each constitution.
    """

    id: int
    text: str
    trained: bool
    leaked: bool
    logprobs: dict[str, list[float]]


@dataclass(frozen=True)
class Word:
    """A word of a response and the sum of its tokens' differences, by scorer, in nats."""

    text: str
    difference: dict[str, float]


@dataclass(frozen=True)
class Response:
    """A response with its tokens; `words` come with the one that tells most first, by the last scorer."""

    constitution: int
    text: str
    finish_reason: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]

    def difference(self, token: Token, scorer: str) -> float:
        """Log-prob under the own constitution minus the mean of the others, in nats."""
        by = token.logprobs[scorer]
        others = [value for c, value in enumerate(by) if c != self.constitution]
        return by[self.constitution] - sum(others) / len(others)


@dataclass(frozen=True)
class Inspection:
    """A contrast as the model sees it. `prompts` are (id, text) pairs for each constitution, none of them trained."""

    id: str
    place: str
    query: str
    constitutions: tuple[str, ...]
    principles: tuple[tuple[tuple[str, bool], ...], ...]
    prompts: tuple[tuple[tuple[int, str], ...], ...]
    responses: tuple[Response, ...]
    scorers: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def of_run(
    run: FinishedRun, contrast: str | None = None, *, iteration: int | None = None, scores: bool | None = None
) -> Inspection:
    """A contrast of a run: one that was trained on, or held-out responses of a policy.

    Args:
        contrast: its id; by default the first one of the last iteration.
        iteration: the trained model that scores, and that gave the held-out responses; by default the last one.
        scores: whether base and that model score the tokens; None: where their weights are on this machine.

    Raises:
        InputError: no such contrast, or scores of models that are not there.
    """
    found, place = _find(run, contrast, iteration)
    seen = of_contrast(found, run.tokenizer, place=place, train_eos=run.recipe.training.train_eos)
    if scores is None:
        scores = bool(run.trained) and sources.is_local(run.recipe.model)
    if not scores:
        return seen
    chosen = run.iteration(iteration)
    return scored(seen, found, run.tokenizer, {policy_name(number): run.load(number) for number in (0, chosen)})


def of_recipe(pipeline: Pipeline, contrast: str | None = None, *, scores: bool = False) -> Inspection:
    """A contrast that a recipe plans, before there are responses; with `scores` base answers and scores them.

    Raises:
        InputError: no contrast of that id is planned, or its principles are yet to be written.
    """
    principle_files.require_written(pipeline.recipe.principles)
    planned = _planned(pipeline, contrast)
    if scores:
        base = loading.load_model(pipeline.recipe.model, pipeline.dtype)
        engine = TransformersEngine(base, pipeline.tokenizer)
        written = complete(engine, [planned], pipeline.prompts, pipeline.recipe.generation, "base: answering")
        [answered] = as_contrasts([planned], written, pipeline.prompts)
        seen = of_contrast(
            answered, pipeline.tokenizer, place="answered now", train_eos=pipeline.recipe.training.train_eos
        )
        return scored(seen, answered, pipeline.tokenizer, {BASE: base})
    prompts = [pipeline.prompts.training_prompt(planned.query, c.texts, c.text) for c in planned.constitutions]
    return Inspection(
        id=planned.id,
        place="planned, not answered yet",
        query=planned.query,
        constitutions=tuple(c.text for c in planned.constitutions),
        principles=tuple(tuple((p.id, positive) for p, positive in c.principles) for c in planned.constitutions),
        prompts=tuple(_pairs(ids, pipeline.tokenizer) for ids in prompts),
        responses=(),
        scorers=(),
    )


def of_contrast(contrast: Contrast, tokenizer: Any, *, place: str = "", train_eos: bool = True) -> Inspection:
    """Tokens of a contrast, without a model."""
    trained_RT = collate([contrast], tokenizer.pad_token_id, False, train_eos).response_mask[0].tolist()
    leaked = leaked_words(contrast.constitutions, contrast.query)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    responses = []
    for number, ids in enumerate(contrast.response_ids):
        leaks = leak_mask(ids, decode, leaked)
        tokens = tuple(
            Token(token, text, trained, is_leaked, {})
            for (token, text), trained, is_leaked in zip(
                _pairs(ids, tokenizer), trained_RT[number][: len(ids)], leaks, strict=True
            )
        )
        finish = contrast.finish_reasons[number]
        responses.append(Response(number, contrast.responses[number], finish, tokens, ()))
    return Inspection(
        id=contrast.id,
        place=place,
        query=contrast.query,
        constitutions=tuple(contrast.constitutions),
        principles=tuple(tuple((name, positive) for name, positive in c) for c in contrast.principles),
        prompts=tuple(_pairs(ids, tokenizer) for ids in contrast.prompt_ids),
        responses=tuple(responses),
        scorers=(),
    )


@torch.inference_mode()
def scored(seen: Inspection, contrast: Contrast, tokenizer: Any, scorers: dict[str, PreTrainedModel]) -> Inspection:
    """The same with log-probs of every response token under every constitution, by each scorer.

    Untrained tokens are scored too.
    """
    batch = collate([contrast], tokenizer.pad_token_id, share_prefix=False)
    by_scorer = {name: token_logprobs(model, batch.to(model.device))[0] for name, model in scorers.items()}
    responses = []
    for r, response in enumerate(seen.responses):
        tokens = tuple(
            replace(token, logprobs={name: table_CRT[:, r, t].tolist() for name, table_CRT in by_scorer.items()})
            for t, token in enumerate(response.tokens)
        )
        with_scores = replace(response, tokens=tokens)
        words = sorted(
            _words(with_scores, tokenizer, list(scorers)), key=lambda word: -word.difference[list(scorers)[-1]]
        )
        responses.append(replace(with_scores, words=tuple(words)))
    return replace(seen, responses=tuple(responses), scorers=tuple(scorers))


def _words(response: Response, tokenizer: Any, scorers: Sequence[str]) -> Iterator[Word]:
    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    ids = [token.id for token in response.tokens]
    text = decode(ids)
    spans = token_spans(ids, decode, text)
    for start, end, _ in word_spans(text):
        own = [t for t, (a, b) in zip(response.tokens, spans, strict=True) if a < end and b > start]
        yield Word(text[start:end], {name: sum(response.difference(token, name) for token in own) for name in scorers})


def _pairs(ids: Sequence[int], tokenizer: Any) -> tuple[tuple[int, str], ...]:
    return tuple((token, str(tokenizer.decode([token], clean_up_tokenization_spaces=False))) for token in ids)


def _find(run: FinishedRun, wanted: str | None, iteration: int | None) -> tuple[Contrast, str]:
    """The contrast and the file it stands in, relative to the run.

    All policies answer the same held-out contrasts: those of the iteration come first, then the latest. Baselines may
    have tokens of another model, which mean nothing here.
    """
    directory, folder = run.directory, run.directory.folder
    numbers = range(run.recipe.training.iterations, 0, -1)
    policies = sorted([*numbers, 0], key=lambda number: number != iteration)
    places = [*map(directory.contrasts, numbers), *(directory.responses(policy_name(number)) for number in policies)]
    files = [file for file in places if file.is_file()]
    if not files:
        raise InputError(f"The run {folder} has no contrasts yet. Generate some with `sami generate`.")
    ids: list[str] = []
    for file in files:
        contrasts = read_contrasts(file)
        for contrast in contrasts:
            if wanted is None or contrast.id == wanted:
                return contrast, str(file.relative_to(folder))
        ids += [contrast.id for contrast in contrasts]
    raise _absent(str(wanted), ids, str(folder))


def _planned(pipeline: Pipeline, wanted: str | None) -> Planned:
    plans = [one for i in range(pipeline.iterations) for one in pipeline.training_plan(i + 1)]
    plans += pipeline.evaluation_plan()
    for planned in plans:
        if wanted is None or planned.id == wanted:
            return planned
    raise _absent(str(wanted), [planned.id for planned in plans], "the recipe")


def _absent(wanted: str, ids: Sequence[str], where: str) -> InputError:
    near = difflib.get_close_matches(wanted, ids, n=3) or list(dict.fromkeys(ids))[:3]
    return InputError(f"There is no contrast {wanted!r} in {where}. Ids look like {', '.join(near)}.")
