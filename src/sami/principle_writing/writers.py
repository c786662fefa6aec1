"""Models that answer a principle writer's questions: in this process, or at a server."""

import asyncio
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from sami.console import say
from sami.errors import InputError
from sami.principle_writing.questions import Ask, Question, scripted
from sami.recipe import EndpointWriter, LocalWriter, ScriptedWriter

MOST_NEW_TOKENS = 64  # of one answer


def make_ask(settings: LocalWriter | EndpointWriter | ScriptedWriter) -> Ask:
    """The writer that a section describes; a local model is loaded when it is first asked."""
    match settings:
        case LocalWriter():
            return Local(settings)
        case EndpointWriter():
            return Served(settings)
        case ScriptedWriter():
            return scripted


class Local:
    """A causal language model in this process, which starts each answer with its opening.

    It is prompted through its chat template if it has one. An answer ends with its first line or sentence.
    """

    def __init__(self, settings: LocalWriter) -> None:
        self._settings = settings

    @cached_property
    def _engine(self) -> Any:
        from sami.generation.transformers_engine import TransformersEngine
        from sami.models import devices, loading

        say(f"loading the writer {self._settings.label}")
        model = loading.load_model(self._settings.model, devices.resolve_dtype(self._settings.model.dtype))
        return TransformersEngine(model, self._tokenizer, self._settings.batch_size)

    @cached_property
    def _tokenizer(self) -> Any:
        from sami.models import loading

        return loading.load_tokenizer(self._settings.model)

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        from sami.generation import SamplingSettings

        settings = SamplingSettings(
            max_new_tokens=MOST_NEW_TOKENS,
            temperature=self._settings.temperature,
            top_p=0.9,
            stop=["\n", ". "],
            seed=questions[0].seed,
        )
        completions = self._engine.generate([self._ids(question) for question in questions], settings)
        return [
            question.opening + completion.text + self._full_stop(completion.text, completion.finish_reason)
            for question, completion in zip(questions, completions, strict=True)
        ]

    def _ids(self, question: Question) -> list[int]:
        from sami.prompts import question_prompt

        return question_prompt(self._tokenizer, question.prompt, question.opening)

    @staticmethod
    def _full_stop(text: str, finish_reason: str) -> str:
        """The full stop that ended the generation, which its text lacks."""
        return "." if finish_reason == "stop" and text[-1:] not in tuple(".!?") else ""


class Served:
    """A server that speaks the OpenAI chat protocol, instructed how to start its answers."""

    def __init__(self, settings: EndpointWriter) -> None:
        from sami.chat_client import Chat

        self._settings = settings
        self._chat = Chat(settings, f"the writer {settings.model}")

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        try:
            return asyncio.run(self._ask_all(questions))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _ask_all(self, questions: Sequence[Question]) -> list[str]:
        free = asyncio.Semaphore(self._settings.concurrency)

        async def answer(question: Question) -> str:
            async with free:
                return await self._ask(question)

        async with self._chat, asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(question)) for question in questions]
        return [task.result() for task in tasks]

    async def _ask(self, question: Question) -> str:
        from sami.chat_client import UNANSWERED, StatusError

        text = f'{question.prompt}\n\nAnswer with one line that starts with "{question.opening}", and nothing else.'
        s = self._settings
        try:
            completion = await self._chat.complete(
                text, temperature=s.temperature, seed=question.seed, max_tokens=s.max_tokens
            )
        except InputError:
            raise
        except UNANSWERED as error:
            end = self._chat.end(error) if isinstance(error, StatusError) else None
            raise end or InputError(
                f"The writer {s.model} at {s.url} did not answer: {self._chat.explain(error)}. Run the same command "
                f"again, or change the settings of the writer."
            ) from None
        words, refusal = self._chat.answer(completion)
        return words or refusal or ""  # a refusal is an answer that cannot be used: it is quoted, and asked again
