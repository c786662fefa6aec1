"""Prompts that are read back before a run: does the model see all that it was asked?

    check = PromptCheck(prompts, "org/model")
    ids = check("Why is the sky blue?", [brief, long])

Tokenizers and chat templates of strangers drop turns, cut texts and treat different texts alike, and say nothing.
"""

from collections.abc import Sequence
from typing import Protocol

from sami.errors import InputError
from sami.prompts.builder import PromptBuilder
from sami.queries import Asked
from sami.queries.conversation import as_conversation


class Stated(Protocol):
    """A constitution: the texts of its principles, and the text that states them together."""

    @property
    def texts(self) -> list[str]: ...
    @property
    def text(self) -> str: ...


class PromptCheck:
    """Checks the prompts of one run, each text at its first occurrence and in the longest prompts.

    Args:
        model: the name of the model, for messages.
    """

    def __init__(self, prompts: PromptBuilder, model: str) -> None:
        self._prompts = prompts
        self._model = model
        self._seen: set[Asked] = set()
        self._longest = 0

    def __call__(self, query: Asked, constitutions: Sequence[Stated]) -> list[list[int]]:
        """The generation prompts of a query under some constitutions.

        Raises:
            InputError: a prompt lacks a turn of the query, a principle or the system text, or two prompts are the same.
        """
        try:
            generation = [self._prompts.generation_prompt(query, c.texts, c.text) for c in constitutions]
        except InputError as error:
            if isinstance(query, str):
                raise
            raise InputError(f"{error} The conversation ends with {_shortened(query.last)!r}.") from None
        texts = {query, *(text for c in constitutions for text in c.texts)}
        longest = max(map(len, generation), default=0)
        kinds = {"generation": generation}
        if longest > self._longest or not texts <= self._seen:
            kinds["training"] = [self._prompts.training_prompt(query, c.texts, c.text) for c in constitutions]
            for kind, made in kinds.items():
                for ids, c in zip(made, constitutions, strict=True):
                    self._require_shown(kind, ids, query, c)
            self._seen |= texts
            self._longest = max(longest, self._longest)
        for made in kinds.values():
            self._require_different(made, query, constitutions)
        return generation

    def _require_shown(self, kind: str, ids: list[int], query: Asked, constitution: Stated) -> None:
        prompt = self._decoded(ids)
        system = self._prompts.system_text(query, constitution.texts, constitution.text)
        wanted = [("the system text", system)] if self._prompts.wants_system else []
        asked = as_conversation(query)
        wanted += [("the system turn", asked.system)] if asked.system else []
        wanted += [(f"the earlier {turn.role} turn", turn.content) for turn in asked.earlier]
        wanted += [("the query", asked.last), *(("the principle", text) for text in constitution.texts)]
        for name, text in wanted:
            if not all(_occurs(line, prompt) for line in self._read_back(text).splitlines()):
                raise InputError(
                    f"The {kind} prompt of {self._model} does not show {name} {_shortened(text)!r} to the model. "
                    f"{self._advice(name)}"
                )

    def _require_different(self, prompts: list[list[int]], query: Asked, constitutions: Sequence[Stated]) -> None:
        known: dict[tuple[int, ...], Stated] = {}
        for ids, constitution in zip(prompts, constitutions, strict=True):
            other = known.setdefault(tuple(ids), constitution)
            if other.text != constitution.text:
                raise InputError(
                    f"Two constitutions give the same prompt of {self._model} for the query "
                    f"{_shortened(str(query))!r}: {_shortened(other.text)!r} and {_shortened(constitution.text)!r}. "
                    f"The chat template or the tokenizer drops what they differ in, so the responses could not differ "
                    f"either. Use prompt.style=plain, or another model."
                )

    def _read_back(self, text: str) -> str:
        """The text as this tokenizer gives it back, which may be without what it has no tokens for."""
        ids = self._prompts.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._decoded(list(ids))

    def _decoded(self, ids: list[int]) -> str:
        tokenizer = self._prompts.tokenizer
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _advice(self, name: str) -> str:
        if name == "the system text" and not self._prompts.chat:
            return "Put {{ system }} into the templates of the recipe's prompt section, or remove prompt.system."
        if name == "the system text":
            return (
                "Its chat template leaves out the system turn. Remove prompt.system and prompt.constitution_in, or put "
                "{{ system }} into prompt.generation_template, which places the text in the user's turn."
            )
        if name == "the system turn":
            return (
                "It leaves out the system turn of a conversation. Put {{ system }} into the templates of the recipe's "
                "prompt section, which places the text in the user's turn, or remove the system turns from the queries."
            )
        return (
            "The chat template leaves it out, or the tokenizer cuts prompts short. Use prompt.style=plain, or correct "
            "the template or the tokenizer and save it again."
        )


def _occurs(line: str, prompt: str) -> bool:
    """Compare letters and digits alone: templates trim white space and full stops, and escape quotation marks."""
    letters = _letters(line)
    return letters in _letters(prompt) if letters else "".join(line.split()) in "".join(prompt.split())


def _letters(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
