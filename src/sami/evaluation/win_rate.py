"""Win rates from verdicts: pure functions, all rates in percent.

There is one convention: a tie counts as half a win, and a judgement without a score does not count. The numbers of
both are reported with the rate. Intervals are 95 % percentile bootstraps over queries: the orders and constitutions
of a query are drawn together.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sami.errors import InputError, one_line
from sami.evaluation.bootstrap import CONFIDENCE, percentile_interval, resamples
from sami.evaluation.length_control import Judged, length_controlled_rates
from sami.evaluation.verdicts import Verdict

SCOPES = ("all", "learned", "held_out")
Slope = Literal["policy", "shared"]
Rate = dict[str, float | None]  # rate, low, high
Key = tuple[tuple[str, str, str], str]  # (candidate, baseline, judge), scope
UNDEFINED: Rate = {"rate": None, "low": None, "high": None}


def win_rates(
    verdicts: Sequence[Verdict],
    *,
    samples: int = 2000,
    seed: int = 0,
    slope: Slope = "policy",
    judge_accuracy: Mapping[str, dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """What `sami winrate --json` prints: one object for each candidate, baseline, judge and scope.

    Args:
        verdicts: verdicts of any number of comparisons.
        samples: number of bootstrap resamples.
        seed: seed of the resampling.
        slope: "policy" if each policy has its own effect of length, "shared" if all candidates that one judge compared
            with one baseline share it.
        judge_accuracy: calibration figures by judge, which are passed on.

    Returns:
        Objects in the order in which comparisons first appear, scope "all" first; "learned" and "held_out" cover the
        verdicts that have the field `learned`. `queries` counts queries with a score, `judgements` all judgements.
        `raw`, `stratified` (the mean over two strata: the candidate is longer, in tokens, or not) and
        `length_controlled` have rate, low and high. `strata_n` counts queries; lengths are means over pairs;
        `consistency` is the share of pairs whose two orders agree; `first_position_rate` is how often the response
        shown first wins, both orders weighted equally. Undefined figures are None, and so are the limits of a rate of
        a single query.

    Raises:
        InputError: there are no verdicts, or none with a score.
    """
    if not verdicts:
        raise InputError("There are no verdicts, so there is no win rate. Judge some pairs first, with `sami judge`.")
    if all(verdict.score is None for verdict in verdicts):
        reasons = sorted({one_line(verdict.reason) for verdict in verdicts if verdict.reason})[:3]
        raise InputError(
            f"None of the {len(verdicts)} judgements has a score, so there is no win rate. "
            + (f"The reasons are: {'; '.join(reasons)}." if reasons else "See `raw` for the judge's words.")
        )
    cells: dict[Key, list[Verdict]] = {}
    for verdict in verdicts:
        comparison = (verdict.candidate, verdict.baseline, verdict.judge)
        for scope in SCOPES:  # so that the scopes of a comparison come in this order
            cells.setdefault((comparison, scope), [])
        cells[comparison, "all"].append(verdict)
        if verdict.learned is not None:
            cells[comparison, "learned" if verdict.learned else "held_out"].append(verdict)
    cells = {key: cell for key, cell in cells.items() if cell}
    controlled = _length_controlled(cells, slope, samples=samples, seed=seed)
    return [
        {
            "candidate": candidate,
            "baseline": baseline,
            "judge": judge,
            "scope": scope,
            **_figures(cell, controlled.get(((candidate, baseline, judge), scope), UNDEFINED), samples, seed),
            "judge_accuracy": (judge_accuracy or {}).get(judge),
        }
        for ((candidate, baseline, judge), scope), cell in cells.items()
    ]


def agreement(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Cohen's kappa for every two judges over the pairs and orders that both scored, as win, tie or loss.

    Returns:
        `judges` (two names), `judgements` that both scored, `agreement` in percent, and `kappa`, which is None if
        chance alone would always agree.
    """
    said: dict[str, dict[tuple[Any, ...], int]] = defaultdict(dict)
    for v in verdicts:
        if v.score is not None:
            said[v.judge][v.candidate, v.baseline, *_pair(v), v.order] = _outcome(v.score)
    results = []
    for a, b in combinations(said, 2):
        if common := [item for item in said[a] if item in said[b]]:
            table = np.zeros((3, 3))
            for item in common:
                table[said[a][item], said[b][item]] += 1 / len(common)
            observed, chance = float(np.trace(table)), float(table.sum(0) @ table.sum(1))
            results.append(
                {
                    "judges": [a, b],
                    "judgements": len(common),
                    "agreement": 100 * observed,
                    "kappa": (observed - chance) / (1 - chance) if chance < 1 - 1e-12 else None,
                }
            )
    return results


def queries_needed(points: float = 5.0, power: float = 0.8) -> int:
    """The number of queries that shows a win rate of 50 + `points` percent to differ from 50 %.

    A normal approximation to a two-sided test, at the level of the intervals, with one verdict per query and no ties.
    Ties, and averages over the orders and constitutions of a query, vary less and need fewer queries.

    Args:
        points: distance from 50 %, in percentage points, 0 to 50 exclusive.
        power: probability of detecting the difference, above one half.

    Raises:
        ValueError: points or power is out of range.
    """
    if not (0 < points < 50 and 0.5 < power < 1):
        raise ValueError(f"points must lie between 0 and 50, power between 0.5 and 1; got {points} and {power}.")
    quantile, distance = NormalDist().inv_cdf, points / 100
    spread = math.sqrt((0.5 + distance) * (0.5 - distance))  # of one verdict, under the alternative
    z = quantile((1 + CONFIDENCE) / 2) * 0.5 + quantile(power) * spread
    return math.ceil((z / distance) ** 2)


