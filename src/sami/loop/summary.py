"""summary.json from the files of a run, and the table that ends it.

A policy is called better than base only if the frozen base model finds more information in its responses
and every health limit holds; its own bound alone is no evidence of behaviour.
"""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

from rich.table import Table

from sami.evaluation import health, information
from sami.evaluation.bootstrap import Estimate, mean_by_query
from sami.evaluation.health import Health
from sami.evaluation.information import ContrastScores, PolicyScores
from sami.loop.directory import RunDirectory
from sami.principles import Principle
from sami.recipe import Recipe

LIBRARIES = ("sami", "torch", "transformers", "accelerate", "datasets", "peft", "tokenizers", "numpy")


@dataclass(frozen=True)
class Evaluated:
    """What the run's files hold on one policy."""

    name: str
    iteration: int
    scores: PolicyScores
    verdicts: list[dict[str, Any]]
    health: Health


def summarise(
    directory: RunDirectory, recipe: Recipe, principles: Sequence[Principle], policies: Sequence[str]
) -> dict[str, Any]:
    """The value of summary.json.

    Args:
        policies: names in order, base first.
    """
    sampling = {"samples": recipe.evaluation.bootstrap_samples, "seed": recipe.evaluation.seed}
    evaluated: list[Evaluated] = []
    for number, name in enumerate(policies):
        evaluated.append(_read(directory, name, number, evaluated[0].health if evaluated else None, recipe))
    base = evaluated[0]
    return {
        "policies": [_policy(one, principles, sampling) for one in evaluated],
        "comparisons": [compare(one, base, sampling) for one in evaluated[1:]],
        "contrasts": {
            f"iteration-{n}": record["result"]
            for n in range(1, len(policies))
            if (record := directory.record(f"generate-{n}")) is not None
        },
        "training": {
            f"iteration-{n}": record["result"]
            for n in range(1, len(policies))
            if (record := directory.record(f"train-{n}")) is not None
        },
        "shared_prefix": _shares_prefix(directory),
        "model": recipe.model.source if recipe.model.source.startswith("pypi:") else recipe.model.source.split("/")[-1],
        "timings": _timings(directory, policies),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def compare(policy: Evaluated, base: Evaluated, sampling: dict[str, int]) -> dict[str, Any]:
    """Paired differences of a policy to base, with intervals, and whether it counts as better."""
    result: dict[str, Any] = {"policy": policy.name, "against": base.name}
    for scope, learned in (("learned", True), ("held_out", False)):
        after = policy.scores.where(lambda s, wanted=learned: s.learned == wanted)  # type: ignore[misc]
        before = base.scores.where(lambda s, wanted=learned: s.learned == wanted)  # type: ignore[misc]
        result[scope] = {
            "bound": asdict(_gain(information.bounds_by_policy, after.policy, before.policy, sampling)),
            "base_bound": asdict(_gain(information.bounds_under_base, after.base, before.base, sampling)),
            "verifier_rate": asdict(_verifier_gain(policy.verdicts, base.verdicts, learned, sampling)),
        }
    supported = Estimate(**result["learned"]["base_bound"])
    result["healthy"] = not policy.health.failures
    result["better"] = result["healthy"] and supported.above_zero
    result["reason"] = _reason(policy, supported)
    return result


def _reason(policy: Evaluated, supported: Estimate) -> str:
    if policy.health.failures:
        return f"{policy.name} is not called better: " + "; ".join(policy.health.failures) + "."
    if supported.value is None:
        return f"{policy.name} is not called better: no contrast could be scored under the frozen base model."
    figure = f"{supported.value:+.3f} nats [{supported.low:+.3f}, {supported.high:+.3f}], n {supported.n}"
    if supported.above_zero:
        return f"{policy.name} is better than base: the frozen base model finds {figure}, and health limits hold."
    return f"{policy.name} is not called better: under the frozen base model the gain is {figure}."


def _gain(bounds: Any, after: list[ContrastScores], before: list[ContrastScores], sampling: dict[str, int]) -> Estimate:
    return information.gain(bounds(after), bounds(before), after, **sampling)


def _verifier_gain(
    after: list[dict[str, Any]], before: list[dict[str, Any]], learned: bool, sampling: dict[str, int]
) -> Estimate:
    """In points. Both policies answered the same queries under the same constitutions, so verdicts pair up."""
    then = {_verdict_key(v): v["passed"] for v in before}
    pairs = [v for v in after if v["learned"] == learned and _verdict_key(v) in then]
    differences = [100.0 * (v["passed"] - then[_verdict_key(v)]) for v in pairs]
    return mean_by_query(differences, [v["query"] for v in pairs], **sampling)


def _verdict_key(verdict: dict[str, Any]) -> tuple[Any, ...]:
    return verdict["contrast"], verdict["constitution"], verdict["principle"]


def _policy(one: Evaluated, principles: Sequence[Principle], sampling: dict[str, int]) -> dict[str, Any]:
    def info(learned: bool) -> dict[str, Any]:
        return information.summarize(one.scores.where(lambda s: s.learned == learned), **sampling).as_json()

    return {
        "name": one.name,
        "iteration": one.iteration,
        "information": info(True),
        "information_held_out": info(False),
        "verifier": {
            scope: asdict(verifier_rate([v for v in one.verdicts if v["learned"] == learned], sampling))
            for scope, learned in (("learned", True), ("held_out", False))
        },
        "principles": {p.id: _principle(one, p, sampling) for p in principles},
        "health": one.health.as_json(),
    }


def verifier_rate(verdicts: list[dict[str, Any]], sampling: dict[str, int]) -> Estimate:
    """Share of passed verdicts, as a fraction."""
    return mean_by_query([float(v["passed"]) for v in verdicts], [v["query"] for v in verdicts], **sampling)


def _principle(one: Evaluated, principle: Principle, sampling: dict[str, int]) -> dict[str, Any]:
    scores = one.scores.where(lambda s: principle.id in s.principles)
    verdicts = [v for v in one.verdicts if v["principle"] == principle.id]
    figures = information.summarize(scores, **sampling)
    rate = verifier_rate(verdicts, sampling)
    return {
        "learned": not principle.held_out,
        "bound": figures.bound.value,
        "base_bound": figures.base_bound.value,
        "column_accuracy": figures.column_accuracy,
        "contrasts": figures.bound.n,
        "verifier_rate": rate.value,
        "verifier_low": rate.low,
        "verifier_high": rate.high,
        "verifier_rate_definition": verifier_rate([v for v in verdicts if v["positive"]], sampling).value,
        "verifier_rate_antithesis": verifier_rate([v for v in verdicts if not v["positive"]], sampling).value,
        "verdicts": rate.n,
    }


def _read(directory: RunDirectory, name: str, iteration: int, base: Health | None, recipe: Recipe) -> Evaluated:
    raw = json.loads(directory.scores(name).read_text(encoding="utf-8"))
    known = {f.name for f in fields(Health)} - {"words_ratio", "failures"}
    figures = {key: value for key, value in raw["health"].items() if key in known}
    own = Health(**figures, words_ratio=figures["words"] / base.words if base and base.words else 1.0)
    if base is not None:
        own = Health(**{**asdict(own), "failures": health.check(own, base, recipe.health)})
    scores = PolicyScores(*([ContrastScores(**s) for s in raw[scorer]] for scorer in ("policy", "base")))
    return Evaluated(name, iteration, scores, raw["verdicts"], own)


def _shares_prefix(directory: RunDirectory) -> bool:
    """Whether responses were scored in shared rows: asked for, and right on this model."""
    record = directory.record("packing")
    return bool(record and record["result"]["shared"])


def _timings(directory: RunDirectory, policies: Sequence[str]) -> dict[str, float]:
    steps = [f"{kind}-{name}" for name in policies for kind in ("respond", "score")]
    steps += [f"{kind}-{n}" for n in range(1, len(policies)) for kind in ("generate", "train")]
    return {step: record["seconds"] for step in steps if (record := directory.record(step)) is not None}


def table(value: dict[str, Any]) -> Table:
    """Policy by (bound, bound under the frozen base, verifier rates, length, health)."""
    shown = Table(title="Held-out queries; bounds in nats, 95 % intervals over queries", title_justify="left")
    for column in ("policy", "bound", "under frozen base", "verifier learned", "held out", "words", "health"):
        left = column in ("policy", "health")
        shown.add_column(column, justify="left" if left else "right", no_wrap=left)
    for policy in value["policies"]:
        info, verifier, state = policy["information"], policy["verifier"], policy["health"]
        trained = "ok" if not state["failures"] else "FAILS"
        ill = {0: "base", None: "–"}.get(policy["iteration"], trained)
        shown.add_row(
            policy["name"],
            _interval(info["bound"], info["low"], info["high"]),
            _interval(info["base_bound"], info["base_low"], info["base_high"]),
            _rate(verifier["learned"]),
            _rate(verifier["held_out"]),
            f"{state['words']:.0f}",
            ill,
        )
    return shown


def headline(policy: dict[str, Any]) -> str:
    """One policy in a line, for the log of a run."""
    info, verifier = policy["information"], policy["verifier"]["learned"]
    return (
        f"{policy['name']}: bound {_number(info['bound'])} nats, {_number(info['base_bound'])} under the frozen base, "
        f"verifiers {_rate(verifier)}, {policy['health']['words']:.0f} words"
    )


def sentences(value: dict[str, Any]) -> list[str]:
    """What the last policy gained on base, figure by figure, and the verdict."""
    if not value["comparisons"]:
        return ["No iteration is trained yet."]
    last = value["comparisons"][-1]
    before = value["policies"][0]
    after = next(policy for policy in value["policies"] if policy["name"] == last["policy"])
    said = []
    for scope, key, label in (
        ("learned", "information", "learned"),
        ("held_out", "information_held_out", "held-out"),
    ):
        figures = last[scope]
        if figures["bound"]["value"] is None:
            continue
        ratio = after[key]["bound"] / before[key]["bound"] if before[key]["bound"] > 0 else None
        said.append(
            f"{label} principles, {last['policy']} against base: bound {_difference(figures['bound'], 3)} nats"
            + (f" ({ratio:.2f} x base)" if ratio else "")
            + f"; under the frozen base {_difference(figures['base_bound'], 3)} nats"
            + (
                f"; verifiers {_difference(figures['verifier_rate'], 1)} points"
                if figures["verifier_rate"]["value"] is not None
                else ""
            )
        )
    return [*said, value.get("verdict", last["reason"])]  # no verdict before judges were asked


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _rate(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    return f"{100 * estimate['value']:.0f} % [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def _difference(estimate: dict[str, Any], digits: int) -> str:
    if estimate["value"] is None:
        return "not scored"
    return (
        f"{estimate['value']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}] "
        f"(n {estimate['n']})"
    )
