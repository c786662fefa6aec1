"""Asking a judge: each verdict is appended and synced as it arrives, and only missing verdicts are asked for.

A folder holds `verdicts.jsonl`, with at most one line for each (judge, candidate, baseline, item, order), and
`requests.jsonl`, with one line for each answer of a server: its version, tokens and cost.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sami.console import bar
from sami.errors import InputError
from sami.evaluation import recorded_lines
from sami.evaluation.judges import NO_ANSWER, Judge, Judgement, Question, Usage
from sami.evaluation.pairs import Pair
from sami.evaluation.verdicts import Verdict, append_verdict, read_verdicts, repair_verdicts
from sami.files import append_json_line

Slot = tuple[str, str, str, str, str | None, str]


def questions_of(pairs: Iterable[Pair], *, order: str, seed: int) -> list[Question]:
    """Each pair in both orders, or in one that depends on the pair and the seed alone."""
    questions = []
    for pair in pairs:
        both = [Question(pair, "candidate_first"), Question(pair, "baseline_first")]
        item = pair.item
        drawn = random.Random(f"{seed} {pair.candidate} {pair.baseline} {item.query_id} {item.constitution_id}")
        questions += both if order == "both" else [drawn.choice(both)]
    return questions


def ask(
    judge: Judge,
    pairs: Sequence[Pair],
    file: Path,
    *,
    order: str = "both",
    seed: int = 0,
    unscored_limit: float = 5.0,
    label: str = "judging",
) -> list[Verdict]:
    """A judge's verdicts on pairs, recorded and new ones, in the order of the pairs.

    Args:
        file: verdicts.jsonl, created if it is missing. Lines about other texts, or by another version of the judge,
            move to `superseded.jsonl` beside it. Questions that were never answered are asked again.
        order: "both", or "random" for one order per pair.
        seed: seed of the random order.
        unscored_limit: largest share of unscored verdicts, in percent.
        label: what is going on, for the progress bar.

    Raises:
        InputError: the judge cannot work with these pairs or cannot go on, recorded lines changed, or too many
            verdicts are unscored. What was recorded is kept.
    """
    judge.check(pairs)
    _require_unchanged(file)
    identity = json.dumps(judge.identity(), sort_keys=True)
    questions = [q for q in questions_of(pairs, order=order, seed=seed) if judge.concerns(q)]
    wanted = {_slot(judge.name, q): (q, _key(identity, q)) for q in questions}
    have, pool = _recorded(file, {slot: key for slot, (_, key) in wanted.items()})

    def record(slots: Iterable[Slot], judgement: Judgement) -> None:
        for number, slot in enumerate(slots):
            question, key = wanted[slot]
            usage = judgement.usage
            if usage and number == 0:
                append_json_line(requests_file(file), _request(judge.name, key, usage))
            verdict = _verdict(judge.name, question, key, judgement)
            verdict = verdict if number == 0 else replace(verdict, cost=0.0)
            append_verdict(file, verdict)
            have[slot] = verdict
            update(len(have))

    file.parent.mkdir(parents=True, exist_ok=True)
    _record(file)
    with bar(f"{judge.name}: {label}", len(wanted), "verdicts") as update:
        once: dict[str, Question] = {}  # by key: policies with the same responses share a question
        waiting: dict[str, list[Slot]] = defaultdict(list)
        for slot, (question, key) in wanted.items():
            identical = question.responses[0] == question.responses[1]
            if not identical:
                once.setdefault(key, question)
            if slot in have:
                continue
            if (same := pool.get(key)) is not None:
                record([slot], Judgement(same.score, same.raw, same.reason))
            elif identical:
                record([slot], Judgement(0.5, "identical responses"))
            else:
                waiting[key].append(slot)
        if waiting:
            keys = {question: key for key, question in once.items()}
            judge.judge(
                [once[key] for key in waiting],
                lambda question, judgement: record(waiting[keys[question]], judgement),
                list(once.values()),
            )
    _record(file)
    verdicts = [have[slot] for slot in wanted]
    _check_unscored(judge.name, verdicts, unscored_limit, file)
    return verdicts


def requests_file(verdicts: Path) -> Path:
    """The log of requests beside a file of verdicts."""
    return verdicts.with_name("requests.jsonl")


def spent(file: Path, judge: str) -> float:
    """The cost of a judge's answered requests so far, from the log beside a file of verdicts."""
    return sum(line["cost"] or 0.0 for line in requests_of(file, judge))


