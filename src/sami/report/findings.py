"""The verdict, the figures behind it, and the warnings, as a page words them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from sami.evaluation import health as health_checks
from sami.evaluation.health import Health
from sami.evaluation.win_rate_table import FEW_QUERIES, warnings
from sami.loop.judged_summary import called_better
from sami.recipe import Health as HealthLimits
from sami.report.answers import examples
from sami.report.run_files import RunFiles
from sami.wording import NONE, interval, number, rate, reading, signed

_LENGTH_DRIFT = 1.25  # times base's length, or base's times a policy's, that is worth a word
_OPENING_SHARE = 20.0  # percent of answers with the same first words


@dataclass(frozen=True)
class Verdict:
    standing: str
    """better, not-better, unhealthy or none."""
    headline: str
    sentence: str
    source: str


@dataclass(frozen=True)
class Strip:
    """Where an interval lies between the ends of its scale, in percent of the width."""

    zero: float
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Tile:
    """One of the numbers behind a verdict."""

    label: str
    value: str
    unit: str
    interval: str
    n: str
    change: str
    """From what to what."""
    reading: str
    source: str
    strip: Strip | None = None


@dataclass(frozen=True)
class Warning:
    title: str
    text: str
    is_failure: bool
    examples: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def verdict(run: RunFiles) -> Verdict:
    """Whether the last iteration is better than base. One that breaks a health limit never is."""
    comparisons = run.summary.get("comparisons") or []
    if not comparisons:
        return Verdict(
            "none",
            "No verdict yet",
            "No iteration is evaluated, so there is nothing to compare with base.",
            "evaluation/scores",
        )
    last = comparisons[-1]
    name = last["policy"]
    policy = next(p for p in run.policies if p["name"] == name)
    failures = policy["health"]["failures"]
    is_better = called_better(last, run.summary.get("win_rates") or []) and not failures
    sentence = run.summary.get("verdict") or last["reason"]
    source = "summary.json: verdict" if "verdict" in run.summary else "summary.json: comparisons[].reason"
    if failures:
        headline = f"{name} is not called better than base: it breaks a health limit"
    elif is_better:
        headline = f"{name} is better than base on the principles it learned"
    else:
        headline = f"{name} is not called better than base"
    if not run.is_summary_stored:
        headline, source = f"So far: {headline}", "evaluation/scores, summed up as summary.json would"
    return Verdict("better" if is_better else "unhealthy" if failures else "not-better", headline, sentence, source)


def standing(run: RunFiles, policy: dict[str, Any]) -> str:
    """In a word or two, what is said of a policy."""
    if policy["iteration"] == 0:
        return "the reference"
    if policy["iteration"] is None:
        return "baseline"
    if policy["health"]["failures"]:
        return "not called better: unhealthy"
    own = [c for c in run.summary.get("comparisons") or [] if c["policy"] == policy["name"]]
    if not own:
        return NONE
    return "better than base" if called_better(own[-1], run.summary.get("win_rates") or []) else "not called better"


def tiles(run: RunFiles) -> list[Tile]:
    """The five numbers behind the verdict; none where no iteration is evaluated."""
    base, last = run.base, run.last
    comparisons = run.summary.get("comparisons") or []
    if base is None or last is None or not comparisons:
        return []
    change = comparisons[-1]
    return [
        _information(
            change["learned"]["base_bound"],
            (base["information"]["base_bound"], last["information"]["base_bound"]),
            "Information under the frozen base",
            "comparisons[].learned.base_bound",
        ),
        _win_rate(run, last["name"]),
        _checks(change["learned"]["verifier_rate"], base, last),
        _information(
            change["held_out"]["base_bound"],
            (base["information_held_out"]["base_bound"], last["information_held_out"]["base_bound"]),
            "Held-out principles, frozen base",
            "comparisons[].held_out.base_bound",
        ),
        _own_bound(run, change["learned"]["bound"], base, last),
    ]


def _information(estimate: dict[str, Any], ends: tuple[float | None, float | None], label: str, source: str) -> Tile:
    return Tile(
        label,
        signed(estimate["value"]),
        "nats",
        interval(estimate["low"], estimate["high"], is_signed=True),
        f"{estimate['n']} contrasts",
        f"{number(ends[0])} → {number(ends[1])}" if estimate["value"] is not None else "",
        reading(estimate),
        source,
        _strip(estimate["value"], estimate["low"], estimate["high"]),
    )


def _own_bound(run: RunFiles, estimate: dict[str, Any], base: dict[str, Any], last: dict[str, Any]) -> Tile:
    tile = _information(
        estimate,
        (base["information"]["bound"], last["information"]["bound"]),
        "Bound by the policy itself",
        "comparisons[].learned.bound",
    )
    cap = math.log(run.recipe.get("sampling", {}).get("constitutions", 2))
    return Tile(
        **{
            **{f.name: getattr(tile, f.name) for f in fields(tile)},
            "reading": f"cap {cap:.3f}; code words can raise it, so no evidence alone",
        }
    )


def _win_rate(run: RunFiles, name: str) -> Tile:
    label = "Win rate against base, equal length"
    cell = decisive_cell(run.summary.get("win_rates") or [], name, "base")
    if cell is None:
        return Tile(label, NONE, "", "", "", "", "no judge was asked", "win_rates")
    shown = cell["length_controlled"]
    centred = {key: None if shown[k] is None else shown[k] - 50 for key, k in _AS_ESTIMATE}
    judge = cell["judge"]
    return Tile(
        label,
        number(shown["rate"], 1),
        "%",
        interval(shown["low"], shown["high"], 1),
        f"{cell['queries']} queries",
        f"length-controlled; raw {rate(cell['raw'])}",
        f"{reading(centred)}; by {judge}" + (", the principles' own checks" if judge == "verifier" else ""),
        "win_rates[].length_controlled",
        _strip(centred["value"], centred["low"], centred["high"]),
    )


_AS_ESTIMATE = (("value", "rate"), ("low", "low"), ("high", "high"))


def decisive_cell(cells: Sequence[dict[str, Any]], candidate: str, baseline: str) -> dict[str, Any] | None:
    """The first judge's cell on learned principles, or on all where nothing is known of them."""
    own = [c for c in cells if (c["candidate"], c["baseline"]) == (candidate, baseline)]
    return next((c for c in own if c["scope"] == "learned"), next((c for c in own if c["scope"] == "all"), None))


