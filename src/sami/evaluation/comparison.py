"""Every judge of a recipe calibrated, asked about every pair, and turned into win rates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami.console import say
from sami.errors import InputError
from sami.evaluation import recorded_lines
from sami.evaluation.ask import ask, requests_of, spent
from sami.evaluation.calibration import Calibration, calibrate, known_pairs, measured
from sami.evaluation.judges import Given, Judge, make_judge
from sami.evaluation.pairs import Pair, Policy, pair_up
from sami.evaluation.verdicts import Verdict, read_verdicts
from sami.evaluation.win_rate import agreement, win_rates
from sami.principles import Principle
from sami.recipe import Evaluation
from sami.recipe import Judge as Settings


def judge_all(
    settings: Evaluation,
    pairs: Sequence[Pair],
    known: Policy,
    principles: Sequence[Principle],
    folder: Path,
    date: str | None = None,
) -> dict[str, Any]:
    """Win rates of the pairs by every judge.

    Args:
        settings: the recipe's section.
        known: the policy whose responses judges are calibrated on.
        principles: the principles that constitutions are made of.
        folder: holds `verdicts.jsonl`, `calibration/` and the log of requests.
        date: YYYY-MM-DD that the chat templates of judges see as today; None for the real date.

    Returns:
        `win_rates` as `sami winrate --json` prints them, `agreement` of judges, and `judges`: settings, calibration,
        tokens and cost of each.

    Raises:
        InputError: a judge is not above chance, cannot go on, or leaves too many verdicts unscored.
    """
    judges = _Judges(settings, known, principles, folder, date)
    verdicts: list[Verdict] = []
    accuracies: dict[str, dict[str, Any]] = {}
    accounts = []
    for one in settings.judges:
        judge = judges.make(one)
        calibration = judges.calibrated(judge)
        if calibration is not None:
            _refuse_chance(calibration, settings)
            say(calibration.sentence())
            accuracies[judge.name] = calibration.as_json()
        found = judges.ask(judge, pairs)
        verdicts += found
        accounts.append(judges.account(one, judge, calibration, found))
    sampling: dict[str, Any] = {"samples": settings.bootstrap_samples, "seed": settings.seed}
    rates = win_rates(verdicts, **sampling, slope=settings.slope, judge_accuracy=accuracies) if verdicts else []
    return {"win_rates": rates, "agreement": agreement(verdicts), "judges": accounts}


def calibrate_all(
    settings: Evaluation, known: Policy, principles: Sequence[Principle], folder: Path, date: str | None = None
) -> list[Calibration]:
    """Only the calibration of every judge that needs one."""
    judges = _Judges(settings, known, principles, folder, date)
    found = [judges.calibrated(judges.make(one)) for one in settings.judges]
    return [calibration for calibration in found if calibration is not None]


def every_pair(candidates: Sequence[Policy], baselines: Sequence[Policy]) -> list[Pair]:
    """Each candidate against each baseline."""
    return [pair for c in candidates for b in baselines for pair in pair_up(c, b)]


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


def require_win_rates(compared: Mapping[str, Any]) -> None:
    """Refuse a comparison in which no judge could judge any pair, rather than show an empty table.

    Raises:
        InputError: there is not one verdict.
    """
    if not compared["win_rates"]:
        judges = ", ".join(account["judge"] for account in compared["judges"])
        raise InputError(
            f"There are no verdicts, so there are no win rates: the constitutions contain nothing that {judges} can "
            f"judge. Verifiers need principles that have a verifier. Use another judge, or add verifiers to the "
            f"principles."
        )


def recorded_accuracies(verdicts: Path, **sampling: int) -> dict[str, dict[str, Any]]:
    """Calibration figures by judge, from the folder of a file of verdicts; empty if none are recorded there."""
    file = calibration_file(verdicts.parent)
    recorded_lines.require_unchanged(file)
    known = read_verdicts(file) if file.is_file() else []
    judges = dict.fromkeys(v.judge for v in known)
    return {j: measured(j, [v for v in known if v.judge == j], **sampling).as_json() for j in judges}


def calibration_file(folder: Path) -> Path:
    """The verdicts on pairs with a known answer, in a folder of verdicts."""
    return folder / "calibration" / "verdicts.jsonl"


def _refuse_chance(calibration: Calibration, settings: Evaluation) -> None:
    if calibration.above_chance or settings.force:
        return
    raise InputError(
        f"{calibration.sentence()} Its win rates would mean nothing. Use another judge, raise "
        f"evaluation.calibration_pairs if it is close, or use this judge anyway with --force (evaluation.force=true)."
    )


@dataclass(frozen=True)
class _Judges:
    """What the judges of a recipe work with."""

    settings: Evaluation
    known: Policy
    principles: Sequence[Principle]
    folder: Path
    date: str | None

    @property
    def _verdicts(self) -> Path:
        return self.folder / "verdicts.jsonl"

    def make(self, one: Settings) -> Judge:
        before = sum(spent(file, one.label) for file in (self._verdicts, calibration_file(self.folder)))
        return make_judge(one, Given(self.principles, before, self.date))

    def ask(self, judge: Judge, pairs: Sequence[Pair]) -> list[Verdict]:
        s = self.settings
        limit = s.unscored_limit
        return ask(judge, pairs, self._verdicts, order=s.order, seed=s.seed, unscored_limit=limit)

    def calibrated(self, judge: Judge) -> Calibration | None:
        """None for a judge that needs no calibration."""
        s = self.settings
        if not judge.needs_calibration:
            return None
        pairs = known_pairs(self.known, self.principles, count=s.calibration_pairs, seed=s.seed)
        return calibrate(judge, pairs, calibration_file(self.folder), seed=s.seed, samples=s.bootstrap_samples)

    def account(
        self, one: Settings, judge: Judge, calibration: Calibration | None, verdicts: Sequence[Verdict]
    ) -> dict[str, Any]:
        files = (self._verdicts, calibration_file(self.folder))
        answered = [line for file in files for line in requests_of(file, judge.name)]
        priced = [line["cost"] for line in answered if line["cost"] is not None]
        adapted = {name: other for line in answered for name, other in line.get("adapted", {}).items()}
        return {
            "judge": judge.name,
            "settings": one.model_dump(),
            "calibration": None if calibration is None else calibration.as_json(),
            "verdicts": len(verdicts),
            "unscored": sum(v.score is None for v in verdicts),
            "versions": sorted({line["model"] for line in answered}),
            "prompt_tokens": sum(line["prompt_tokens"] for line in answered),
            "completion_tokens": sum(line["completion_tokens"] for line in answered),
            "cost": sum(priced) if priced else None,
        } | ({"adapted": adapted} if adapted else {})
