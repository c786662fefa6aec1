"""The model card beside a trained model: what it was trained for, on what, its results and its limits.

All of it is read from the run's summary and recipe; no path of this machine appears in it.
"""

import html
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sami.errors import InputError
from sami.evaluation import win_rate_table
from sami.files import replacing
from sami.loop import summary_text
from sami.loop.redaction import is_local, shareable
from sami.loop.results import Comparison, PolicyResult, Summary, WinRate
from sami.loop.standing import standing
from sami.models import adapters, sources
from sami.principles import Constitution, Principle
from sami.prompts import PromptBuilder
from sami.queries import Asked, Conversation, Turn
from sami.recipe import Model, Recipe
from sami.wording import difference, estimate, number, percent, share

FILE = "README.md"
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_EXAMPLE = "Why is the sky blue?"
_EXAMPLE_OF_CONVERSATIONS = Conversation(
    (Turn("user", "What color is the sky?"), Turn("assistant", "By day it is blue.")), _EXAMPLE
)


def write(
    folder: Path,
    summary: Summary,
    iteration: int,
    *,
    name: str,
    recipe: Recipe,
    principles: Sequence[Principle],
    prompts: PromptBuilder,
    tokenizer: Any,
    conversations: int = 0,
) -> None:
    """Write the card of one iteration's model, unless the file already has that text.

    Args:
        folder: of the model.
        summary: of the run, including this iteration's evaluation.
        name: of the run.
        conversations: number of held-out queries that have earlier turns or a system turn of their own.
    """
    text = card(summary, iteration, folder, name, recipe, principles, prompts, tokenizer, conversations)
    file = folder / FILE
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def card(
    summary: Summary,
    iteration: int,
    folder: Path,
    name: str,
    recipe: Recipe,
    principles: Sequence[Principle],
    prompts: PromptBuilder,
    tokenizer: Any,
    conversations: int = 0,
) -> str:
    """The text of the card; see `write`."""
    before = summary.policies[0]
    after = next(one for one in summary.policies if one.iteration == iteration)
    comparison, found = summary.comparison(after.name), standing(summary, after.name)
    assert comparison is not None  # every iteration is compared with base
    assert found is not None
    win_rates = [one for one in summary.win_rates if (one.candidate, one.baseline) == (after.name, before.name)]
    is_adapter = adapters.base_of(folder) is not None
    example = _EXAMPLE_OF_CONVERSATIONS if conversations else _EXAMPLE
    snippet = _snippet(principles, prompts, tokenizer, recipe, is_adapter, example)
    shown = yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True, width=100).rstrip()
    content = ModelCard.from_template(
        _metadata(name, recipe, after, is_adapter),
        template_path=str(_TEMPLATE),
        name=_cell(f"{name}, {after.name}"),
        verdict=_cell(summary_text.verdict(found)),
        base=_base_name(recipe.model).replace("`", ""),
        principles=list(_principles(principles, before, after)),
        use=_use(is_adapter),
        snippet=snippet,
        data=_cell(_data(recipe, summary, iteration, conversations)),
        held_out_queries=recipe.queries.evaluation,
        policy=after.name,
        results=list(_results(before, after, comparison)),
        win_rates=[_win_rate(one) for one in win_rates],
        limits=[_cell(limit) for limit in _limits(recipe, after, win_rates)],
        training=_cell(_training(recipe, summary, iteration)),
        recipe=shown,
        fence=_fence(snippet + shown),
    )
    return str(content).rstrip("\n") + "\n"


def base_license(model: Model) -> str | None:
    """The license of the base weights, as their model card or file names it; None where none is known."""
    source = Path(sources.resolve_source(model))
    recorded = source / sources.SOURCE_FILE
    if recorded.is_file():
        name = json.loads(recorded.read_text(encoding="utf-8")).get("license")
    else:
        try:
            name = ModelCard.load(source / FILE if source.is_dir() else model.source).data.license
        except Exception:  # there is no card, no network, or the card does not parse
            name = None
    return name if isinstance(name, str) else None


def require(folder: Path) -> None:
    """Check that a model has its card.

    Raises:
        InputError: it has none yet.
    """
    if not (folder / FILE).is_file():
        raise InputError(
            f"The model in {folder} has no card, because its evaluation is not finished. Run `sami evaluate` with the "
            f"run's recipe first, so that the card shows how good the model is."
        )