def _checks(estimate: dict[str, Any], base: dict[str, Any], last: dict[str, Any]) -> Tile:
    before, after = base["verifier"]["learned"]["value"], last["verifier"]["learned"]["value"]
    is_measured = estimate["value"] is not None and before is not None and after is not None
    return Tile(
        "Principles' own checks passed",
        signed(estimate["value"], 1),
        "points",
        interval(estimate["low"], estimate["high"], 1, is_signed=True),
        f"{estimate['n']} answers",
        f"{100 * before:.0f} % → {100 * after:.0f} %" if is_measured else "",
        reading(estimate) if is_measured else "no learned principle has a check",
        "comparisons[].learned.verifier_rate",
        _strip(estimate["value"], estimate["low"], estimate["high"]),
    )


def _strip(value: float | None, low: float | None, high: float | None) -> Strip | None:
    if value is None or low is None or high is None:
        return None
    left, right = min(0.0, low), max(0.0, high)
    room = 0.12 * (right - left) or 1.0
    left, right = left - room, right + room

    def place(x: float) -> float:
        return round(100 * (x - left) / (right - left), 2)

    return Strip(place(0), place(low), place(value), place(high))


def health_warnings(run: RunFiles) -> list[Warning]:
    """Broken limits with examples first, then what else a reader should know before trusting a figure."""
    base, last = run.base, run.last
    found = [warning for policy in run.trained for warning in _broken(run, policy)]
    if base is not None:
        found += _cut_off(run, base)
        for policy in run.trained:
            found += _drifts(policy, base)
    if last is not None:
        found += _unshown(run)
    rates = run.summary.get("win_rates") or []
    if said := warnings(rates):
        found.append(Warning("Win rates to read with care", "", False, lines=said))
    for judge in run.summary.get("judges") or []:
        calibration = judge.get("calibration")
        if calibration and not calibration.get("above_chance", True):
            found.append(
                Warning(
                    "A judge at chance",
                    f"{judge['judge']} {_accuracy(calibration)}. Its win rates say nothing and did not decide.",
                    False,
                )
            )
    if ".gguf" in str(run.summary.get("model", "")):
        found.append(
            Warning(
                "Weights from a quantised file",
                "The model was read from a GGUF file, so base is somewhat weaker than the released model.",
                False,
            )
        )
    return found


def _broken(run: RunFiles, policy: dict[str, Any]) -> list[Warning]:
    names = _names_of_failures(run, policy)
    found = []
    for failure in policy["health"]["failures"]:
        shown = examples(run, policy["name"], names[failure]) if failure in names else []
        unseen = "" if shown else " The run keeps no figure of this for single answers: read some under Answers."
        found.append(
            Warning(
                f"{policy['name']} breaks a health limit",
                f"{_sentence(failure)} So it is not called better, whatever its other figures.{unseen}",
                True,
                shown,
            )
        )
    return found


