"""Compute summary.json from the files of a run.

summary = summarize(directory, recipe, principles, ["base", "iteration-1"])
write_json(directory.summary, summary.as_json())
"""

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any, TypedDict

from sami.evaluation import health, information
from sami.evaluation.bootstrap import Estimate, mean_by_query
from sami.evaluation.health import Health
from sami.evaluation.information import ContrastScores, PolicyScores
from sami.evaluation.pairs import Policy
from sami.loop import summary_text
from sami.loop.directory import RunDirectory
from sami.loop.results import (
    Comparison,
    ContrastCounts,
    Gains,
    HealthResult,
    InformationResult,
    PolicyResult,
    PrincipleResult,
    Summary,
    TrainingResult,
    VerifierRates,
)
from sami.loop.standing import Standing, standing
from sami.principles import Principle
from sami.recipe import Recipe
from sami.text.words import word_count

LIBRARIES = ("sami", "torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")


class Sampling(TypedDict):
    """How bootstrap intervals are drawn."""

    samples: int
    seed: int


@dataclass(frozen=True)
class Evaluated:
    """What the run's files say about one policy."""

    name: str
    iteration: int
    scores: PolicyScores
    verdicts: list[dict[str, Any]]
    health: Health


def sampling_of(recipe: Recipe) -> Sampling:
    return {"samples": recipe.evaluation.bootstrap_samples, "seed": recipe.evaluation.seed}


def summarize(
    directory: RunDirectory,
    recipe: Recipe,
    principles: Sequence[Principle],
    policies: Sequence[str],
    *,
    baselines: Sequence[Policy] = (),
    judged: dict[str, Any] | None = None,
) -> Summary:
    """The summary of a run.

    Args:
        policies: names of the evaluated policies in order, base first.
        baselines: responses of policies that the run did not train.
        judged: `win_rates`, `agreement` and `judges` as `sami.evaluation.comparison.judge_all` returns them; None
            before judges were asked, in which case the summary has no verdict yet.
    """
    sampling = sampling_of(recipe)
    evaluated: list[Evaluated] = []
    for number, name in enumerate(policies):
        evaluated.append(_read(directory, name, number, evaluated[0].health if evaluated else None, recipe))
    trained = range(1, len(policies))
    results = [_policy(one, principles, sampling) for one in evaluated]
    summary = Summary(
        policies=[*results, *(_baseline(one, principles, sampling) for one in baselines)],
        comparisons=[compare(one, evaluated[0], sampling) for one in evaluated[1:]],
        contrasts={
            f"iteration-{n}": ContrastCounts(**record["result"])
            for n in trained
            if (record := directory.record(f"generate-{n}")) is not None
        },
        training={
            f"iteration-{n}": TrainingResult(**record["result"])
            for n in trained
            if (record := directory.record(f"train-{n}")) is not None
        },
        shared_prefix=_shares_prefix(directory),
        model=recipe.model.source if recipe.model.source.startswith("pypi:") else recipe.model.source.split("/")[-1],
        timings=_timings(directory, policies),
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    )
    return summary if judged is None else _judged(summary, judged, directory)


def compare(policy: Evaluated, base: Evaluated, sampling: Sampling) -> Comparison:
    """Paired differences of a policy from base with their intervals, and whether they support it."""
    learned, held_out = (_gains(policy, base, wanted, sampling) for wanted in (True, False))
    found = Standing(policy.name, base.name, policy.health.failures, learned.base_bound)
    return Comparison(
        policy=policy.name,
        against=base.name,
        learned=learned,
        held_out=held_out,
        healthy=found.is_healthy,
        better=found.is_supported,
        reason=summary_text.reason(found),
    )


def _judged(summary: Summary, judged: dict[str, Any], directory: RunDirectory) -> Summary:
    """The summary with what judges add: win rates, and the verdict that takes them into account."""
    values = summary.as_json() | judged
    records = {one.name: directory.record(f"respond-{one.name}") or {} for one in summary.policies}
    results = {name: record.get("result", {}) for name, record in records.items()}
    if unsplit := {name: result["unsplit"] for name, result in results.items() if "unsplit" in result}:
        values["unsplit"] = unsplit
    complete = Summary.model_validate(values)
    found = standing(complete, complete.comparisons[-1].policy) if complete.comparisons else None
    if found is not None:
        complete.verdict = summary_text.verdict(found)
    return complete


def _gains(policy: Evaluated, base: Evaluated, learned: bool, sampling: Sampling) -> Gains:
    after, before = (one.scores.where(lambda s: s.learned == learned) for one in (policy, base))

    def gain(bounds: Callable[[Sequence[ContrastScores]], dict[str, float]], scorer: str) -> Estimate:
        scores = getattr(after, scorer)
        return information.gain(bounds(scores), bounds(getattr(before, scorer)), scores, **sampling)

    return Gains(
        bound=gain(information.bounds_by_policy, "policy"),
        base_bound=gain(information.bounds_under_base, "base"),
        verifier_rate=_verifier_gain(policy.verdicts, base.verdicts, learned, sampling),
    )


