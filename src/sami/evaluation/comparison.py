"""Who against whom: every judge of a recipe calibrated, asked about every pair, and turned into win rates."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sami.console import say
from sami.errors import InputError
from sami.evaluation.ask import ask, requests_of, spent
from sami.evaluation.calibration import Calibration, calibrate, known_pairs, measured
from sami.evaluation.judges import Judge, make_judge
from sami.evaluation.pairs import Pair, Policy, from_file, pair_up
from sami.evaluation.verdicts import Verdict, read_verdicts
from sami.evaluation.win_rate import agreement, win_rates
from sami.principles import Principle
from sami.recipe import EndpointJudge, Evaluation, LocalJudge


def judge_all(
    settings: Evaluation,
    pairs: Sequence[Pair],
    known: Policy,
    principles: Sequence[Principle],
    folder: Path,
) -> dict[str, Any]:
    """Win rates of the pairs by every judge.

    Args:
        known: whose responses judges are calibrated on.
        folder: holds `verdicts.jsonl`, `calibration/` and the log of requests.

    Returns:
        `win_rates` as `sami winrate --json` prints them, `agreement` of judges, and `judges`: settings,
        calibration, tokens and cost of each.

    Raises:
        InputError: a judge is not above chance, cannot go on, or leaves too much unscored.
    """
    verdicts: list[Verdict] = []
    accuracies: dict[str, dict[str, Any]] = {}
    judges = []
    for one in settings.judges:
        judge = _judge(one, principles, folder)
        calibration = _calibrate(settings, one, judge, known, principles, folder)
        if calibration is not None:
            _refuse_chance(calibration, settings)
            say(calibration.sentence())
            accuracies[judge.name] = calibration.as_json()
        found = ask(
            judge,
            pairs,
            folder / "verdicts.jsonl",
            order=settings.order,
            seed=settings.seed,
            unscored_limit=settings.unscored_limit,
        )
        verdicts += found
        judges.append(_account(one, judge, calibration, found, folder))
    sampling: dict[str, Any] = {"samples": settings.bootstrap_samples, "seed": settings.seed}
    rates = win_rates(verdicts, **sampling, slope=settings.slope, judge_accuracy=accuracies) if verdicts else []
    return {"win_rates": rates, "agreement": agreement(verdicts), "judges": judges}


def calibrate_all(
    settings: Evaluation, known: Policy, principles: Sequence[Principle], folder: Path
) -> list[Calibration]:
    """Only the calibration of every judge that needs one."""
    found = [
        _calibrate(settings, one, _judge(one, principles, folder), known, principles, folder) for one in settings.judges
    ]
    return [calibration for calibration in found if calibration is not None]


def every_pair(candidates: Sequence[Policy], baselines: Sequence[Policy]) -> list[Pair]:
    """Each candidate against each baseline."""
    return [pair for c in candidates for b in baselines for pair in pair_up(c, b)]


def read_policies(files: Sequence[Path], queries: Mapping[str, str], principles: Sequence[Principle]) -> list[Policy]:
    """Policies from files of responses.

    Raises:
        InputError: a file cannot be read, or two have the same name.
    """
    names = [file.stem for file in files]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"Two files of responses are called {repeated[0]!r}, and the name stands for the policy.")
    return [from_file(file, queries, principles) for file in files]


def lengths(policies: Iterable[Policy]) -> list[dict[str, Any]]:
    """Mean length of each policy's responses in words, tokens and characters."""
    return [
        {
            "policy": policy.name,
            "responses": len(policy.responses),
            "words": policy.words,
            "tokens": sum(r.tokens for r in policy.responses.values()) / len(policy.responses),
            "chars": sum(len(r.text) for r in policy.responses.values()) / len(policy.responses),
        }
        for policy in policies
    ]


def _judge(settings: Any, principles: Sequence[Principle], folder: Path) -> Judge:
    before = sum(spent(file, settings.label) for file in (folder / "verdicts.jsonl", _calibration_file(folder)))
    return make_judge(settings, principles, before)


def _calibrate(
    settings: Evaluation, one: Any, judge: Judge, known: Policy, principles: Sequence[Principle], folder: Path
) -> Calibration | None:
    """None for verifiers, which define the answer, and for people, whose verdicts are given."""
    if not isinstance(one, LocalJudge | EndpointJudge):
        return None
    pairs = known_pairs(known, principles, count=settings.calibration_pairs, seed=settings.seed)
    found = calibrate(judge, pairs, _calibration_file(folder), seed=settings.seed, samples=settings.bootstrap_samples)
    return found


def _calibration_file(folder: Path) -> Path:
    return folder / "calibration" / "verdicts.jsonl"


def recorded_accuracies(verdicts: Path, **sampling: int) -> dict[str, dict[str, Any]]:
    """Calibration figures by judge, from what lies beside a file of verdicts; empty where nothing does."""
    file = _calibration_file(verdicts.parent)
    known = read_verdicts(file) if file.is_file() else []
    judges = dict.fromkeys(v.judge for v in known)
    return {j: measured(j, [v for v in known if v.judge == j], **sampling).as_json() for j in judges}


def _refuse_chance(calibration: Calibration, settings: Evaluation) -> None:
    if calibration.above_chance or settings.force:
        return
    raise InputError(
        f"{calibration.sentence()} Its win rates would say nothing. Take another judge, raise "
        f"evaluation.calibration_pairs if it is close, or use it all the same with --force (evaluation.force=true)."
    )


def _account(
    settings: Any, judge: Judge, calibration: Calibration | None, verdicts: Sequence[Verdict], folder: Path
) -> dict[str, Any]:
    files = (folder / "verdicts.jsonl", _calibration_file(folder))
    answered = [line for file in files for line in requests_of(file, judge.name)]
    priced = [line["cost"] for line in answered if line["cost"] is not None]
    return {
        "judge": judge.name,
        "settings": settings.model_dump(),
        "calibration": None if calibration is None else calibration.as_json(),
        "verdicts": len(verdicts),
        "unscored": sum(v.score is None for v in verdicts),
        "versions": sorted({line["model"] for line in answered}),
        "prompt_tokens": sum(line["prompt_tokens"] for line in answered),
        "completion_tokens": sum(line["completion_tokens"] for line in answered),
        "cost": sum(priced) if priced else None,
    }