def requests_of(file: Path, judge: str) -> list[dict[str, Any]]:
    """Versions, tokens and costs of a judge's answered requests; a line that a kill cut off is skipped."""
    log = requests_file(file)
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if value["judge"] == judge:
            found.append(value)
    return found


def _recorded(file: Path, keys: dict[Slot, str]) -> tuple[dict[Slot, Verdict], dict[str, Verdict]]:
    """Valid verdicts of the wanted slots, and all scored verdicts by key; invalid ones leave the file."""
    if not file.exists():
        return {}, {}
    repair_verdicts(file)
    _repair_requests(requests_file(file))
    kept: list[Verdict] = []
    gone: list[Verdict] = []
    for verdict in read_verdicts(file):
        slot = _slot_of(verdict)
        unanswered = verdict.score is None and (verdict.reason or "").startswith(NO_ANSWER)
        stale = slot in keys and (verdict.key != keys[slot] or unanswered)
        (gone if stale else kept).append(verdict)
    if gone:
        for verdict in gone:
            append_verdict(file.with_name("superseded.jsonl"), verdict)
        lines = (json.dumps(v.as_json(), ensure_ascii=False) + "\n" for v in kept)
        recorded_lines.rewrite(file, "".join(lines))
    have = {slot: v for v in kept if (slot := _slot_of(v)) in keys}
    return have, {v.key: v for v in kept if v.key is not None and v.score is not None}


def _require_unchanged(file: Path) -> None:
    for kept in (file, requests_file(file)):
        recorded_lines.require_unchanged(kept)


def _record(file: Path) -> None:
    for kept in (file, requests_file(file)):
        recorded_lines.record(kept)


def _repair_requests(file: Path) -> None:
    """End the log with a newline, so that the next line does not continue one that a kill cut off."""
    if file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size:
        with file.open("ab") as log:
            log.write(b"\n")


def _request(judge: str, key: str, usage: Usage) -> dict[str, Any]:
    line = {"judge": judge, "key": key, **asdict(usage)}
    return line if usage.adapted else {name: value for name, value in line.items() if name != "adapted"}


def _slot(judge: str, question: Question) -> Slot:
    pair = question.pair
    return judge, pair.candidate, pair.baseline, pair.item.query_id, pair.item.constitution_id, question.order


def _slot_of(verdict: Verdict) -> Slot:
    v = verdict
    return v.judge, v.candidate, v.baseline, v.query_id, v.constitution_id, v.order


def _key(identity: str, question: Question) -> str:
    """A hash of everything that a verdict depends on: the judge's identity and the question."""
    pair = question.pair
    parts = [
        identity,
        question.order,
        pair.item.constitution,
        pair.item.query,
        pair.candidate_response.text,
        pair.baseline_response.text,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _verdict(judge: str, question: Question, key: str, judgement: Judgement) -> Verdict:
    pair, item = question.pair, question.pair.item
    return Verdict(
        query_id=item.query_id,
        candidate=pair.candidate,
        baseline=pair.baseline,
        judge=judge,
        order=question.order,
        score=judgement.score,
        candidate_chars=len(pair.candidate_response.text),
        baseline_chars=len(pair.baseline_response.text),
        candidate_tokens=pair.candidate_response.tokens,
        baseline_tokens=pair.baseline_response.tokens,
        raw=judgement.raw,
        cost=judgement.usage.cost if judgement.usage else 0.0,
        constitution_id=item.constitution_id,
        principles=item.principles,
        learned=item.learned,
        key=key,
        reason=judgement.reason,
    )


def _check_unscored(judge: str, verdicts: Sequence[Verdict], limit: float, file: Path) -> None:
    unscored = [v for v in verdicts if v.score is None]
    share = 100 * len(unscored) / max(1, len(verdicts))
    if unscored and (share > limit or len(unscored) == len(verdicts)):
        reason, count = Counter(v.reason for v in unscored).most_common(1)[0]
        raise InputError(
            f"The judge {judge} left {len(unscored)} of {len(verdicts)} verdicts unscored ({share:.1f} %; "
            f"evaluation.unscored_limit is {limit:g} %). The most frequent reason ({count}) is: "
            f"{(reason or 'none given').rstrip('.')}. The verdicts are kept in {file}; the next call asks the "
            f"unanswered questions again."
        )