def _metadata(name: str, recipe: Recipe, after: PolicyResult, is_adapter: bool) -> ModelCardData:
    on_hub = not recipe.model.source.startswith("pypi:") and not Path(recipe.model.source).expanduser().is_dir()
    measured = {
        "information_under_frozen_base": after.information.base_bound,
        "information_bound": after.information.bound,
        "verifier_pass_rate": after.verifier.learned.value,
    }
    return ModelCardData(
        model_name=f"{name}-{after.name}",
        base_model=recipe.model.source if on_hub else None,
        datasets=None if is_local(recipe.queries.path) else [recipe.queries.path],
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        license=base_license(recipe.model),
        tags=["sami", "self-supervised-alignment", "principles"],
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type="held-out",
                dataset_name=f"{recipe.queries.evaluation} held-out queries",
                metric_type=metric,
                metric_value=round(value, 4),
            )
            for metric, value in measured.items()
            if value is not None
        ],
    )


def _principles(principles: Sequence[Principle], before: PolicyResult, after: PolicyResult) -> Iterator[dict[str, str]]:
    for principle in principles:
        then, now = before.principles[principle.id], after.principles[principle.id]
        yield {
            "id": _cell(principle.id),
            "definition": _cell(principle.definition),
            "antithesis": _cell(principle.antithesis),
            "learned": "no, held out" if principle.held_out else "yes",
            "bound": f"{number(then.base_bound)} → {number(now.base_bound)}",
            "passed": f"{percent(then.verifier_rate)} → {percent(now.verifier_rate)}",
        }


def _results(before: PolicyResult, after: PolicyResult, comparison: Comparison) -> Iterator[dict[str, str]]:
    for scope, label in summary_text.SCOPES:
        then, now, gains = before.information_on(scope), after.information_on(scope), comparison.gains(scope)
        if now.bound is None:
            continue
        for what, start, end, gain in (
            ("information under the frozen base", then.frozen, now.frozen, gains.base_bound),
            ("information under the policy itself", then.own, now.own, gains.bound),
        ):
            yield {
                "label": f"{label} principles: {what}, nats",
                "before": estimate(start),
                "after": estimate(end),
                "difference": difference(gain),
            }
        passed_before, passed = before.verifier.on(scope), after.verifier.on(scope)
        if passed.value is not None:
            yield {
                "label": f"{label} principles: verifiers passed, %",
                "before": share(passed_before, 1, ""),
                "after": share(passed, 1, ""),
                "difference": difference(gains.verifier_rate, 1),
            }
    words, changed = before.health.words, after.health.words
    yield {
        "label": "words in an answer",
        "before": f"{words:.1f}",
        "after": f"{changed:.1f}",
        "difference": f"{changed - words:+.1f}",
    }


def _win_rate(one: WinRate) -> dict[str, str]:
    return {
        "judge": _cell(one.judge),
        "scope": one.scope.replace("_", " "),
        "raw": estimate(one.raw.estimate, 1),
        "controlled": estimate(one.length_controlled.estimate, 1),
        "queries": str(one.queries),
    }


def _limits(recipe: Recipe, after: PolicyResult, win_rates: Sequence[WinRate]) -> Iterator[str]:
    if failures := after.health.failures:
        yield f"Health limits are broken, so this model is not called better than base: {'; '.join(failures)}."
    else:
        yield (
            "All health limits of the run hold: repetition, leaked constitution text, template markers, unfinished "
            "answers, diversity, likelihood under base and relevance to the query."
        )
    yield (
        f"Answers were generated, trained on and measured with at most {recipe.generation.max_new_tokens} tokens; "
        f"nothing is known about longer answers."
    )
    yield (
        f"All figures come from {recipe.queries.evaluation} queries of one source and from one seed; other queries and "
        f"another seed will give other figures."
    )
    yield (
        "The principles ask for a manner of answering. Whatever the base model gets wrong, or says although it should "
        "not, this model does too; a constitution is not a safeguard."
    )
    name = base_license(recipe.model)
    yield (
        f"The license of the base model is {name}, and it applies to models derived from it."
        if name
        else "The license of the base model is unknown here; look it up at the source of the weights before you share "
        "this model."
    )
    if recipe.model.source.endswith(".gguf"):
        yield "The base weights come from a quantized GGUF file, so training started from rounded weights."
    yield from win_rate_table.warnings([one.as_json() for one in win_rates])


