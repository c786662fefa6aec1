"""Contrasts from what a model, or the writer of a file, answered to the planned ones.

contrasts = respond(engine, planned, prompts, recipe, "base: answering", shuffle=False)
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sami.console import bar
from sami.contrast_plan import Planned
from sami.contrasts import Contrast
from sami.generation import Completion, Engine, SamplingSettings
from sami.generation.reasoning import answer_alone
from sami.prompts import PromptBuilder
from sami.recipe import Generation, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def respond(
    engine: Engine,
    planned: Sequence[Planned],
    prompts: PromptBuilder,
    recipe: Recipe,
    label: str,
    *,
    shuffle: bool,
    part: slice = slice(0, None),
) -> list[Contrast]:
    """Contrasts from an engine's responses to planned ones.

    Args:
        prompts: of the engine's model.
        shuffle: whether the principles' order is shuffled in the training prompt.
        part: answer only these, as they would be answered among all.
    """
    # The seed goes on from the prompts before, so that parts do not share their random numbers.
    before = sum(len(p.constitutions) for p in planned[: part.start])
    generation = recipe.generation.model_copy(update={"seed": recipe.generation.seed + before})
    completions = complete(engine, planned[part], prompts, generation, label)
    seed = recipe.training.seed if shuffle else None
    return as_contrasts(planned, completions, prompts, shuffle_seed=seed, part=part)


def complete(
    engine: Engine, planned: Sequence[Planned], prompts: PromptBuilder, generation: Generation, label: str
) -> list[list[Completion]]:
    """A response to each constitution of each planned contrast.

    With a chain of thought, or from a thinking model, the responses are the answers alone. One that cannot be split
    is kept whole, so that there is something to evaluate, and its finish reason is "unsplit".

    Args:
        prompts: of the engine's model.
    """
    flat = [prompts.generation_prompt(p.query, c.texts, c.text) for p in planned for c in p.constitutions]
    with bar(label, 1.0, "tokens") as update:
        written = engine.generate(flat, SamplingSettings.of(generation, prompts), update)
    answers = (
        answer_alone(completion, prompt, prompts, generation.chain_of_thought)
        for prompt, completion in zip(flat, written, strict=True)
    )
    return [[next(answers) for _ in p.constitutions] for p in planned]


def as_contrasts(
    planned: Sequence[Planned],
    completions: Sequence[Sequence[Completion]],
    prompts: PromptBuilder,
    *,
    shuffle_seed: int | None = None,
    retokenize: bool = False,
    part: slice = slice(0, None),
) -> list[Contrast]:
    """The contrasts that a model scores or trains on.

    Args:
        completions: a row for each planned contrast of the part, with one for each of its constitutions.
        prompts: of the model that scores or trains.
        shuffle_seed: the principles' order is shuffled in the training prompt; None keeps it.
        retokenize: the ids of the completions are another tokenizer's, so their texts are tokenized again.
        part: only these of the planned contrasts, as they are among all.
    """
    rng = random.Random(f"order of principles, seed {shuffle_seed}")
    orders = [[c if shuffle_seed is None else c.shuffled(rng) for c in p.constitutions] for p in planned]
    made = []
    for p, own, listed in zip(planned[part], completions, orders[part], strict=True):
        prompt_ids = [prompts.training_prompt(p.query, c.texts, c.text) for c in listed]
        if retokenize:
            own = [
                retokenized(c, ids, prompts.tokenizer, prompts.end_id) for c, ids in zip(own, prompt_ids, strict=True)
            ]
        made.append(
            Contrast(
                id=p.id,
                query=p.query,
                constitutions=[c.text for c in p.constitutions],
                prompt_ids=prompt_ids,
                response_ids=[c.token_ids for c in own],
                responses=[c.text for c in own],
                finish_reasons=[c.finish_reason for c in own],
                principles=[[(q.id, positive) for q, positive in c.principles] for c in p.constitutions],
                reasoning=[c.reasoning for c in own] if any(c.reasoning for c in own) else [],
            )
        )
    return made


def retokenized(
    completion: Completion, prompt_ids: list[int], tokenizer: "PreTrainedTokenizerBase", end_id: int | None = None
) -> Completion:
    """The text of a completion as this tokenizer's ids after a prompt: set off by a space where the prompt ends in
    a word, and with an end token where the completion finished.

    These ids were not generated: another split of the same text may be the one that a model would have sampled.

    Args:
        end_id: the end token; by default the tokenizer's EOS.
    """

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    body, before = completion.text.strip(), text(prompt_ids)
    after_marker = not tokenizer.decode(prompt_ids[-1:], skip_special_tokens=True)
    gap = "" if after_marker or before[-1:].isspace() else " "
    # Tokenizers that open every text with a space of their own must not be given a second one.
    spellings = [list(tokenizer(start + body, add_special_tokens=False)["input_ids"]) for start in ("", gap)]
    ids = next((ids for ids in spellings if text([*prompt_ids, *ids]) == before + gap + body), spellings[-1])
    if completion.finish_reason == "stop" or not ids:  # an empty response is kept for the filters to count
        ids.append(tokenizer.eos_token_id if end_id is None else end_id)
    decoded = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return Completion(ids, decoded, completion.finish_reason, completion.reasoning)
