"""Whether a policy is better than base: decided here, for the terminal, summary.json, cards and reports alike.

It is, if the frozen base model finds more information in its responses, no health limit is broken, and no judge
speaks against it. Its own bound does not count: code words can raise that.
"""

from dataclasses import dataclass

from sami.evaluation.bootstrap import Estimate
from sami.loop.results import Accuracy, Rate, Summary, WinRate


@dataclass(frozen=True)
class Judgment:
    """What one judge's win rate says about a policy."""

    judge: str
    is_length_controlled: bool
    """Whether `rate` is corrected for length; the raw rate stands in where no such interval exists."""
    rate: Rate
    queries: int
    accuracy: Accuracy | None
    """None for a judge that needs no calibration, or has none."""

    @property
    def counts(self) -> bool:
        """False for a judge that was used although it is not above chance: it is shown and decides nothing."""
        return self.accuracy is None or self.accuracy.above_chance

    @property
    def speaks_against(self) -> bool:
        """Whether the interval reaches 50 %, or there is none, as with a single query."""
        if self.rate.low is None:
            return True
        return self.counts and self.rate.low <= 50


@dataclass(frozen=True)
class Standing:
    """The facts that decide whether `policy` is better than `against`."""

    policy: str
    against: str
    failures: tuple[str, ...]
    """The health limits that the policy breaks, in words."""
    gain: Estimate
    """Information gained under the frozen base model on learned principles, in nats."""
    judgments: tuple[Judgment, ...] = ()

    @property
    def is_healthy(self) -> bool:
        return not self.failures

    @property
    def is_supported(self) -> bool:
        """Whether it is healthy and gains information under the frozen base model, whatever judges say."""
        return self.is_healthy and self.gain.above_zero

    @property
    def is_better(self) -> bool:
        return self.is_supported and not any(one.speaks_against for one in self.judgments)


def standing(summary: Summary, policy: str) -> Standing | None:
    """The standing of one of the run's iterations; None for a policy that was not compared with base."""
    comparison = summary.comparison(policy)
    if comparison is None:
        return None
    rates = summary.decisive_rates(policy, comparison.against)
    return Standing(
        policy,
        comparison.against,
        tuple(summary.policy(policy).health.failures),
        comparison.learned.base_bound,
        tuple(_judgment(one) for one in rates),
    )


def _judgment(cell: WinRate) -> Judgment:
    is_controlled = cell.length_controlled.low is not None
    rate = cell.length_controlled if is_controlled else cell.raw
    return Judgment(cell.judge, is_controlled, rate, cell.queries, cell.judge_accuracy)