def _data(recipe: Recipe, summary: Summary, iteration: int, conversations: int) -> str:
    queries, made = recipe.queries, summary.contrasts[f"iteration-{iteration}"]
    source = Path(queries.path).name if is_local(queries.path) else queries.path
    writer = "base" if iteration == 1 else f"iteration {iteration - 1}"
    first = recipe.generation.first_model or recipe.generation.first_contrasts
    if first is not None:
        name = _base_name(first) if isinstance(first, Model) else Path(first).name
        others = f"The first iteration's responses come from {name} instead of base."
        writer = name if iteration == 1 else writer
    else:
        others = "No response was written or rated by people or by another model."
    kind = (
        f" {conversations} of the held-out ones are conversations with earlier turns or a system turn of their own."
        if conversations
        else ""
    )
    return (
        f"Queries come from {source} (field {queries.field}): {queries.train} for training, half of them in odd "
        f"iterations and half in even ones, and {queries.evaluation} held out.{kind} The responses of iteration "
        f"{iteration} were written by {writer}: {made.generated} contrasts were generated, {made.kept} passed the "
        f"filters and {made.used} were trained on. {others}"
    )


def _training(recipe: Recipe, summary: Summary, iteration: int) -> str:
    training, done = recipe.training, summary.training[f"iteration-{iteration}"]
    start = "the base weights" if training.restart_from == "base" or iteration == 1 else "the previous iteration"
    versions = ", ".join(f"{name} {version}" for name, version in summary.versions.items())
    method = "LoRA" if recipe.adapter is not None else "All weights"
    changed = f"; {done.weights_changed:.0%} of the trained weights changed" if done.weights_changed is not None else ""
    return (
        f"Iteration {iteration} of {training.iterations}, from {start}. {method}: {done.steps} steps of "
        f"{training.optimizer} with {training.batch_size} contrasts, learning rate {training.lr_of(iteration):g}, "
        f"{recipe.sampling.constitutions} constitutions per contrast ({recipe.sampling.scheme}), contrast over "
        f"{training.contrast}, seed {training.seed}{changed}. Versions: {versions}."
    )


def _use(is_adapter: bool) -> str:
    kind = "a `peft` adapter, which is loaded onto its base model" if is_adapter else "an ordinary `transformers` model"
    return f"This is {kind}. State the principle with each query:"


def _snippet(
    principles: Sequence[Principle],
    prompts: PromptBuilder,
    tokenizer: Any,
    recipe: Recipe,
    is_adapter: bool,
    query: Asked = _EXAMPLE,
) -> str:
    """Code that answers a query under the first learned principle, with the prompt of this run."""
    chosen = Constitution(((next(p for p in principles if not p.held_out), True),))
    ids = prompts.generation_prompt(query, chosen.texts, chosen.text)
    # The decoded prompt contains the template's own start-of-text token, if any.
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    lines = "\n".join(f"    {json.dumps(line, ensure_ascii=False)}" for line in text.splitlines(keepends=True))
    package, loader = ("peft", "AutoPeftModelForCausalLM") if is_adapter else ("transformers", "AutoModelForCausalLM")
    imports = (
        f"from {package} import {loader}\nfrom transformers import AutoTokenizer"
        if is_adapter
        else f"from {package} import {loader}, AutoTokenizer"
    )
    stop = f", stop_strings={json.dumps(list(prompts.stop))}, tokenizer=tokenizer" if prompts.stop else ""
    if prompts.end_id != tokenizer.eos_token_id:
        stop += f", eos_token_id={[prompts.end_id, tokenizer.eos_token_id]}"
    return (
        f'{imports}\n\nfolder = "."  # the folder of this card, or the id of its repository\n'
        f"tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f'model = {loader}.from_pretrained(folder, dtype="auto")\n\n'
        f"prompt = (\n{lines}\n)\n"
        f'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")\n'
        f"output = model.generate(**inputs, max_new_tokens={recipe.generation.max_new_tokens}, do_sample=False{stop})\n"
        f'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))'
    )


def _base_name(model: Model) -> str:
    return Path(model.source).name if is_local(model.source) else model.source


def _cell(text: str) -> str:
    """Text that stays in its table cell or paragraph and cannot become a tag, a link or a picture."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fence(inside: str) -> str:
    """A code fence that no line of the code can close."""
    longest = max((len(run) for run in re.findall("`+", inside)), default=0)
    return "`" * max(3, longest + 1)
