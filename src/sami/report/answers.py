"""Every held-out query with each policy's answers, the checks' findings, and judges' scores."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sami.contrasts import Contrast
from sami.evaluation import health
from sami.evaluation.information import ContrastScores, bounds_by_policy, bounds_under_base
from sami.evaluation.score import verdicts as verifier_results
from sami.evaluation.verdicts import Verdict
from sami.report.run_files import RunFiles
from sami.text.words import distinct_n, word_count

# Health figures that count single answers, with the words for one such answer.
FLAGS = {
    "loops": "repeats itself",
    "leakage": "copies from the constitution",
    "template_leftovers": "contains template markers",
    "unfinished": "cut off",
}


def answers(run: RunFiles) -> dict[str, Any]:
    """The data of the page's answer browser and blind judging, as JSON values.

    Returns:
        `policies`, `judges` and `principles` by name, and `items`: one per contrast, with its constitutions and one
        answer per policy (null where a policy has none). Answers refer to policies and judges by their index.
    """
    policies = list(run.responses)
    judges = list(dict.fromkeys(v.judge for v in run.verdicts))
    by_policy = {name: {c.id: c for c in contrasts} for name, contrasts in run.responses.items()}
    contrasts: dict[str, Contrast] = {}
    for of_policy in by_policy.values():
        for name, contrast in of_policy.items():
            contrasts.setdefault(name, contrast)
    held_out = {p.id for p in run.principles if p.held_out}
    checks = {name: _checks(run, name) for name in policies}
    flagged = {name: health_flags(run, name) for name in policies}
    own = {name: _bounds(run, name, "policy", bounds_by_policy) for name in policies}
    frozen = {name: _bounds(run, name, "base", bounds_under_base) for name in policies}
    judged = _judged(run.verdicts)
    query_ids = {v.constitution_id: v.query_id for v in run.verdicts}

    def answer(policy: str, contrast: Contrast, number: int) -> dict[str, Any] | None:
        written = by_policy[policy].get(contrast.id)
        if written is None or number >= len(written.responses):
            return None
        text = written.responses[number]
        found: dict[str, Any] = {
            "text": text,
            "words": word_count(text),
            "tokens": len(written.response_ids[number]),
        }
        if written.reasoning and written.reasoning[number]:
            found["reasoning"] = written.reasoning[number]
        if flags := flagged[policy].get(contrast.id, [{}] * (number + 1))[number]:
            found["flags"] = flags
        if results := checks[policy].get((contrast.id, number)):
            found["checks"] = results
        said = judged.get((f"{contrast.id}/{number}", policy))
        if said:
            found["judged"] = [
                [policies.index(baseline), judges.index(judge), score]
                for (baseline, judge), score in said.items()
                if baseline in policies
            ]
        return found

    def item(contrast: Contrast) -> dict[str, Any]:
        names = list(dict.fromkeys(name for constitution in contrast.principles for name, _ in constitution))
        return {
            "id": contrast.id,
            "query_id": query_ids.get(f"{contrast.id}/0") or _query_id(contrast.id, names),
            "query": contrast.query,
            "learned": not held_out.intersection(names),
            "principles": names,
            "own": [_rounded(own[name].get(contrast.id)) for name in policies],
            "frozen": [_rounded(frozen[name].get(contrast.id)) for name in policies],
            "constitutions": [
                {
                    "text": text,
                    "principles": [list(pair) for pair in contrast.principles[number]],
                    "answers": [answer(name, contrast, number) for name in policies],
                }
                for number, text in enumerate(contrast.constitutions)
            ],
        }

    iterations = {p.name: p.iteration for p in run.policies}
    return {
        "run": run.name,
        "policies": [{"name": name, "iteration": iterations.get(name)} for name in policies],
        "judges": judges,
        "principles": [p.id for p in run.principles],
        "flags": FLAGS,
        "items": [item(contrast) for contrast in contrasts.values()],
    }


def health_flags(run: RunFiles, policy: str) -> dict[str, list[dict[str, str]]]:
    """What is wrong with each answer, by contrast: as recorded, or checked again for a baseline."""
    recorded = run.scores.get(policy, {}).get("flags")
    return recorded if recorded is not None else {c.id: health.flags(c) for c in run.responses[policy]}


def examples(run: RunFiles, policy: str, limit: str, count: int = 3) -> list[dict[str, str]]:
    """Answers of a policy that break a health limit: query, text, what is wrong, and the item's id.

    Args:
        limit: the name of the figure in `health`.
    """
    flagged = health_flags(run, policy) if limit in FLAGS else {}
    found: list[tuple[float, Contrast, int, str]] = []
    likelihood = {s["id"]: s["matrix"] for s in run.scores.get(policy, {}).get("base", [])}
    for contrast in run.responses.get(policy, []):
        for number, text in enumerate(contrast.responses):
            if limit in FLAGS:
                if (what := flagged[contrast.id][number].get(limit)) is not None:
                    found.append((0.0, contrast, number, f"{FLAGS[limit]}: {what}"))
            elif limit == "distinct_2":
                diversity = distinct_n([text])
                if not math.isnan(diversity):  # a response of one word has no pairs
                    found.append((diversity, contrast, number, f"{diversity:.2f} of its word pairs are distinct"))
            elif limit == "base_logprob" and contrast.id in likelihood:
                value = likelihood[contrast.id][number][number]
                found.append((value, contrast, number, f"{value:.2f} nats per token under base"))
    found.sort(key=lambda one: one[0])
    chosen: dict[str, dict[str, str]] = {}  # the first of each query
    for _, contrast, number, why in found:
        example = {"id": contrast.id, "query": contrast.query, "text": contrast.responses[number], "why": why}
        chosen.setdefault(contrast.query, example)
    return list(chosen.values())[:count]


def _checks(run: RunFiles, policy: str) -> dict[tuple[str, int], list[list[Any]]]:
    """[principle, positive, passed] by contrast and constitution: as recorded, or checked again for a baseline."""
    recorded = run.scores.get(policy, {}).get("verdicts")
    if recorded is None:
        known = {p.id for p in run.principles}
        readable = [c for c in run.responses[policy] if {name for one in c.principles for name, _ in one} <= known]
        recorded = verifier_results(readable, run.principles)
    found: dict[tuple[str, int], list[list[Any]]] = defaultdict(list)
    for v in recorded:
        found[v["contrast"], v["constitution"]].append([v["principle"], v["positive"], v["passed"]])
    return found


def _bounds(run: RunFiles, policy: str, scorer: str, bounds: Any) -> dict[str, float]:
    scores = [ContrastScores(**s) for s in run.scores.get(policy, {}).get(scorer, [])]
    return bounds(scores)


def _judged(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """Mean score by (constitution, candidate) and (baseline, judge), over the orders that were scored."""
    scores: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for v in verdicts:
        if v.score is not None and v.constitution_id is not None:
            scores[v.constitution_id, v.candidate][v.baseline, v.judge].append(v.score)
    return {key: {who: sum(s) / len(s) for who, s in of_pair.items()} for key, of_pair in scores.items()}


def _query_id(contrast_id: str, principles: Sequence[str]) -> str:
    """The query id in the id of an evaluation contrast, which is made of its query's id and a principle's."""
    for name in sorted(principles, key=len, reverse=True):
        if contrast_id.endswith(f"-{name}"):
            return contrast_id.removesuffix(f"-{name}")
    return contrast_id


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
