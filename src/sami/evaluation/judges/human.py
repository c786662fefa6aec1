"""Verdicts of people, imported from a file: one JSON object a line.

    {"query_id": "q1", "constitution_id": "q1-brief/0", "candidate": "iteration-1", "baseline": "base", "score": 1}

A line of `verdicts.jsonl`, as the page of a run saves it, will do: what else it says is left aside.
`score` is 1 where the candidate is better, 0 where the baseline is, 0.5 for a tie. `constitution_id` and
`order` may be left out: the line then stands for every constitution or order of the pair.
"""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sami.errors import InputError
from sami.evaluation.judges import Judgement, Question, Record
from sami.evaluation.verdicts import Verdict
from sami.recipe import HumanJudge


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    query_id: str
    candidate: str
    baseline: str
    score: float
    constitution_id: str | None = None
    order: Literal["candidate_first", "baseline_first"] | None = None
    note: str | None = None
    """Kept as the judge's words."""

    @field_validator("score")
    @classmethod
    def _one_of_three(cls, score: float) -> float:
        if score not in (0, 0.5, 1):
            raise ValueError(f"a score is 0, 0.5 or 1, and this one is {score}")
        return score

    def about(self, question: Question) -> bool:
        pair = question.pair
        return (
            (self.query_id, self.candidate, self.baseline) == (pair.item.query_id, pair.candidate, pair.baseline)
            and self.constitution_id in (None, pair.item.constitution_id)
            and self.order in (None, question.order)
        )


_ASIDE = {field.name for field in fields(Verdict)} - set(_Line.model_fields)


class Human:
    """Says what the file says, and nothing of pairs that it does not hold.

    Raises:
        InputError: the file cannot be read, or a line is not a verdict.
    """

    def __init__(self, settings: HumanJudge) -> None:
        self.name = settings.label
        self._file = Path(settings.path)
        try:
            self._text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The verdicts of people in {self._file} cannot be read: {error}.") from None
        self._lines = [
            (number, self._parse(number, line))
            for number, line in enumerate(self._text.split("\n"), start=1)
            if line.strip()
        ]

    def identity(self) -> dict[str, Any]:
        return {"kind": "human", "verdicts": self._text}

    def concerns(self, question: Question) -> bool:
        return any(line.about(question) for _, line in self._lines)

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        for question in questions:
            said = {number: line for number, line in self._lines if line.about(question)}
            if len({line.score for line in said.values()}) > 1:
                first, second, *_ = said
                raise InputError(f"Lines {first} and {second} of {self._file} contradict each other.")
            line = next(iter(said.values()))
            record(question, Judgement(line.score, line.note))

    def _parse(self, number: int, line: str) -> _Line:
        try:
            value = json.loads(line)
            if isinstance(value, dict):
                value = {key: one for key, one in value.items() if key not in _ASIDE}
            return _Line.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"
        except ValueError as error:
            reason = f"not valid JSON ({error})"
        raise InputError(
            f"Line {number} of {self._file} is no verdict ({reason}). A line holds query_id, candidate, baseline and "
            f"score (0, 0.5 or 1), and may hold constitution_id, order and note."
        )
