"""What a reader should know before trusting a figure: broken health limits first, then everything that weakens it."""

from dataclasses import dataclass, field, fields
from itertools import zip_longest

from sami.evaluation import health as health_checks
from sami.evaluation.health import Health
from sami.evaluation.win_rate_table import FEW_QUERIES
from sami.evaluation.win_rate_table import warnings as win_rate_warnings
from sami.loop.results import Accuracy, HealthResult, PolicyResult
from sami.report.answers import examples
from sami.report.run_files import RunFiles
from sami.wording import difference

_LENGTH_DRIFT = 1.25  # ratio of mean lengths in either direction that is worth a warning
_OPENING_SHARE = 20.0  # percent of answers with the same first words
_CUT_OFF = 50.0  # percent of base's answers


@dataclass(frozen=True)
class Warning:
    title: str
    text: str
    is_failure: bool = False
    examples: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def warnings(run: RunFiles) -> list[Warning]:
    """Every warning that applies to the run."""
    base, found = run.base, []
    for policy in run.summary.trained:
        found += _broken(run, policy)
    if base is not None:
        found += _cut_off(run, base)
        for policy in run.summary.trained:
            found += [*_length_drift(policy, base), *_repeated_opening(policy, base)]
    if run.last is not None:
        found += [*_held_out(run), *_few_queries(run)]
    return found + _judges(run) + _quantized(run)


def _broken(run: RunFiles, policy: PolicyResult) -> list[Warning]:
    found = []
    for sentence, limit in zip_longest(policy.health.failures, _broken_limits(run, policy)):
        if sentence is None:
            continue
        shown = [] if limit is None else examples(run, policy.name, limit)
        unseen = "" if shown else " This figure is not recorded for single answers: read some under Answers."
        found.append(
            Warning(
                f"{policy.name} breaks a health limit",
                f"{_sentence(sentence)} It is therefore not called better, whatever its other figures.{unseen}",
                True,
                shown,
            )
        )
    return found


def _broken_limits(run: RunFiles, policy: PolicyResult) -> list[str]:
    """Names of the figures that break a limit, in the order of `failures`; empty where they cannot be checked."""
    own, reference = _health(policy.health), _health((run.base or policy).health)
    if own is None or reference is None or run.settings is None:
        return []
    names = list(health_checks.broken(own, reference, run.settings.health))
    return names if len(names) == len(policy.health.failures) else []


def _health(result: HealthResult) -> Health | None:
    figures = {f.name: getattr(result, f.name) for f in fields(Health) if f.name != "failures"}
    return None if None in figures.values() else Health(**figures)


def _cut_off(run: RunFiles, base: PolicyResult) -> list[Warning]:
    share = base.health.unfinished or 0.0
    if share < _CUT_OFF or run.settings is None:
        return []
    limit = run.settings.generation.max_new_tokens
    return [
        Warning(
            "Most answers are cut off",
            f"{share:.0f} % of base's answers end at the limit of {limit} tokens. All figures are about these first "
            f"{limit} tokens; raise generation.max_new_tokens to learn about whole answers.",
        )
    ]


def _length_drift(policy: PolicyResult, base: PolicyResult) -> list[Warning]:
    ratio = policy.health.words_ratio
    if 1 / _LENGTH_DRIFT <= ratio <= _LENGTH_DRIFT:
        return []
    direction = "longer" if ratio > 1 else "shorter"
    return [
        Warning(
            f"{policy.name} writes {direction} answers",
            f"Its answers have {policy.health.words:.1f} words on average, base's have {base.health.words:.1f} "
            f"({ratio:.2f} times). Compare by length-controlled win rates.",
        )
    ]


def _repeated_opening(policy: PolicyResult, base: PolicyResult) -> list[Warning]:
    share = policy.health.opening_share or 0.0
    if share < _OPENING_SHARE:
        return []
    return [
        Warning(
            f"{policy.name} begins many answers alike",
            f"{share:.0f} % of its answers start with “{policy.health.opening}”; base's most common opening starts "
            f"{base.health.opening_share or 0.0:.0f} %.",
        )
    ]


def _held_out(run: RunFiles) -> list[Warning]:
    if not run.summary.comparisons:
        return []
    last = run.summary.comparisons[-1]
    gain = last.held_out.base_bound
    if gain.value is None or gain.above_zero:
        return []
    return [
        Warning(
            "No gain shown on held-out principles",
            f"{last.policy} against base on principles that were never trained on: {difference(gain, 3, 'nats')}.",
        )
    ]


def _few_queries(run: RunFiles) -> list[Warning]:
    queries = {contrast.query for contrasts in run.responses.values() for contrast in contrasts}
    if not 0 < len(queries) < FEW_QUERIES:
        return []
    return [
        Warning(
            "Few held-out queries",
            f"All figures rest on {len(queries)} queries, so their intervals are wide. Raise queries.evaluation to "
            "evaluate on more.",
        )
    ]


def _judges(run: RunFiles) -> list[Warning]:
    found = []
    rates = run.summary.win_rates
    if lines := win_rate_warnings([one.as_json() for one in rates]):
        found.append(Warning("Win rates to read with care", "", lines=lines))
    calibrated = {one.judge: one.judge_accuracy for one in rates if one.judge_accuracy is not None}
    for judge, accuracy in calibrated.items():
        if not accuracy.above_chance:
            text = f"{judge} {_accuracy(accuracy)}. Its win rates are not evidence and did not decide."
            found.append(Warning("A judge at chance", text))
    return found


def _accuracy(found: Accuracy) -> str:
    if found.accuracy is None:
        return "gave no readable verdict on pairs with a known answer"
    return f"was right on {found.accuracy:.0f} % of pairs with a known answer, which is not above chance"


def _quantized(run: RunFiles) -> list[Warning]:
    if ".gguf" not in run.summary.model:
        return []
    text = "The model was read from a GGUF file, so base is somewhat weaker than the released model."
    return [Warning("Weights from a quantized file", text)]


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
