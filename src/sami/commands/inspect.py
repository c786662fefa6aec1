"""`sami inspect`: what the model sees of a contrast: token ids, where prompts end, what is trained, telling words.

    seen = of_run(Run.open("runs/quickstart"), "2-00003")
    print(seen.responses[0].words[:3])

A token distinguishes constitutions by its log-probability under the response's own constitution minus the mean
under the others, in nats, given the tokens before it, as in training.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from sami.contrast_plan import Planned
from sami.contrasts import Contrast, collate, read_contrasts
from sami.errors import InputError, quoted
from sami.generation.respond import as_contrasts, complete
from sami.generation.transformers_engine import TransformersEngine
from sami.loop.context import Run
from sami.loop.directory import BASE, policy_name
from sami.models import loading, sources
from sami.prepared import Prepared
from sami.principle_writing import files as principle_files
from sami.scoring.logprobs import token_logprobs
from sami.text.leaks import leak_mask, leaked_words, token_spans
from sami.text.words import word_spans


@dataclass(frozen=True)
class Token:
    """One token of a response.

    `trained` says whether it counts in the loss, and `leaked` whether it is part of a word that is masked when the
    frozen base model scores. `logprobs` has, for each scorer, its log-prob under each constitution.
    """

    id: int
    text: str
    trained: bool
    leaked: bool
    logprobs: dict[str, list[float]]


@dataclass(frozen=True)
class Word:
    """A word of a response and, for each scorer, the sum of the differences of its tokens, in nats."""

    text: str
    difference: dict[str, float]


@dataclass(frozen=True)
class Response:
    """A response with its tokens, and its words from the most telling one on, according to the last scorer.

    `reasoning` was written before the response. It is shown and never trained on or scored.
    """

    constitution: int
    text: str
    finish_reason: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    reasoning: str = ""

    def difference(self, token: Token, scorer: str) -> float:
        """Log-prob under the response's constitution minus the mean under the others, in nats."""
        by = token.logprobs[scorer]
        others = [value for c, value in enumerate(by) if c != self.constitution]
        return by[self.constitution] - sum(others) / len(others)


@dataclass(frozen=True)
class Inspection:
    """A contrast as the model sees it. `prompts` has the tokens of each constitution's prompt as (id, text) pairs."""

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
    run: Run, contrast: str | None = None, *, iteration: int | None = None, scores: bool | None = None
) -> Inspection:
    """A contrast of a run that it was trained on, or one with held-out responses of a policy.

    Args:
        contrast: its id; by default the first one of the last iteration.
        iteration: the trained model that scores and that gave the held-out responses; by default the last one.
        scores: whether base and that model score the tokens; None scores if their weights are on this machine.

    Raises:
        InputError: no such contrast, or no model to score with.
    """
    found, place = _find(run, contrast, iteration)
    seen = of_contrast(found, run.tokenizer, place=place, train_eos=run.recipe.training.train_eos)
    if scores is None:
        scores = bool(run.directory.models()) and sources.is_local(run.recipe.model)
    if not scores:
        return seen
    chosen = run.iteration(iteration)
    return scored(seen, found, run.tokenizer, {policy_name(number): run.load(number) for number in (0, chosen)})


def of_recipe(prepared: Prepared, contrast: str | None = None, *, scores: bool = False) -> Inspection:
    """A contrast that a recipe plans; with `scores`, the base model answers it and scores the answers.

    Raises:
        InputError: no contrast with that id is planned, or the principles are yet to be written.
    """
    principle_files.require_written(prepared.recipe.principles)
    planned = _planned(prepared, contrast)
    if scores:
        base = loading.load_model(prepared.recipe.model, prepared.dtype)
        engine = TransformersEngine(base, prepared.tokenizer)
        written = complete(engine, [planned], prepared.prompts, prepared.recipe.generation, "base: answering")
        [answered] = as_contrasts([planned], written, prepared.prompts)
        seen = of_contrast(
            answered, prepared.tokenizer, place="answered now", train_eos=prepared.recipe.training.train_eos
        )
        return scored(seen, answered, prepared.tokenizer, {BASE: base})
    prompts = [prepared.prompts.training_prompt(planned.query, c.texts, c.text) for c in planned.constitutions]
    return Inspection(
        id=planned.id,
        place="planned, not answered yet",
        query=str(planned.query),
        constitutions=tuple(c.text for c in planned.constitutions),
        principles=tuple(tuple((p.id, positive) for p, positive in c.principles) for c in planned.constitutions),
        prompts=tuple(_pairs(ids, prepared.tokenizer) for ids in prompts),
        responses=(),
        scorers=(),
    )


def of_contrast(contrast: Contrast, tokenizer: Any, *, place: str = "", train_eos: bool = True) -> Inspection:
    """A contrast with its tokens, without scores."""
    trained_RT = collate([contrast], tokenizer.pad_token_id, False, train_eos).response_mask[0].tolist()
    leaked = leaked_words(contrast.constitutions, contrast.said)

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
        reasoning = contrast.reasoning[number] if contrast.reasoning else ""
        responses.append(Response(number, contrast.responses[number], finish, tokens, (), reasoning))
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
    """The same with the log-probs of every response token, trained or not, under every constitution by each scorer."""
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


def _find(run: Run, wanted: str | None, iteration: int | None) -> tuple[Contrast, str]:
    """The contrast and the file that contains it, relative to the run's folder.

    All policies answer the same held-out contrasts: the iteration that was asked for comes first, then later ones
    before earlier ones. Baselines are left out, since their tokens may be those of another model.
    """
    directory, folder = run.directory, run.directory.folder
    numbers = range(run.recipe.training.iterations, 0, -1)
    policies = sorted([*numbers, 0], key=lambda number: number != iteration)
    places = {directory.contrasts(number): f"generate-{number}" for number in numbers}
    places |= {directory.responses(name): f"respond-{name}" for name in map(policy_name, policies)}
    files = [file for file in places if file.is_file()]
    if not files:
        raise InputError(f"The run {folder} has no contrasts yet. Generate some with `sami generate`.")
    ids: list[str] = []
    for file in files:
        directory.require_intact(places[file], file)
        contrasts = read_contrasts(file)
        for contrast in contrasts:
            if wanted is None or contrast.id == wanted:
                return contrast, str(file.relative_to(folder))
        ids += [contrast.id for contrast in contrasts]
    raise _absent(str(wanted), ids, str(folder))


def _planned(prepared: Prepared, wanted: str | None) -> Planned:
    plans = [one for i in prepared.iterations for one in prepared.training_plan(i)]
    plans += prepared.evaluation_plan()
    for planned in plans:
        if wanted is None or planned.id == wanted:
            return planned
    raise _absent(str(wanted), [planned.id for planned in plans], "the recipe")


def _absent(wanted: str, ids: Sequence[str], where: str) -> InputError:
    near = difflib.get_close_matches(wanted, ids, n=3) or list(dict.fromkeys(ids))[:3]
    return InputError(f"There is no contrast {quoted(wanted)} in {where}. Give an id such as {', '.join(near)}.")
