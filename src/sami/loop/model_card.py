"""The model card beside a trained model: what it was trained for, on what, with which results and limits.

Everything in it is read from the run's summary; no path of this machine is.
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
from sami.loop.redaction import is_local, shareable
from sami.models import adapters, sources
from sami.principles import Constitution, Principle
from sami.prompts import PromptBuilder
from sami.recipe import Model, Recipe

FILE = "README.md"
_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_EXAMPLE = "Why is the sky blue?"


def write(
    folder: Path,
    summary: dict[str, Any],
    iteration: int,
    *,
    name: str,
    recipe: Recipe,
    principles: Sequence[Principle],
    prompts: PromptBuilder,
    tokenizer: Any,
) -> None:
    """Write the card of one iteration's model, unless it stands there already.

    Args:
        folder: of the model.
        summary: of the run, with this iteration's evaluation.
        name: of the run.
    """
    text = card(summary, iteration, folder, name, recipe, principles, prompts, tokenizer)
    file = folder / FILE
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


def card(
    summary: dict[str, Any],
    iteration: int,
    folder: Path,
    name: str,
    recipe: Recipe,
    principles: Sequence[Principle],
    prompts: PromptBuilder,
    tokenizer: Any,
) -> str:
    """The text of the card; see `write`."""
    before = summary["policies"][0]
    after = next(one for one in summary["policies"] if one["iteration"] == iteration)
    comparison = next(one for one in summary["comparisons"] if one["policy"] == after["name"])
    win_rates = [
        one
        for one in summary.get("win_rates", [])
        if (one["candidate"], one["baseline"]) == (after["name"], before["name"])
    ]
    is_adapter = adapters.base_of(folder) is not None
    snippet = _snippet(principles, prompts, tokenizer, recipe, is_adapter)
    shown = yaml.safe_dump(shareable(recipe), sort_keys=False, allow_unicode=True, width=100).rstrip()
    content = ModelCard.from_template(
        _metadata(name, recipe, after, is_adapter),
        template_path=str(_TEMPLATE),
        name=_cell(f"{name}, {after['name']}"),
        verdict=_cell(_verdict(summary, comparison)),
        base=_base_name(recipe.model).replace("`", ""),
        principles=list(_principles(principles, before, after)),
        use=_use(is_adapter),
        snippet=snippet,
        data=_cell(_data(recipe, summary, iteration)),
        held_out_queries=recipe.queries.evaluation,
        policy=after["name"],
        results=list(_results(before, after, comparison)),
        win_rates=[_win_rate(one) for one in win_rates],
        limits=[_cell(limit) for limit in _limits(recipe, after, win_rates)],
        training=_cell(_training(recipe, summary, iteration)),
        recipe=shown,
        fence=_fence(snippet + shown),
    )
    return str(content).rstrip("\n") + "\n"


def base_licence(model: Model) -> str | None:
    """The licence that the base weights come with, as their card or file names it; None where none is known."""
    source = Path(sources.resolve_source(model))
    recorded = source / sources.SOURCE_FILE
    if recorded.is_file():
        licence = json.loads(recorded.read_text(encoding="utf-8")).get("license")
    else:
        try:
            licence = ModelCard.load(source / FILE if source.is_dir() else model.source).data.license
        except Exception:  # no card, no network, or one that does not parse: then the licence is not known
            licence = None
    return licence if isinstance(licence, str) else None


def _metadata(name: str, recipe: Recipe, after: dict[str, Any], is_adapter: bool) -> ModelCardData:
    on_hub = not recipe.model.source.startswith("pypi:") and not Path(recipe.model.source).expanduser().is_dir()
    measured = {
        "information_under_frozen_base": after["information"]["base_bound"],
        "information_bound": after["information"]["bound"],
        "verifier_pass_rate": after["verifier"]["learned"]["value"],
    }
    return ModelCardData(
        model_name=f"{name}-{after['name']}",
        base_model=recipe.model.source if on_hub else None,
        datasets=None if is_local(recipe.queries.path) else [recipe.queries.path],
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        license=base_licence(recipe.model),
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


def _verdict(summary: dict[str, Any], comparison: dict[str, Any]) -> str:
    """The run's verdict where it is about this model, which takes judges into account."""
    last = summary["comparisons"][-1]["policy"] == comparison["policy"]
    return str(summary["verdict"] if last and "verdict" in summary else comparison["reason"])


