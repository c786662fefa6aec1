"""The verifiers of the principles as a judge: a response that passes beats one that fails."""

from collections.abc import Sequence
from typing import Any

from sami.evaluation.judges import NOTHING_MORE, Given, Judge, Judgement, Question, Record
from sami.recipe import VerifierJudge


class Verifiers(Judge):
    """Scores 1 if the candidate passes more of the constitution's verifiers, 0 if it passes fewer, and 0.5 otherwise.

    It leaves pairs whose constitution contains a principle without a verifier to other judges.
    """

    needs_principles = True

    def __init__(self, settings: VerifierJudge, given: Given = NOTHING_MORE) -> None:
        self.name = settings.label
        self._with_verifier = {p.id: p for p in given.principles if p.verifier is not None}

    def identity(self) -> dict[str, Any]:
        kept = {"id", "verifier", "antithesis_verifier"}
        return {"kind": "verifier", "principles": [p.model_dump(include=kept) for p in self._with_verifier.values()]}

    def concerns(self, question: Question) -> bool:
        chosen = question.pair.item.principles or ()
        return bool(chosen) and all(name in self._with_verifier for name, _ in chosen)

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        for question in questions:
            pair = question.pair
            candidate = self._passed(question, pair.candidate_response.text)
            baseline = self._passed(question, pair.baseline_response.text)
            raw = f"candidate passes {candidate} of {len(pair.item.principles or ())}, baseline {baseline}"
            record(question, Judgement(0.5 + 0.5 * ((candidate > baseline) - (candidate < baseline)), raw))

    def _passed(self, question: Question, response: str) -> int:
        """The number of principles of the constitution that a response follows."""
        chosen = question.pair.item.principles or ()
        return sum(self._with_verifier[name].follows(response, positive) is True for name, positive in chosen)