def _names_of_failures(run: RunFiles, policy: dict[str, Any]) -> dict[str, str]:
    """The figure behind each sentence about a broken limit, found by checking the limits again."""
    known = [f.name for f in fields(Health) if f.name != "failures"]
    base = run.base
    try:
        limits = HealthLimits.model_validate(run.recipe.get("health", {}))
        own, reference = (Health(**{k: p["health"][k] for k in known}) for p in (policy, base or policy))
    except (KeyError, ValidationError):  # a run of another version of sami
        return {}
    return {sentence: name for name, sentence in health_checks.broken(own, reference, limits).items()}


def _cut_off(run: RunFiles, base: dict[str, Any]) -> list[Warning]:
    share = base["health"].get("unfinished", 0.0)
    if share < 50:
        return []
    limit = run.recipe.get("generation", {}).get("max_new_tokens", "?")
    return [
        Warning(
            "Most answers are cut off",
            f"{share:.0f} % of base's answers end at the limit of {limit} tokens. All figures are about these first "
            f"{limit} tokens; raise generation.max_new_tokens to learn about whole answers.",
            False,
        )
    ]


def _drifts(policy: dict[str, Any], base: dict[str, Any]) -> list[Warning]:
    own, before, name = policy["health"], base["health"], policy["name"]
    found = []
    ratio = own["words_ratio"]
    if not 1 / _LENGTH_DRIFT <= ratio <= _LENGTH_DRIFT:
        direction = "longer" if ratio > 1 else "shorter"
        found.append(
            Warning(
                f"{name} answers at another length",
                f"Its answers are {direction}: {own['words']:.1f} words on average, {before['words']:.1f} for base "
                f"({ratio:.2f} times). Compare by length-controlled win rates.",
                False,
            )
        )
    if own["opening_share"] >= _OPENING_SHARE:
        found.append(
            Warning(
                f"{name} opens many answers alike",
                f"{own['opening_share']:.0f} % of its answers start with “{own['opening']}”; base's commonest opening "
                f"stands in {before['opening_share']:.0f} %.",
                False,
            )
        )
    return found


def _unshown(run: RunFiles) -> list[Warning]:
    last = (run.summary.get("comparisons") or [])[-1:]
    found = []
    for comparison in last:
        estimate = comparison["held_out"]["base_bound"]
        if estimate["value"] is not None and not (estimate["low"] is not None and estimate["low"] > 0):
            found.append(
                Warning(
                    "No gain shown on held-out principles",
                    f"{comparison['policy']} against base on principles that were never trained on: "
                    f"{signed(estimate['value'])} nats "
                    f"{interval(estimate['low'], estimate['high'], is_signed=True)}, n {estimate['n']}.",
                    False,
                )
            )
    queries = {c.query for contrasts in run.responses.values() for c in contrasts}
    if queries and len(queries) < FEW_QUERIES:
        found.append(
            Warning(
                "Few held-out queries",
                f"Everything here rests on {len(queries)} queries, so intervals are wide. queries.evaluation sets how "
                "many there are.",
                False,
            )
        )
    return found


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


HEALTH_FIGURES: Sequence[tuple[str, str, str, int]] = (
    # key, label, limit's key in the recipe, digits
    ("words", "words in an answer", "", 1),
    ("loops", "repeat themselves, %", "loops", 1),
    ("leakage", "copy from the constitution, %", "leakage", 1),
    ("unfinished", "cut off, %", "unfinished", 1),
    ("template_leftovers", "template markers, %", "template_leftovers", 1),
    ("distinct_2", "distinct word pairs", "distinct_2_ratio", 3),
    ("base_logprob", "log-prob under base, nats per token", "base_logprob_drop", 2),
    ("relevance", "relevance to the query, nats per token", "relevance_ratio", 2),
    ("forgetting", "forgetting, KL in nats per token", "", 3),
    ("opening_share", "share of the commonest opening, %", "", 1),
)


def health_table(run: RunFiles) -> tuple[list[str], list[list[str]]]:
    """Health figures by policy, with the recipe's limit where there is one."""
    limits = run.recipe.get("health", {})

    def limit(key: str) -> str:
        if not key or key not in limits:
            return NONE
        if key.endswith("_ratio"):
            return f"at least {limits[key]:g} × base"
        return f"drop of at most {limits[key]:g}" if key.endswith("_drop") else f"base + {limits[key]:g}"

    measured = [p for p in run.policies if p["iteration"] is not None]
    rows = [
        [label, *(number(p["health"].get(key), digits) for p in measured), limit(limit_key)]
        for key, label, limit_key, digits in HEALTH_FIGURES
    ]
    return ["", *(p["name"] for p in measured), "limit"], rows


def _accuracy(calibration: Mapping[str, Any]) -> str:
    if calibration["accuracy"] is None:
        return "gave no verdict that could be read on pairs with a known answer"
    return f"was right on {calibration['accuracy']:.0f} % of pairs with a known answer, no more than chance"