def _principles(
    principles: Sequence[Principle], before: dict[str, Any], after: dict[str, Any]
) -> Iterator[dict[str, str]]:
    for principle in principles:
        then, now = before["principles"][principle.id], after["principles"][principle.id]
        yield {
            "id": _cell(principle.id),
            "definition": _cell(principle.definition),
            "antithesis": _cell(principle.antithesis),
            "learned": "no, held out" if principle.held_out else "yes",
            "bound": f"{_nats(then['base_bound'])} → {_nats(now['base_bound'])}",
            "passed": f"{_percent(then['verifier_rate'])} → {_percent(now['verifier_rate'])}",
        }


def _results(before: dict[str, Any], after: dict[str, Any], comparison: dict[str, Any]) -> Iterator[dict[str, str]]:
    for scope, key, label in (
        ("learned", "information", "learned principles"),
        ("held_out", "information_held_out", "held-out principles"),
    ):
        if after[key]["bound"] is None:
            continue
        for figure, low, high, what in (
            ("base_bound", "base_low", "base_high", "information under the frozen base, nats"),
            ("bound", "low", "high", "information under the policy itself, nats"),
        ):
            yield {
                "label": f"{label}: {what}",
                "before": _interval(*(before[key][name] for name in (figure, low, high)), digits=3),
                "after": _interval(*(after[key][name] for name in (figure, low, high)), digits=3),
                "difference": _difference(comparison[scope][figure], 3),
            }
        then, now = (
            {name: None if (value := one["verifier"][scope][name]) is None else 100 * value for name in _ESTIMATE}
            for one in (before, after)
        )
        if now["value"] is not None:
            yield {
                "label": f"{label}: verifiers passed, %",
                "before": _interval(*(then[name] for name in _ESTIMATE), digits=1),
                "after": _interval(*(now[name] for name in _ESTIMATE), digits=1),
                "difference": _difference(comparison[scope]["verifier_rate"], 1),
            }
    words = [one["health"]["words"] for one in (before, after)]
    yield {
        "label": "words in an answer",
        "before": f"{words[0]:.1f}",
        "after": f"{words[1]:.1f}",
        "difference": f"{words[1] - words[0]:+.1f}",
    }


_ESTIMATE = ("value", "low", "high")


def _win_rate(one: dict[str, Any]) -> dict[str, str]:
    raw, controlled = one["raw"], one["length_controlled"]
    return {
        "judge": _cell(one["judge"]),
        "scope": one["scope"].replace("_", " "),
        "raw": _interval(raw["rate"], raw["low"], raw["high"], digits=1),
        "controlled": _interval(controlled["rate"], controlled["low"], controlled["high"], digits=1),
        "queries": str(one["queries"]),
    }


def _limits(recipe: Recipe, after: dict[str, Any], win_rates: Sequence[dict[str, Any]]) -> Iterator[str]:
    if failures := after["health"]["failures"]:
        yield f"Health limits are broken, so this model is not called better than base: {'; '.join(failures)}."
    else:
        yield (
            "All health limits of the run hold: repetition, leaked constitution text, template markers, unfinished "
            "answers, diversity, likelihood under base and relevance to the query."
        )
    yield (
        f"Answers were generated, trained and measured at no more than {recipe.generation.max_new_tokens} tokens; "
        f"nothing is known about longer ones."
    )
    yield (
        f"All figures come from {recipe.queries.evaluation} queries of one source and from one seed; other queries, "
        f"and another seed, give other figures."
    )
    yield (
        "The principles ask for a manner of answering. What the base model gets wrong, or should not say, this model "
        "does too; a constitution is no safeguard."
    )
    licence = base_licence(recipe.model)
    yield (
        f"The base model's licence is {licence}, and binds what is made of it."
        if licence
        else "The base model's licence is not known here; look it up where the weights come from before you share this."
    )
    if recipe.model.source.endswith(".gguf"):
        yield "The base weights come from a quantised GGUF file, so training started from rounded weights."
    yield from win_rate_table.warnings(win_rates)


