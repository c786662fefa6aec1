"""Contrasts of the first iteration that the base model does not write: by another model, or from a file.

A base model may not follow the principles well enough to learn from itself. Either way the texts are put under the
run's own prompts and, where they are not the run's own tokens already, tokenized again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sami.contrast_plan import Planned
from sami.contrasts import Contrast
from sami.errors import InputError
from sami.files import file_hash
from sami.generation import Completion, Engine
from sami.generation.respond import as_contrasts, complete
from sami.models import loading, sources
from sami.principles import Constitution, Principle
from sami.prompts import PromptBuilder
from sami.queries import Query, normalize
from sami.recipe import Model, Recipe
from sami.reference_format import WrittenContrast, read_contrasts

SENTENCE_ENDS = (".", "!", "?", "…", '."', '!"', '?"', ".”", "!”", "?”", ".)", "。")


@dataclass(frozen=True)
class Written:
    """Contrasts that the run's own model did not write, and what is known against some of them."""

    contrasts: list[Contrast]
    by: str
    """Who wrote the responses."""
    unfit: dict[str, set[str]] = field(default_factory=dict)
    """Ids of contrasts that cannot be trained on, under the reason that summaries count them by."""


def identity(recipe: Recipe) -> str | None:
    """What identifies the writer of the first iteration's contrasts: a model's weights, or a file's content."""
    generation = recipe.generation
    if generation.first_model is not None:
        return sources.fingerprint(generation.first_model)
    return None if generation.first_contrasts is None else file_hash(Path(generation.first_contrasts))


def written_by_model(
    writer: Model,
    planned: Sequence[Planned],
    prompts: PromptBuilder,
    recipe: Recipe,
    label: str,
    make_engine: Callable[[loading.Weights, Any], Engine],
) -> Written:
    """Another model's answers, prompted as the recipe says, through its own chat template if it has one.

    Its token ids are kept where both tokenizers have one vocabulary and both models are prompted in one style;
    otherwise its texts are tokenized again for the model that is trained.

    Args:
        prompts: of the model that is trained.
        make_engine: the recipe's engine for weights and their tokenizer.
    """
    own = prompts_of(writer, recipe)
    engine = make_engine(loading.Weights.of(writer, sources.fingerprint(writer)), own.tokenizer)
    completions = complete(engine, planned, own, recipe.generation, label)
    name = writer.source.rstrip("/").split("/")[-1]
    if own.chat == prompts.chat and own.tokenizer.get_vocab() == prompts.tokenizer.get_vocab():
        # The writer may end its turns with another token of the vocabulary.
        completions = [[_ending_with(prompts.end_id, completion) for completion in row] for row in completions]
        made = as_contrasts(planned, completions, prompts, shuffle_seed=recipe.training.seed)
    else:
        made = as_contrasts(planned, completions, prompts, shuffle_seed=recipe.training.seed, retokenize=True)
        name += ", tokenized again"
    return Written(made, name)


def prompts_of(writer: Model, recipe: Recipe) -> PromptBuilder:
    """The prompts that another model generates from in a run."""
    return PromptBuilder(loading.load_tokenizer(writer), recipe.prompt, recipe.generation.chain_of_thought)


def written_in_file(
    file: Path, principles: Sequence[Principle], held_out: Sequence[Query], recipe: Recipe
) -> Callable[[PromptBuilder], Written]:
    """The contrasts of a file, once there are prompts to put them under; the file is read and checked at once.

    A response that ends like a sentence counts as finished and gets EOS, others as cut off. Contrasts for held-out
    queries are unfit, and with a `prompt.response_prefix` those whose responses do not start from it.

    Raises:
        InputError: a file that is not of the reference's format, or contrasts that do not belong to this recipe.
    """
    written = read_contrasts(file)
    statements = {
        normalize(principle.text(positive)): (principle, positive)
        for principle in principles
        for positive in (True, False)
    }
    planned = [_planned(contrast, statements, file, recipe) for contrast in written]
    evaluated = {normalize(query.text) for query in held_out}
    prefix = recipe.prompt.response_prefix.strip()
    unfit = {"held_out_query": {p.id for p in planned if normalize(p.query) in evaluated}}
    if prefix:
        unfit["without_prefix"] = {
            p.id
            for p, contrast in zip(planned, written, strict=True)
            if not all(response.startswith(prefix) for response in contrast.responses)
        }
    completions = [
        [_written(response.removeprefix(prefix).strip()) for response in contrast.responses] for contrast in written
    ]

    def put_under(prompts: PromptBuilder) -> Written:
        return Written(as_contrasts(planned, completions, prompts, retokenize=True), file.name, unfit)

    return put_under


def without_too_long(written: Written, context: int | None) -> Written:
    """The same with contrasts unfit whose prompt and response, tokenized again, exceed a model's context."""
    ids = {
        contrast.id
        for contrast in written.contrasts
        if context and max(map(len, contrast.prompt_ids)) + max(map(len, contrast.response_ids)) > context
    }
    return replace(written, unfit={**written.unfit, "too_long": ids})


def _planned(
    contrast: WrittenContrast, statements: dict[str, tuple[Principle, bool]], file: Path, recipe: Recipe
) -> Planned:
    if len(contrast.constitutions) != recipe.sampling.constitutions:
        raise InputError(
            f"Contrast {contrast.id} of {file} has {len(contrast.constitutions)} constitutions, and "
            f"sampling.constitutions is {recipe.sampling.constitutions}. Set it to the number in the file."
        )
    constitutions = []
    for listed in contrast.constitutions:
        unknown = [statement for statement in listed if normalize(statement) not in statements]
        if unknown:
            raise InputError(
                f"Contrast {contrast.id} of {file} has the statement {unknown[0]!r}, which is neither definition nor "
                f"antithesis of a principle in {recipe.principles}. What is trained and what is evaluated must be the "
                f"same principles: make their file with `sami import-principles {file} --output principles.yaml`."
            )
        constitutions.append(Constitution(tuple(statements[normalize(statement)] for statement in listed)))
    if held_out := [p.id for constitution in constitutions for p, _ in constitution.principles if p.held_out]:
        raise InputError(
            f"Contrast {contrast.id} of {file} is about {held_out[0]}, which is held out in {recipe.principles}. "
            f"Held-out principles are never trained on: remove `held_out`, or the contrast."
        )
    return Planned(f"file-{contrast.id}", contrast.query, constitutions)


def _written(text: str) -> Completion:
    return Completion([], text, "stop" if text.endswith(SENTENCE_ENDS) else "length")


def _ending_with(end_id: int, completion: Completion) -> Completion:
    if completion.finish_reason != "stop":
        return completion
    return replace(completion, token_ids=[*completion.token_ids[:-1], end_id])
