"""Pairs, policies and a judge for tests of judging."""

from collections.abc import Callable, Sequence
from typing import Any

from sami.evaluation.judges import Judgement, Question, Record
from sami.evaluation.pairs import Item, Pair, Policy, Response


def item(number: int = 0, constitution: str = "Be brief.", **more: Any) -> Item:
    return Item(f"q{number}", f"What is {number}?", f"q{number}-brief/0", constitution, **more)


def pair(
    number: int = 0,
    candidate: str = "A short answer.",
    baseline: str = "An answer that goes on and on.",
    names: tuple[str, str] = ("iteration-1", "base"),
    **more: Any,
) -> Pair:
    responses = (Response(text, len(text.split())) for text in (candidate, baseline))
    return Pair(item(number, **more), *names, *responses)


def pairs(count: int) -> list[Pair]:
    """Pairs with different texts."""
    return [pair(n, f"Answer {n}.", f"Answer {n}, and more of it.") for n in range(count)]


def policy(name: str, texts: dict[Item, str]) -> Policy:
    return Policy(name, {one: Response(text, len(text.split())) for one, text in texts.items()})


class Scripted:
    """A judge that says what a function says, and remembers what it was asked."""

    def __init__(self, says: Callable[[Question], float | None], name: str = "scripted", version: int = 1) -> None:
        self.name = name
        self.says = says
        self.version = version
        self.asked: list[Question] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": "scripted", "version": self.version}

    def concerns(self, question: Question) -> bool:
        return True

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        for question in questions:
            self.asked.append(question)
            score = self.says(question)
            record(question, Judgement(score, "words", None if score is not None else "the answer is empty"))