def _verifier_gain(
    after: list[dict[str, Any]], before: list[dict[str, Any]], learned: bool, sampling: Sampling
) -> Estimate:
    """In percentage points. Both policies answered the same queries under the same constitutions: verdicts pair up."""
    then = {_verdict_key(v): v["passed"] for v in before}
    pairs = [v for v in after if v["learned"] == learned and _verdict_key(v) in then]
    differences = [100.0 * (v["passed"] - then[_verdict_key(v)]) for v in pairs]
    return mean_by_query(differences, [v["query"] for v in pairs], **sampling)


def _verdict_key(verdict: dict[str, Any]) -> tuple[Any, ...]:
    return verdict["contrast"], verdict["constitution"], verdict["principle"]


def _policy(one: Evaluated, principles: Sequence[Principle], sampling: Sampling) -> PolicyResult:
    learned, held_out = (_information(one.scores.where(lambda s, w=w: s.learned == w), sampling) for w in (True, False))  # type: ignore[misc]
    return PolicyResult(
        name=one.name,
        iteration=one.iteration,
        information=learned,
        information_held_out=held_out,
        verifier=_verifier_rates(one.verdicts, sampling),
        principles={p.id: _principle(one, p, sampling) for p in principles},
        health=HealthResult(**one.health.as_json()),
    )


def _baseline(policy: Policy, principles: Sequence[Principle], sampling: Sampling) -> PolicyResult:
    """The result of a policy that the run did not train: what can be measured on its text alone."""
    known = {p.id: p for p in principles}
    verdicts = [
        {"query": item.query, "learned": not known[name].held_out, "principle": name, "passed": passed}
        for item, response in policy.responses.items()
        for name, positive in item.principles or ()
        if (passed := known[name].follows(response.text, positive)) is not None
    ]

    def rate(principle: Principle) -> float | None:
        return _rate([v for v in verdicts if v["principle"] == principle.id], sampling).value

    nothing = _information(PolicyScores([], []), sampling)
    words = [word_count(response.text) for response in policy.responses.values()]
    return PolicyResult(
        name=policy.name,
        iteration=None,
        information=nothing,
        information_held_out=nothing,
        verifier=_verifier_rates(verdicts, sampling),
        principles={
            p.id: PrincipleResult(learned=not p.held_out, bound=None, verifier_rate=rate(p)) for p in principles
        },
        health=HealthResult(responses=len(words), words=sum(words) / len(words), failures=[]),
    )


def _information(scores: PolicyScores, sampling: Sampling) -> InformationResult:
    return InformationResult(**information.summarize(scores, **sampling).as_json())


def _verifier_rates(verdicts: list[dict[str, Any]], sampling: Sampling) -> VerifierRates:
    learned, held_out = (_rate([v for v in verdicts if v["learned"] == wanted], sampling) for wanted in (True, False))
    return VerifierRates(learned=learned, held_out=held_out)


def _rate(verdicts: list[dict[str, Any]], sampling: Sampling) -> Estimate:
    """Share of verdicts that passed, as a fraction."""
    return mean_by_query([float(v["passed"]) for v in verdicts], [v["query"] for v in verdicts], **sampling)


def _principle(one: Evaluated, principle: Principle, sampling: Sampling) -> PrincipleResult:
    verdicts = [v for v in one.verdicts if v["principle"] == principle.id]
    figures = information.summarize(one.scores.where(lambda s: principle.id in s.principles), **sampling)
    rate = _rate(verdicts, sampling)
    return PrincipleResult(
        learned=not principle.held_out,
        bound=figures.bound.value,
        base_bound=figures.base_bound.value,
        column_accuracy=figures.column_accuracy,
        contrasts=figures.bound.n,
        verifier_rate=rate.value,
        verifier_low=rate.low,
        verifier_high=rate.high,
        verifier_rate_definition=_rate([v for v in verdicts if v["positive"]], sampling).value,
        verifier_rate_antithesis=_rate([v for v in verdicts if not v["positive"]], sampling).value,
        verdicts=rate.n,
    )


def _read(directory: RunDirectory, name: str, iteration: int, base: Health | None, recipe: Recipe) -> Evaluated:
    raw = json.loads(directory.scores(name).read_text(encoding="utf-8"))
    known = {f.name for f in fields(Health)} - {"words_ratio", "failures"}
    figures = {key: value for key, value in raw["health"].items() if key in known}
    own = Health(**figures, words_ratio=figures["words"] / base.words if base and base.words else 1.0)
    if base is not None:
        own = replace(own, failures=health.check(own, base, recipe.health))
    scores = PolicyScores(*([ContrastScores(**s) for s in raw[scorer]] for scorer in ("policy", "base")))
    return Evaluated(name, iteration, scores, raw["verdicts"], own)


def _shares_prefix(directory: RunDirectory) -> bool:
    """Whether responses were scored in shared rows: the recipe asks for it, and it is exact on this model."""
    record = directory.record("packing")
    return bool(record and record["result"]["shared"])


def _timings(directory: RunDirectory, policies: Sequence[str]) -> dict[str, float]:
    steps = [f"{kind}-{name}" for name in policies for kind in ("respond", "score")]
    steps += [f"{kind}-{n}" for n in range(1, len(policies)) for kind in ("generate", "train")]
    return {step: record["seconds"] for step in steps if (record := directory.record(step)) is not None}
