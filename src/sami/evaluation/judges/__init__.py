"""The judge interface: two responses to one query under one constitution, read in one order, give a verdict.

A new judge is one file here, a section in the recipe, and a line in `make_judge`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sami.evaluation.pairs import Pair
from sami.principles import Principle
from sami.recipe import EndpointJudge, HumanJudge, LocalJudge, VerifierJudge

if TYPE_CHECKING:
    from sami.evaluation.verdicts import Order

# A judgement whose reason starts so was never answered, and is asked again by the next call.
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Question:
    """A pair as a judge reads it: A is the response that stands first."""

    pair: Pair
    order: "Order"

    @property
    def responses(self) -> tuple[str, str]:
        """(A, B)."""
        pair = (self.pair.candidate_response.text, self.pair.baseline_response.text)
        return pair if self.order == "candidate_first" else (pair[1], pair[0])

    def score(self, label: Literal["A", "B", "tie"]) -> float:
        """The candidate's score where the judge prefers A, B or neither."""
        if label == "tie":
            return 0.5
        return float((label == "A") == (self.order == "candidate_first"))


@dataclass(frozen=True)
class Usage:
    """What one answered request took."""

    model: str
    """The version that the server says has answered."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the judge's prices; None without prices."""


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one question: a score of the candidate, or why there is none."""

    score: float | None
    raw: str | None = None
    reason: str | None = None
    usage: Usage | None = None


Record = Callable[[Question, Judgement], None]


class Judge(Protocol):
    """Who compares responses."""

    name: str
    """As it stands in verdicts."""

    def identity(self) -> dict[str, Any]:
        """Everything besides the question that a verdict depends on, as JSON values."""

    def concerns(self, question: Question) -> bool:
        """Whether it has a say on a question."""

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        """Call `record` once for each question, as soon as it is answered; in any order.

        Args:
            questions: some that concern it.
            among: these and those that are answered already. A judge whose answers depend on what it computes
                together forms its batches of these, so that it says the same after an interruption.

        Raises:
            InputError: no further question can be answered.
        """


def make_judge(
    settings: VerifierJudge | LocalJudge | EndpointJudge | HumanJudge, principles: Sequence[Principle], spent: float
) -> Judge:
    """The judge that a recipe's section describes; models are loaded at the first question.

    Args:
        principles: whose verifiers may judge.
        spent: what this judge's earlier requests cost, which counts against its budget.
    """
    match settings:
        case VerifierJudge():
            from sami.evaluation.judges.verifier import Verifiers

            return Verifiers(settings.label, principles)
        case LocalJudge():
            from sami.evaluation.judges.local import Local

            return Local(settings)
        case EndpointJudge():
            from sami.evaluation.judges.endpoint import Endpoint

            return Endpoint(settings, spent)
        case HumanJudge():
            from sami.evaluation.judges.human import Human

            return Human(settings)
