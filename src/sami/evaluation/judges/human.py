"""Verdicts of people, read from a file with one JSON object per line.

    {"query_id": "q1", "constitution_id": "q1-brief/0", "candidate": "iteration-1", "baseline": "base", "score": 1}

A line of `verdicts.jsonl`, as a run's page saves it, also works: its other fields are ignored. `score` is 1 if the
candidate is better, 0 if the baseline is, and 0.5 for a tie. `constitution_id` and `order` are optional: without
them, the line holds for every constitution or order of the pair.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from sami.errors import InputError, quoted
from sami.evaluation.json_lines import read_objects
from sami.evaluation.judges import NOTHING_MORE, Given, Judge, Judgement, Question, Record
from sami.evaluation.pairs import Pair
from sami.evaluation.verdicts import Verdict
from sami.recipe import HumanJudge

Compared = tuple[str, str, str]  # query id, candidate, baseline


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    query_id: str
    candidate: str
    baseline: str
    score: float
    constitution_id: str | None = None
    order: Literal["candidate_first", "baseline_first"] | None = None
    note: str | None = None
    """Recorded as the judge's words."""

    @field_validator("query_id", mode="before")
    @classmethod
    def _number_is_an_id(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @field_validator("score")
    @classmethod
    def _one_of_three(cls, score: float) -> float:
        if score not in (0, 0.5, 1):
            raise ValueError(f"a score is 0, 0.5 or 1, and this one is {score}")
        return score

    @model_validator(mode="after")
    def _two_policies(self) -> Self:
        if self.candidate == self.baseline:
            raise ValueError(f"candidate and baseline are both {quoted(self.candidate)}")
        return self

    @property
    def compared(self) -> Compared:
        return self.query_id, self.candidate, self.baseline

    def covers(self, constitution_id: str | None, order: str | None) -> bool:
        """Whether it also speaks about a constitution and an order; None is any of them."""
        return (self.constitution_id is None or constitution_id in (None, self.constitution_id)) and (
            self.order is None or order in (None, self.order)
        )


_IGNORED = {field.name for field in fields(Verdict)} - set(_Line.model_fields)


class Human(Judge):
    """Answers what the file answers, and leaves all other pairs to other judges.

    Raises:
        InputError: the file cannot be read, a line is not a verdict, or two lines repeat or contradict each other.
    """

    def __init__(self, settings: HumanJudge, given: Given = NOTHING_MORE) -> None:
        self.name = settings.label
        self._file = Path(settings.path)
        self._lines: dict[Compared, list[tuple[int, _Line]]] = defaultdict(list)
        for number, value in read_objects(self._file, "verdicts of people in"):
            line = self._parse(number, value)
            for earlier, other in self._lines[line.compared]:
                self._refuse_repetition((earlier, other), (number, line))
            self._lines[line.compared].append((number, line))
        self._text = self._file.read_text(encoding="utf-8")

    def identity(self) -> dict[str, Any]:
        return {"kind": "human", "verdicts": self._text}

    def check(self, pairs: Sequence[Pair]) -> None:
        """Every line must be about one of the pairs: a misspelled name would otherwise remove verdicts unnoticed."""
        asked = defaultdict(set)
        for pair in pairs:
            asked[pair.item.query_id, pair.candidate, pair.baseline].add(pair.item.constitution_id)
        strays = [
            (number, line)
            for compared, lines in self._lines.items()
            for number, line in lines
            if not any(line.covers(constitution_id, None) for constitution_id in asked.get(compared, ()))
        ]
        if strays:
            number, line = min(strays, key=lambda stray: stray[0])
            constitution = f" under {quoted(line.constitution_id)}" if line.constitution_id is not None else ""
            count = sum(map(len, self._lines.values()))
            raise InputError(
                f"{len(strays)} of the {count} verdicts in {self._file} match none of the pairs that are compared. The "
                f"first one is line {number}: {quoted(line.candidate)} against {quoted(line.baseline)} on the query "
                f"{quoted(line.query_id)}{constitution}. Correct the names and ids, or remove the lines."
            )

    def concerns(self, question: Question) -> bool:
        return self._answer(question) is not None

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        for question in questions:
            line = self._answer(question)
            assert line is not None, "only questions that concern a judge are asked"
            record(question, Judgement(line.score, line.note))

    def _answer(self, question: Question) -> _Line | None:
        pair = question.pair
        lines = self._lines.get((pair.item.query_id, pair.candidate, pair.baseline), ())
        return next((line for _, line in lines if line.covers(pair.item.constitution_id, question.order)), None)

    def _refuse_repetition(self, one: tuple[int, _Line], other: tuple[int, _Line]) -> None:
        (first, before), (second, line) = one, other
        lines = f"Lines {first} and {second} of {self._file}"
        if before.covers(line.constitution_id, line.order) and before.score != line.score:
            raise InputError(f"{lines} contradict each other. Keep the one that is right.")
        if (before.constitution_id, before.order) == (line.constitution_id, line.order):
            raise InputError(
                f"{lines} repeat one verdict. Keep one of them; if two people judged, give each of them a file and a "
                f"judge in evaluation.judges."
            )

    def _parse(self, number: int, value: dict[str, Any]) -> _Line:
        try:
            return _Line.model_validate({key: one for key, one in value.items() if key not in _IGNORED})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            words = first["msg"].removeprefix("Value error, ")
            reason = f"{where}: {words[0].lower()}{words[1:]}" if where else words
            raise InputError(
                f"Line {number} of {self._file} is not a verdict ({reason:.300}). A line needs query_id, candidate, "
                f"baseline and score (0, 0.5 or 1), and may have constitution_id, order and note."
            ) from None
