"""The judge interface: a judge compares two responses to one query under one constitution, read in one order.

A new judge is a file in this folder with a subclass of `Judge`, a line in `JUDGES`, and a section in
`sami.recipe.judging` for its settings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar, Literal

from sami.evaluation.pairs import Pair
from sami.evaluation.verdicts import Order
from sami.principles import Principle
from sami.recipe import Judge as Settings
from sami.recipe import Model

# The class of each kind of judge. They are imported when needed: one needs an extra, another one loads torch.
JUDGES = {
    "verifier": "sami.evaluation.judges.verifier:Verifiers",
    "local": "sami.evaluation.judges.local:Local",
    "endpoint": "sami.evaluation.judges.endpoint:Endpoint",
    "human": "sami.evaluation.judges.human:Human",
}

# A judgement whose reason starts like this was never answered, and the next call asks for it again.
NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Question:
    """A pair in the order in which a judge reads it: response A comes first."""

    pair: Pair
    order: Order

    @property
    def responses(self) -> tuple[str, str]:
        """(A, B)."""
        pair = (self.pair.candidate_response.text, self.pair.baseline_response.text)
        return pair if self.order == "candidate_first" else (pair[1], pair[0])

    def score(self, label: Literal["A", "B", "tie"]) -> float:
        """The candidate's score if the judge prefers A, B or neither."""
        if label == "tie":
            return 0.5
        return float((label == "A") == (self.order == "candidate_first"))


@dataclass(frozen=True)
class Usage:
    """What one answered request took."""

    model: str
    """The model version that the server reports."""
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """In the currency of the judge's prices; None without prices."""
    adapted: Mapping[str, str | None] = field(default_factory=dict)
    """Parameters that the server refused, each with the name it was sent under instead; None: not sent."""


@dataclass(frozen=True)
class Judgement:
    """A judge's answer to one question: the candidate's score, or the reason why there is none."""

    score: float | None
    raw: str | None = None
    reason: str | None = None
    usage: Usage | None = None


Record = Callable[[Question, Judgement], None]


@dataclass(frozen=True)
class Given:
    """What a judge may need in addition to its settings."""

    principles: Sequence[Principle] = ()
    """Principles whose verifiers may judge."""
    spent: float = 0.0
    """Cost of this judge's earlier requests, which counts against its budget."""
    date: str | None = None
    """YYYY-MM-DD that chat templates see as today; None for the real date."""


NOTHING_MORE = Given()


class Judge(ABC):
    """Compares responses.

    Args:
        settings: the judge's section of the recipe.
        given: what the judge may need in addition.

    Raises:
        InputError: the judge cannot work with these settings.
    """

    needs_calibration: ClassVar[bool] = False
    """Whether its accuracy is unknown, and measured on pairs with a known answer before it is asked."""
    needs_principles: ClassVar[bool] = False
    """Whether it can only judge constitutions that are made of known principles."""
    model_to_check: Model | None = None
    """A model that it will load, so that a missing one is reported before anything is generated."""

    name: str
    """The judge's name in verdicts."""

    @abstractmethod
    def __init__(self, settings: Any, given: Given = NOTHING_MORE) -> None: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything except the question that a verdict depends on, as JSON values."""

    @abstractmethod
    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        """Call `record` once for each question as soon as it is answered, in any order.

        Args:
            questions: questions that concern this judge.
            among: these questions and the ones that were answered before. A judge whose answers depend on what it
                computes together forms its batches from these, so that an interruption does not change its answers.

        Raises:
            InputError: no further question can be answered.
        """

    def concerns(self, question: Question) -> bool:
        """Whether the judge can answer a question."""
        return True

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise InputError if the judge cannot be asked about these pairs. Called once, before the first question."""
        return


def judge_class(kind: str) -> type[Judge]:
    """The class behind a kind of `JUDGES`."""
    module, _, name = JUDGES[kind].partition(":")
    found: type[Judge] = getattr(import_module(module), name)
    return found


def make_judge(settings: Settings, given: Given = NOTHING_MORE) -> Judge:
    """The judge that a section of a recipe describes; models are loaded at the first question.

    Raises:
        InputError: the judge cannot work with these settings.
    """
    return judge_class(settings.kind)(settings, given)