def _data(recipe: Recipe, summary: dict[str, Any], iteration: int) -> str:
    queries, made = recipe.queries, summary["contrasts"][f"iteration-{iteration}"]
    source = Path(queries.path).name if is_local(queries.path) else queries.path
    writer = "base" if iteration == 1 else f"iteration {iteration - 1}"
    first = recipe.generation.first_model or recipe.generation.first_contrasts
    if first is not None:
        name = _base_name(first) if isinstance(first, Model) else Path(first).name
        others = f"The first iteration's responses come from {name} instead of base."
        writer = name if iteration == 1 else writer
    else:
        others = "No response was written or rated by people or by another model."
    return (
        f"Queries come from {source} (field {queries.field}): {queries.train} to train on, half of them in odd "
        f"iterations and half in even ones, and {queries.evaluation} held out. The responses of iteration {iteration} "
        f"were written by {writer}: {made['generated']} contrasts, {made['kept']} of them passed the filters and "
        f"{made['used']} were trained on. {others}"
    )


def _training(recipe: Recipe, summary: dict[str, Any], iteration: int) -> str:
    training, done = recipe.training, summary["training"][f"iteration-{iteration}"]
    start = "the base weights" if training.restart_from == "base" or iteration == 1 else "the iteration before"
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    method = "LoRA" if recipe.adapter is not None else "All weights"
    return (
        f"Iteration {iteration} of {training.iterations}, from {start}. {method}: {done['steps']} steps of "
        f"{training.optimizer} with {training.batch_size} contrasts, learning rate {training.lr_of(iteration):g}, "
        f"{recipe.sampling.constitutions} constitutions a contrast ({recipe.sampling.scheme}), contrast over "
        f"{training.contrast}, seed {training.seed}; {done['weights_changed']:.0%} of the trained weights changed. "
        f"Versions: {versions}."
    )


def _use(is_adapter: bool) -> str:
    kind = "an adapter of `peft`, loaded onto its base model" if is_adapter else "an ordinary `transformers` model"
    return f"This is {kind}. State the principle with each query:"


def _snippet(
    principles: Sequence[Principle], prompts: PromptBuilder, tokenizer: Any, recipe: Recipe, is_adapter: bool
) -> str:
    """Code that answers a query under the first principle, with the prompt of this run."""
    chosen = Constitution(((next(p for p in principles if not p.held_out), True),))
    ids = prompts.generation_prompt(_EXAMPLE, chosen.texts, chosen.text)
    # The template's own start of text, if any, stands in the decoded prompt.
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
        f'{imports}\n\nfolder = "."  # of this card, or the name of its repository\n'
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
    """Text that cannot leave its table cell or paragraph, nor become a tag, a link or a picture."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _fence(inside: str) -> str:
    """A fence for code that no line of it can close."""
    longest = max((len(run) for run in re.findall("`+", inside)), default=0)
    return "`" * max(3, longest + 1)


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _interval(value: float | None, low: float | None, high: float | None, *, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + ("" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]")


def _difference(estimate: dict[str, Any], digits: int) -> str:
    if estimate["value"] is None:
        return "–"
    return (
        f"{estimate['value']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}], "
        f"n {estimate['n']}"
    )


def require(folder: Path) -> None:
    """Raise InputError where a model has no card yet."""
    if not (folder / FILE).is_file():
        raise InputError(
            f"The model in {folder} has no card, because its evaluation is not finished. Run `sami evaluate` with the "
            f"run's recipe first, so that whoever takes the model sees what it is worth."
        )
