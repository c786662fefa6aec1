"""The accuracy of a judge, measured on pairs whose better response is known, before its win rates are used.

There are two kinds of pairs, both from the responses of one policy: a response that the principle's verifier passes
against a response to the antithesis that it fails, and a response to the query against a response to another query.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sami.evaluation.ask import ask
from sami.evaluation.bootstrap import Estimate, mean_by_query
from sami.evaluation.judges import Judge
from sami.evaluation.pairs import Item, Pair, Policy, Response
from sami.evaluation.verdicts import Verdict
from sami.principles import Principle

RIGHT = "right"
KINDS = ("wrong-principle", "wrong-query")


@dataclass(frozen=True)
class Calibration:
    """How often a judge is right on pairs with a known answer, among its scored verdicts. A tie counts half."""

    judge: str
    accuracy: Estimate
    """A fraction, with a 95 % interval over queries; n counts verdicts."""
    by_kind: dict[str, Estimate]
    """For each kind of wrong response."""
    position_lean: float | None
    """Percentage points by which the response shown first wins more often than half of the time."""
    length_lean: float | None
    """Percentage points by which the longer response wins more often than it is the right one."""
    unscored: int

    @property
    def above_chance(self) -> bool:
        return self.accuracy.low is not None and self.accuracy.low > 0.5

    def as_json(self) -> dict[str, Any]:
        """The value of `judge_accuracy` in a win rate; accuracies in percent."""
        kinds = {kind: _percent(estimate) for kind, estimate in self.by_kind.items()}
        return {
            **_percent(self.accuracy),
            "above_chance": self.above_chance,
            "by_kind": kinds,
            "position_lean": self.position_lean,
            "length_lean": self.length_lean,
            "unscored": self.unscored,
        }

    def sentence(self) -> str:
        """The figures in a sentence."""
        a = self.accuracy
        if a.value is None or a.low is None or a.high is None:
            return f"The judge {self.judge} scored none of the pairs with a known answer."
        kinds = "; ".join(
            f"{100 * e.value:.0f} % against a {kind.replace('-', ' ')} (n {e.n})"
            for kind, e in self.by_kind.items()
            if e.value is not None
        )
        return (
            f"The judge {self.judge} is right in {100 * a.value:.1f} % [{100 * a.low:.1f}, {100 * a.high:.1f}] of "
            f"{a.n} verdicts with a known answer ({kinds}); it leans {_points(self.position_lean)} to the first and "
            f"{_points(self.length_lean)} to the longer response"
            + ("." if self.above_chance else ": not above chance.")
        )


def known_pairs(policy: Policy, principles: Sequence[Principle], *, count: int, seed: int) -> list[Pair]:
    """Pairs with the right response as the candidate, half of each kind if there are enough.

    Args:
        policy: the policy whose responses are used.
        count: maximum number of pairs; there are fewer if the responses do not give more.
        seed: seed of the choice.
    """
    rng = random.Random(f"calibration, seed {seed}")
    kinds = [list(_wrong_principle(policy, {p.id: p for p in principles})), list(_wrong_query(policy, rng))]
    for pairs in kinds:
        rng.shuffle(pairs)
    first = kinds[0][: max(count // 2, count - len(kinds[1]))]
    return first + kinds[1][: count - len(first)]


def calibrate(judge: Judge, pairs: Sequence[Pair], file: Path, *, seed: int, samples: int) -> Calibration:
    """Ask the judge about pairs with a known answer, in both orders.

    Args:
        file: where the verdicts are kept; recorded verdicts are not asked for again.
    """
    verdicts = ask(judge, pairs, file, order="both", seed=seed, unscored_limit=100.0, label="calibration")
    return measured(judge.name, verdicts, seed=seed, samples=samples)


def measured(judge: str, verdicts: Sequence[Verdict], *, seed: int, samples: int) -> Calibration:
    """The figures of verdicts whose candidate is the right response."""
    scored = [(v, v.score) for v in verdicts if v.score is not None]

    def accuracy(chosen: Sequence[tuple[Verdict, float]]) -> Estimate:
        return mean_by_query([s for _, s in chosen], [v.query_id for v, _ in chosen], samples=samples, seed=seed)

    first = [s if v.order == "candidate_first" else 1 - s for v, s in scored]
    longer = []
    for v, s in scored:
        if v.candidate_chars != v.baseline_chars:
            right_is_longer = v.candidate_chars > v.baseline_chars
            longer.append((s if right_is_longer else 1 - s) - right_is_longer)
    return Calibration(
        judge=judge,
        accuracy=accuracy(scored),
        by_kind={kind: accuracy([one for one in scored if one[0].baseline == kind]) for kind in KINDS},
        position_lean=100 * (sum(first) / len(first) - 0.5) if first else None,
        length_lean=100 * sum(longer) / len(longer) if longer else None,
        unscored=len(verdicts) - len(scored),
    )


def _wrong_principle(policy: Policy, principles: dict[str, Principle]) -> Any:
    by_query: dict[str, list[tuple[Item, Response]]] = {}
    for item, response in policy.responses.items():
        by_query.setdefault(item.query_id, []).append((item, response))
    for answers in by_query.values():
        for item, response in answers:
            for other, wrong in answers:
                if _opposite(item, other) and _passes(item, response, principles) and _fails(item, wrong, principles):
                    yield Pair(item, RIGHT, KINDS[0], response, wrong)


def _wrong_query(policy: Policy, rng: random.Random) -> Any:
    by_constitution: dict[str, list[tuple[Item, Response]]] = {}
    for item, response in policy.responses.items():
        by_constitution.setdefault(item.constitution, []).append((item, response))
    for answers in by_constitution.values():
        for item, response in answers:
            others = [r for other, r in answers if other.query_id != item.query_id and r.text != response.text]
            if others:
                yield Pair(item, RIGHT, KINDS[1], response, rng.choice(others))


def _opposite(item: Item, other: Item) -> bool:
    """Whether the two constitutions contain the same principles with opposite polarities."""
    flipped = {(name, not positive) for name, positive in item.principles or ()}
    return bool(flipped) and flipped == set(other.principles or ())


def _passes(item: Item, response: Response, principles: dict[str, Principle]) -> bool:
    return all(principles[name].follows(response.text, positive) is True for name, positive in item.principles or ())


def _fails(item: Item, response: Response, principles: dict[str, Principle]) -> bool:
    return all(principles[name].follows(response.text, positive) is False for name, positive in item.principles or ())


def _percent(estimate: Estimate) -> dict[str, Any]:
    value = asdict(estimate)
    return {
        "accuracy": None if estimate.value is None else 100 * estimate.value,
        **{side: None if value[side] is None else 100 * value[side] for side in ("low", "high")},
        "n": estimate.n,
    }


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f} points"
