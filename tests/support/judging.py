"""Principles, pairs, policies and a judge for tests of judging."""

from collections.abc import Callable, Sequence
from typing import Any

from sami.evaluation.judges import Judge, Judgement, Question, Record
from sami.evaluation.pairs import Item, Pair, Policy, Response
from sami.principles import Principle

BRIEF = Principle(id="brief", definition="Be brief.", antithesis="Be long.", verifier={"check": "word_count", "max": 3})
KIND = Principle(id="kind", definition="Be kind.", antithesis="Be stern.", held_out=True)


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


def said(judge: Judge, questions: list[Question]) -> dict[tuple[str, str], Judgement]:
    """What a judge answers, by query and order, to the questions that concern it."""
    found: dict[tuple[str, str], Judgement] = {}
    asked = [q for q in questions if judge.concerns(q)]
    judge.judge(asked, lambda q, j: found.update({(q.pair.item.query_id, q.order): j}), asked)
    return found


class Scripted(Judge):
    """A judge that answers what a function returns, and remembers what it was asked."""

    def __init__(self, says: Callable[[Question], float | None], name: str = "scripted", version: int = 1) -> None:
        self.name = name
        self.says = says
        self.version = version
        self.asked: list[Question] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": "scripted", "version": self.version}

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        for question in questions:
            self.asked.append(question)
            score = self.says(question)
            record(question, Judgement(score, "words", None if score is not None else "the answer is empty"))
