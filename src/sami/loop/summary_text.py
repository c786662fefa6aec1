"""A run's summary in words: the verdict, the table that ends a run, and the lines around it."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from sami.loop.results import Comparison, PolicyLengths, PolicyResult, Scope, Summary
from sami.loop.standing import Judgment, Standing
from sami.wording import NONE, difference, estimate, interval, number, share, signed

SCOPES: tuple[tuple[Scope, str], ...] = (("learned", "learned"), ("held_out", "held-out"))


# The verdict.


def reason(found: Standing) -> str:
    """Whether a policy is better than base by the frozen base model and health alone, in a sentence."""
    call = "is better than base" if found.is_supported else "is not called better"
    return f"{found.policy} {call}: {_evidence(found)}."


def verdict(found: Standing) -> str:
    """Whether a policy is better than base in a sentence, with the figures of every judge."""
    judged = [_said(one) for one in found.judgments]
    if found.is_better:
        by = "".join(f", by {text}" for text in judged)
        return f"{found.policy} is better than {found.against}{by}: {_evidence(found)}."
    causes = ["a judge's interval reaches 50 %"] if found.is_supported else []
    return (
        f"{found.policy} is not called better than {found.against}: {'; '.join([*causes, _evidence(found), *judged])}."
    )


def _evidence(found: Standing) -> str:
    if found.failures:
        return "; ".join(found.failures)
    if found.gain.value is None:
        return "no contrast could be scored under the frozen base model"
    gain = difference(found.gain, 3, "nats")
    if found.is_supported:
        return f"the frozen base model finds {gain}, and health limits hold"
    return f"under the frozen base model the gain is {gain}"


def _said(one: Judgment) -> str:
    gain = one.rate.above_half
    if gain.low is None:
        return f"no figure of {one.judge} with an interval ({_worth(one)})"
    kind = "length-controlled" if one.is_length_controlled else "raw"
    return (
        f"{signed(gain.value, 1)} points of {kind} win rate, interval "
        f"{interval(gain.low, gain.high, 1, is_signed=True)}, n {one.queries} queries ({one.judge}, {_worth(one)})"
    )


def _worth(one: Judgment) -> str:
    accuracy = one.accuracy
    if accuracy is None:
        return "whose checks define the answer" if one.judge == "verifier" else "not calibrated"
    if accuracy.accuracy is None or accuracy.low is None:
        return "not above chance, because too few pairs with a known answer were scored"
    known = f"judge accuracy {accuracy.accuracy:.0f} % {interval(accuracy.low, accuracy.high, 0)}"
    return known if accuracy.above_chance else f"{known}, not above chance"


# The end of a run on a terminal.


def headline(policy: PolicyResult) -> str:
    """One policy in a line, for the log of a run."""
    info = policy.information
    return (
        f"{policy.name}: bound {number(info.bound)} nats, {number(info.base_bound)} under the frozen base, "
        f"verifiers {share(policy.verifier.learned)}, {policy.health.words:.0f} words"
    )


def table(summary: Summary) -> Table:
    """One row for each policy: bound, bound under the frozen base, verifier rates, length and health."""
    shown = Table(title="Held-out queries; bounds in nats, 95 % intervals over queries", title_justify="left")
    for column in ("policy", "bound", "under frozen base", "verifier learned", "held out", "words", "health"):
        left = column in ("policy", "health")
        shown.add_column(column, justify="left" if left else "right", no_wrap=left)
    for policy in summary.policies:
        shown.add_row(
            policy.name,
            estimate(policy.information.own),
            estimate(policy.information.frozen),
            share(policy.verifier.learned),
            share(policy.verifier.held_out),
            f"{policy.health.words:.0f}",
            _health(policy),
        )
    return shown


def _health(policy: PolicyResult) -> str:
    if policy.iteration is None:
        return NONE
    if policy.iteration == 0:
        return "base"
    return "FAILS" if policy.health.failures else "ok"


def sentences(summary: Summary) -> list[str]:
    """What the last iteration gained over base, figure by figure, and the verdict."""
    if not summary.comparisons or summary.base is None:
        return ["No iteration is trained yet."]
    last = summary.comparisons[-1]
    return [*_gains(last, summary.base, summary.policy(last.policy)), summary.last_verdict]


def _gains(comparison: Comparison, before: PolicyResult, after: PolicyResult) -> Iterator[str]:
    for scope, label in SCOPES:
        gains = comparison.gains(scope)
        start, end = before.information_on(scope).bound, after.information_on(scope).bound
        if gains.bound.value is None or start is None or end is None:
            continue
        ratio = f" ({end / start:.2f} x base)" if start > 0 else ""
        frozen = "not scored" if gains.base_bound.value is None else difference(gains.base_bound, 3, "nats")
        checks = gains.verifier_rate
        verifiers = "" if checks.value is None else f"; verifiers {difference(checks, 1, 'points')}"
        yield (
            f"{label} principles, {comparison.policy} against base: bound {difference(gains.bound, 3, 'nats')}{ratio}; "
            f"under the frozen base {frozen}{verifiers}"
        )


def length_table(lengths: Sequence[PolicyLengths]) -> Table:
    """Mean length of each policy's responses, and its ratio to the first policy's."""
    shown = Table(title="Length of responses", title_justify="left")
    for column in ("policy", "responses", "words", "of the first", "tokens", "characters"):
        shown.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for row in lengths:
        ratio = row.words / lengths[0].words if lengths[0].words else 1.0
        figures = (f"{row.words:.1f}", f"{ratio:.2f}", f"{row.tokens:.1f}", f"{row.chars:.0f}")
        shown.add_row(row.policy, str(row.responses), *figures)
    return shown
