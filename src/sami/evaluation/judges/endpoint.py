"""A server that speaks the OpenAI chat protocol as a judge.

The verdict is the likeliest label at the verdict's place in the answer if the server returns token log-probs, and
what the last verdict line says otherwise.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from sami.chat_client import CONTEXT_WORDS, UNANSWERED, Chat, Completion, StatusError
from sami.errors import InputError
from sami.evaluation.judges import NO_ANSWER, NOTHING_MORE, Given, Judge, Judgement, Question, Record, Usage
from sami.evaluation.judges.prompt import Label, prompt, read_verdict, template_id
from sami.recipe import EndpointJudge

ALTERNATIVES = 5  # token log-probs requested at each position: enough for three labels
GIVE_UP_AFTER = 5  # unanswered questions in a row


class Endpoint(Judge):
    """Asks several questions at a time, and stops before a question that its budget may not cover."""

    needs_calibration = True

    def __init__(self, settings: EndpointJudge, given: Given = NOTHING_MORE) -> None:
        self.name = settings.label
        self._settings = settings
        self._spent = given.spent
        self._reserved = 0.0
        self._unanswered = 0  # in a row
        self._answered = 0
        self._end: InputError | None = None
        self._chat = Chat(settings, f"the judge {self.name}")

    def identity(self) -> dict[str, Any]:
        s = self._settings
        sampling = {"temperature": s.temperature, "seed": s.seed, "max_tokens": s.max_tokens, "log_probs": s.log_probs}
        return {"kind": "endpoint", "url": s.url, "model": s.model, "template": template_id(), **sampling}

    def judge(self, questions: Sequence[Question], record: Record, among: Sequence[Question]) -> None:
        self._end = None
        try:
            asyncio.run(self._ask_all(iter(questions), record))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _ask_all(self, questions: Iterator[Question], record: Record) -> None:
        async def work() -> None:
            for question in questions:
                try:
                    judgement = await self._ask(question)
                except InputError as error:
                    self._end = self._end or error
                else:
                    record(question, judgement)
                    self._watch(judgement)
                if self._end:  # the other workers record what is in flight: it may have been paid for
                    return

        async with self._chat, asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(work())
        if self._end:
            raise self._end from None

    async def _ask(self, question: Question) -> Judgement:
        text = prompt(question)
        reserve = self._reserve(text)
        s = self._settings
        parameters: dict[str, Any] = {"temperature": s.temperature, "seed": s.seed, "max_tokens": s.max_tokens}
        if s.log_probs:
            parameters |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        try:
            completion = await self._chat.complete(text, lambda: self._end is None, **parameters)
        except StatusError as error:
            return self._explain(error, question)
        except InputError:
            raise
        except UNANSWERED as error:
            return Judgement(None, reason=f"{NO_ANSWER}: {self._chat.explain(error)}")
        finally:
            self._reserved -= reserve
        return self._read(completion, question)

    def _read(self, completion: Completion, question: Question) -> Judgement:
        choice, usage = completion.choices[0], self._usage(completion)
        self._spent += usage.cost or 0.0
        words, refusal = self._chat.answer(completion)
        if refusal is not None:
            return Judgement(None, words, refusal, usage)
        verdict = read_verdict(words, cut_off=choice.finish_reason == "length")
        if isinstance(verdict, str):
            return Judgement(None, words, verdict, usage)
        label, at = verdict
        return Judgement(question.score(_likeliest(choice, words, at) or label), words, usage=usage)

    def _usage(self, completion: Completion) -> Usage:
        used = getattr(completion, "usage", None)
        asked, answered = (getattr(used, name, None) or 0 for name in ("prompt_tokens", "completion_tokens"))
        version = str(getattr(completion, "model", None) or self._settings.model)
        if system := getattr(completion, "system_fingerprint", None):
            version += f" {system}"
        cost = self._cost(asked, answered)
        return Usage(self._chat.clean(version), asked, answered, cost, dict(self._chat.adapted))

    def _cost(self, asked: float, answered: float) -> float | None:
        s = self._settings
        if not s.prompt_price and not s.completion_price:
            return None
        return (asked * s.prompt_price + answered * s.completion_price) / 1e6

    def _reserve(self, text: str) -> float:
        """Set aside the maximum cost of a question; a token has at least one byte, and three on average.

        Raises:
            InputError: the budget may not cover it.
        """
        budget = self._settings.budget
        most = self._cost(len(text.encode()) / 3, self._settings.max_tokens) or 0.0
        if budget is not None and self._spent + self._reserved + most > budget:
            raise InputError(
                f"The judge {self.name} has spent {self._spent:.4g} of its budget of {budget:g}, and the next "
                f"question may cost {most:.2g}. All verdicts are kept: raise the judge's budget and run the same "
                f"command again to continue."
            )
        self._reserved += most
        return most

    def _explain(self, error: StatusError, question: Question) -> Judgement:
        """An unscored judgement, or the error to stop with if no other question would fare better."""
        words = self._chat.explain(error)
        if end := self._chat.end(error):
            raise end
        if error.status_code not in (400, 413, 422):
            return Judgement(None, reason=f"{NO_ANSWER}: {words}")
        if any(phrase in words.lower() for phrase in CONTEXT_WORDS):
            raise InputError(
                f"The question about the query {question.pair.item.query_id!r} with its constitution and responses "
                f"is longer than the context of the judge {self.name}: {words}. Use a judge with a longer context, or "
                f"shorter constitutions or queries."
            )
        if self._answered == 0:
            raise InputError(
                f"The server at {self._settings.url} refuses the request of the judge {self.name}: {words}. Change "
                f"the judge's settings to what the server accepts, or use another server."
            )
        return Judgement(None, reason=f"refused by the server: {words}")

    def _watch(self, judgement: Judgement) -> None:
        """Stop if the server seems to be gone."""
        if not (judgement.reason or "").startswith(NO_ANSWER):
            self._unanswered = 0
            self._answered += 1
            return
        self._unanswered += 1
        if self._unanswered >= GIVE_UP_AFTER:
            self._end = self._end or InputError(
                f"{self._unanswered} questions in a row to the judge {self.name} at {self._settings.url} were not "
                f"answered ({judgement.reason}). All verdicts are kept: run the same command again to continue."
            )


def _likeliest(choice: Any, answer: str, at: int) -> Label | None:
    """The label with the highest log-prob at a character of the answer; None without log-probs there."""
    tokens = getattr(getattr(choice, "logprobs", None), "content", None) or []
    if "".join(token.token for token in tokens) != answer:
        return None
    end = 0
    for token in tokens:
        end += len(token.token)
        if end > at:
            options = [(o.logprob, label) for o in token.top_logprobs if (label := _label(o.token))]
            return max(options)[1] if options else None
    return None


def _label(token: str) -> Label | None:
    text = token.strip(" \t*_`").lower()
    if text in ("a", "b"):
        return "A" if text == "a" else "B"
    return "tie" if text and "tie".startswith(text) else None