def _figures(cell: list[Verdict], length_controlled: Rate, samples: int, seed: int) -> dict[str, Any]:
    """All figures of one comparison in one scope."""
    scored = [v for v in cell if v.score is not None]
    scores = np.array([v.score for v in scored], dtype=np.float64)
    names, query = np.unique([v.query_id for v in scored], return_inverse=True)
    draws = resamples(len(names), samples=samples, seed=seed) if scored else np.zeros((0, 0), dtype=np.int64)
    weights = np.concatenate([np.ones((1, len(names))), draws])  # the sample itself, then the resamples

    def rates(where: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[1 + samples]: win rate among some judgements, NaN in a resample that contains none of them.

        All resamples are NaN if the judgements are of a single query, whose spread is unknown.
        """
        wins = np.bincount(query[where], weights=scores[where], minlength=len(names))
        counts = np.bincount(query[where], minlength=len(names))
        with np.errstate(invalid="ignore"):
            values: NDArray[np.float64] = 100 * (weights @ wins) / (weights @ counts)
        if np.count_nonzero(counts) < 2:
            values[1:] = np.nan
        return values

    def queries_in(where: NDArray[np.bool_]) -> int:
        return len(np.unique(query[where]))

    longer = np.array([v.candidate_tokens > v.baseline_tokens for v in scored], dtype=bool)
    strata = {"longer": longer, "not_longer": ~longer}
    everything = np.ones(len(scored), dtype=bool)
    per_principle = {}
    for name in dict.fromkeys(name for v in scored for name, _ in v.principles or ()):
        where = np.array([name in (known for known, _ in v.principles or ()) for v in scored])
        per_principle[name] = {**_rate(rates(where)), "n": queries_in(where)}
    return {
        "raw": _rate(rates(everything)),
        "stratified": _rate((rates(longer) + rates(~longer)) / 2),
        "length_controlled": dict(length_controlled),
        "queries": len(names),
        "judgements": len(cell),
        "unscored": len(cell) - len(scored),
        "ties": int((scores == 0.5).sum()),
        "consistency": _consistency(scored),
        "first_position_rate": _first_position_rate(scored),
        "candidate_length": _length(cell, "candidate"),
        "baseline_length": _length(cell, "baseline"),
        "strata_n": {name: queries_in(where) for name, where in strata.items()},
        "per_principle": per_principle or None,
    }


def _length_controlled(cells: Mapping[Key, list[Verdict]], slope: Slope, *, samples: int, seed: int) -> dict[Key, Rate]:
    families: dict[tuple[Any, ...], dict[Key, Judged]] = defaultdict(dict)
    for key, cell in cells.items():
        scored = [(v.query_id, v.score, v.candidate_chars - v.baseline_chars) for v in cell if v.score is not None]
        if scored:
            (_, baseline, judge), scope = key
            families[(baseline, judge, scope) if slope == "shared" else key][key] = Judged(*zip(*scored, strict=True))
    results: dict[Key, Rate] = {}
    for members in families.values():
        fitted = length_controlled_rates(list(members.values()), samples=samples, seed=seed)
        for key, value in zip(members, fitted, strict=True):
            if value is not None:
                results[key] = dict(zip(("rate", "low", "high"), value, strict=True))
    return results


def _rate(values: NDArray[np.float64]) -> Rate:
    """The rate from the value of the sample, which comes first, and those of the resamples."""
    if np.isnan(values).all():
        return dict(UNDEFINED)
    low, high = (None, None) if np.isnan(values[1:]).all() else percentile_interval(values[1:])
    return {"rate": float(values[0]), "low": low, "high": high}


def _consistency(scored: Sequence[Verdict]) -> float | None:
    outcomes: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    for v in scored:
        if v.score is not None:
            outcomes[_pair(v)][v.order] = _outcome(v.score)
    both = [len(set(orders.values())) == 1 for orders in outcomes.values() if len(orders) == 2]
    return 100 * sum(both) / len(both) if both else None


def _first_position_rate(scored: Sequence[Verdict]) -> float | None:
    """Orders are weighted equally: if one is more frequent, the better response would otherwise look like a lean."""
    candidate_first = [v.score for v in scored if v.order == "candidate_first" and v.score is not None]
    baseline_first = [1 - v.score for v in scored if v.order == "baseline_first" and v.score is not None]
    if not candidate_first or not baseline_first:
        return None
    return 50 * (sum(candidate_first) / len(candidate_first) + sum(baseline_first) / len(baseline_first))


def _length(cell: Sequence[Verdict], side: str) -> dict[str, float]:
    pairs = list({_pair(v): v for v in cell}.values())
    return {unit: sum(getattr(v, f"{side}_{unit}") for v in pairs) / len(pairs) for unit in ("tokens", "chars")}


def _pair(verdict: Verdict) -> tuple[Any, ...]:
    return verdict.query_id, verdict.constitution_id, verdict.principles


def _outcome(score: float) -> int:
    """0 the candidate loses, 1 tie, 2 it wins."""
    return 0 if score < 0.5 else 1 if score == 0.5 else 2
