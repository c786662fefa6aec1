"""`sami try`: the base model and a trained model asked the same question, and which constitution each answer fits.

    trial = Trial("runs/quickstart")
    told = trial.ask("Why is the sky blue?", trial.principles(["pirate"]))
    print(told.answers[1].text, told.answers[1].fit["base"])

The fit of an answer is its log-probability under the constitution minus that under the opposite, in nats per
token. It is positive for an answer that is more likely under the constitution that was asked for.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sami.contrasts import Contrast, collate
from sami.errors import InputError, quoted
from sami.files import parse_json
from sami.generation import Completion, SamplingSettings
from sami.generation.reasoning import answer_alone
from sami.generation.transformers_engine import TransformersEngine
from sami.loop.context import Run
from sami.loop.directory import BASE, policy_name
from sami.models import structure
from sami.principles import Constitution, Principle
from sami.queries import Asked
from sami.queries.conversation import as_conversation, messages_of
from sami.queries.formats import conversation_of
from sami.scoring.logprobs import logprob_matrix


@dataclass(frozen=True)
class Wording:
    """A constitution as a prompt states it; an empty text means no constitution."""

    principles: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Choice:
    """The constitution to answer under, and the one to contrast it with."""

    constitution: Wording
    opposite: Wording


@dataclass(frozen=True)
class Answer:
    """One policy's answer, and apart from it the reasoning before it, which is shown and never scored.

    `tokens` counts the answer alone. `fit` is, for each policy that scored it, its log-prob under the constitution
    minus that under the opposite, in nats per token.
    """

    policy: str
    text: str
    tokens: int
    finish_reason: str
    fit: dict[str, float]
    reasoning: str = ""


@dataclass(frozen=True)
class Told:
    """A query with the answers of base and the trained policy."""

    query: str
    """The text of all turns, of a conversation."""
    constitution: str
    opposite: str
    answers: tuple[Answer, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


OnText = Callable[[str, str], None]  # policy, what it has written so far


def of_text(text: str, opposite: str = "") -> Choice:
    """A constitution in your own words, contrasted with another one or, by default, with the bare query.

    Raises:
        InputError: the text is empty.
    """
    if not text.strip():
        raise InputError("The constitution is empty. Write a sentence that asks for a behavior, or name a principle.")
    return Choice(_worded(text), _worded(opposite))


def of_principles(known: Sequence[Principle], definitions: Sequence[str], antitheses: Sequence[str] = ()) -> Choice:
    """A constitution of principles by id, contrasted with the one that inverts each of them.

    Args:
        known: principles of the run.
        definitions: ids of principles to follow.
        antitheses: ids of principles whose antithesis to follow.

    Raises:
        InputError: an id that no principle has, or one that is given twice.
    """
    named = [*((name, True) for name in definitions), *((name, False) for name in antitheses)]
    ids = [name for name, _ in named]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise InputError(f"You named the principle {quoted(repeated[0])} twice. Name each principle once.")
    chosen = tuple((principle_called(known, name), positive) for name, positive in named)
    asked, turned = Constitution(chosen), Constitution(tuple((p, not positive) for p, positive in chosen))
    return Choice(*(Wording(tuple(one.texts), one.text) for one in (asked, turned)))


def principle_called(known: Sequence[Principle], name: str) -> Principle:
    for principle in known:
        if principle.id == name:
            return principle
    ids = [principle.id for principle in known]
    near = difflib.get_close_matches(name, ids, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"The principles of this run are {', '.join(ids)}."
    raise InputError(f"There is no principle {quoted(name)}. {hint}")


def conversation_in(file: Path, query: str | None = None) -> Asked:
    """What the messages of a JSON file ask, as a list or as the `messages` of an object.

    Args:
        query: the next user turn; by default the last user turn of the file is to be answered.

    Raises:
        InputError: the file cannot be read, or does not hold a conversation.
    """
    try:
        value = parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Check the file and its permissions.") from None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list):
        raise InputError(
            f"{file} is not a conversation. Give a list of messages with `role` and `content`, or an object with such "
            "a list under `messages`."
        )
    added = [] if query is None else [{"role": "user", "content": query}]
    return conversation_of(str(file), "messages", [*messages, *added])


class Trial:
    """Base and one trained policy of a run, loaded to answer questions.

    Args:
        run: folder of a run.
        iteration: which trained model; by default the last one.
        max_new_tokens: longest answer; by default as in the run.

    Raises:
        InputError: not a run folder, no trained model, or weights that cannot be loaded.
    """

    def __init__(self, run: str | Path, iteration: int | None = None, max_new_tokens: int | None = None) -> None:
        self.run = Run.open(run)
        chosen = self.run.iteration(iteration)
        self.policies = {policy_name(number): self.run.load(number) for number in (0, chosen)}
        self.known = self.run.principles
        self._new = max_new_tokens or self.run.recipe.generation.max_new_tokens

    @property
    def policy(self) -> str:
        """Name of the trained policy."""
        return next(name for name in self.policies if name != BASE)

    def principles(self, definitions: Sequence[str], antitheses: Sequence[str] = ()) -> Choice:
        """A constitution of the run's principles; see `of_principles`."""
        return of_principles(self.known, definitions, antitheses)

    def ask(self, query: Asked, choice: Choice, on_text: OnText = lambda policy, text: None) -> Told:
        """Answers of base and of the trained policy, greedy unless the recipe of the run samples.

        Args:
            on_text: called with a policy's name and what it has written so far, reasoning included, after each token.

        Raises:
            InputError: an empty query, or a prompt that leaves no room for an answer.
        """
        if not as_conversation(query).last.strip():
            raise InputError("The query is empty. Give a question.")
        prompt = self._room(self._prompt(query, choice.constitution, train=False))
        completions = {name: self._answer(name, prompt, partial(on_text, name)) for name in self.policies}
        fits = self._fits(query, choice, list(completions.values()))
        return Told(
            str(query),
            choice.constitution.text,
            choice.opposite.text,
            tuple(
                Answer(
                    name,
                    one.text,
                    len(one.token_ids),
                    one.finish_reason,
                    {by: fit[at] for by, fit in fits.items()},
                    one.reasoning,
                )
                for at, (name, one) in enumerate(completions.items())
            ),
        )

    def _answer(self, policy: str, prompt: list[int], on_text: Callable[[str], None]) -> Completion:
        generation = self.run.recipe.generation
        settings = replace(SamplingSettings.of(generation, self.run.prompts), max_new_tokens=self._new)
        written = TransformersEngine(self.policies[policy], self.run.tokenizer).stream(prompt, settings, on_text)
        return answer_alone(written, prompt, self.run.prompts, generation.chain_of_thought)

    @torch.inference_mode()
    def _fits(self, query: Asked, choice: Choice, answers: Sequence[Completion]) -> dict[str, list[float]]:
        """For each policy, the fit of each answer: its log-prob difference in nats per token."""
        wordings = (choice.constitution, choice.opposite)
        contrast = Contrast(
            id="asked",
            query=str(query),
            constitutions=[wording.text for wording in wordings],
            prompt_ids=[self._prompt(query, wording, train=True) for wording in wordings],
            response_ids=[one.token_ids for one in answers],  # one for each policy rather than for each constitution
            responses=[one.text for one in answers],
            finish_reasons=[one.finish_reason for one in answers],
            principles=[[], []],
            messages=messages_of(query),
        )
        batch = collate([contrast], self.run.tokenizer.pad_token_id, share_prefix=False)
        fits = {}
        for name, model in self.policies.items():
            matrix_CR = logprob_matrix(model, batch.to(model.device))[0]
            fits[name] = (matrix_CR[0] - matrix_CR[1]).tolist()
        return fits

    def _prompt(self, query: Asked, wording: Wording, *, train: bool) -> list[int]:
        build = self.run.prompts.training_prompt if train else self.run.prompts.generation_prompt
        return build(query, list(wording.principles), wording.text)

    def _room(self, prompt: list[int]) -> list[int]:
        context = structure.context_length(self.policies[BASE].config)
        if context and len(prompt) + self._new > context:
            raise InputError(
                f"The prompt has {len(prompt)} tokens and the answer may have {self._new} more, but the context of the "
                f"model is {context} tokens. Ask something shorter, or lower --max-new-tokens."
            )
        return prompt


def _worded(text: str) -> Wording:
    return Wording((text.strip(),), text.strip()) if text.strip() else Wording((), "")
