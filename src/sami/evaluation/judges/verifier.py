"""The principles' own verifiers as a judge: who passes beats who fails."""

from collections.abc import Sequence
from typing import Any

from sami.evaluation.judges import Judgement, Question, Record
from sami.principles import Principle


class Verifiers:
    """Scores 1 where more of the constitution's verifiers pass the candidate, 0 where fewer do, 0.5 else.

    Pairs whose constitution has a principle without verifier are left to other judges.
    """

    def __init__(self, name: str, principles: Sequence[Principle]) -> None:
        self.name = name
        self._principles = {p.id: p for p in principles}

    def identity(self) -> dict[str, Any]:
        kept = {"id", "verifier", "antithesis_verifier"}
        return {"kind": "verifier", "principles": [p.model_dump(include=kept) for p in self._principles.values()]}

    def judge(self, questions: Sequence[Question], record: Record) -> None:
        for question in questions:
            passed = [
                self._passed(question, response.text)
                for response in (question.pair.candidate_response, question.pair.baseline_response)
            ]
            if None in passed:
                continue
            candidate, baseline = (sum(map(bool, p)) for p in passed if p is not None)
            raw = f"candidate passes {candidate} of {len(passed[0] or [])}, baseline {baseline}"
            record(question, Judgement(0.5 + 0.5 * ((candidate > baseline) - (candidate < baseline)), raw))

    def _passed(self, question: Question, response: str) -> list[bool] | None:
        """One verdict for each principle of the constitution; None unless all of them have a verifier."""
        chosen = question.pair.item.principles or ()
        verdicts = [
            self._principles[name].follows(response, positive) if name in self._principles else None
            for name, positive in chosen
        ]
        known = [v for v in verdicts if v is not None]
        return known if known and len(known) == len(verdicts) else None
