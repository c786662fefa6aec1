"""The verdict of a run and the standing of each policy, as a page words them."""

from dataclasses import dataclass

from sami.loop.results import PolicyResult
from sami.loop.standing import standing
from sami.report.run_files import RunFiles
from sami.wording import NONE


@dataclass(frozen=True)
class Verdict:
    standing: str
    """better, not-better, unhealthy or none."""
    headline: str
    sentence: str
    source: str


def verdict(run: RunFiles) -> Verdict:
    """Whether the last iteration is better than base. One that breaks a health limit never is."""
    comparisons = run.summary.comparisons
    found = standing(run.summary, comparisons[-1].policy) if comparisons else None
    if found is None:
        return Verdict(
            "none",
            "No verdict yet",
            "No iteration is evaluated, so there is nothing to compare with base.",
            "evaluation/scores",
        )
    source = "summary.json: verdict" if run.summary.verdict else "summary.json: comparisons[].reason"
    if not found.is_healthy:
        kind, headline = "unhealthy", f"{found.policy} is not called better than base: it breaks a health limit"
    elif found.is_better:
        kind, headline = "better", f"{found.policy} is better than base on the principles it learned"
    else:
        kind, headline = "not-better", f"{found.policy} is not called better than base"
    if not run.is_summary_stored:
        headline, source = f"So far: {headline}", "evaluation/scores, summarized as summary.json would be"
    return Verdict(kind, headline, run.summary.last_verdict, source)


def standing_in_words(run: RunFiles, policy: PolicyResult) -> str:
    """The standing of a policy in a word or two, for tables."""
    if policy.iteration == 0:
        return "the reference"
    if policy.iteration is None:
        return "baseline"
    if policy.health.failures:
        return "not called better: unhealthy"
    found = standing(run.summary, policy.name)
    if found is None:
        return NONE
    return "better than base" if found.is_better else "not called better"
