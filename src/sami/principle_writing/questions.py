"""Principles written by a model: small questions, each asked again until its answer passes.

    principles = write_principles(ask, task="summarizing Reddit posts", names=["concise", "comprehensive"])

`ask` is any function that answers questions with text, so nothing here knows where the writer runs. Models of 135M
parameters can answer these questions: one sentence at a time, with its first words given, and asked again with another
seed. Such a model cannot find an opposite, so a name may be given with its opposite: both sentences are then asked for
in the same way, after examples.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sami.errors import InputError, quoted
from sami.principle_writing.answers import (
    EXAMPLES,
    UnusableError,
    checked_antithesis,
    checked_definition,
    read_names,
    read_sentence,
)
from sami.principles import Principle
from sami.recipe.writing import checked_names, identifier, parted, too_few
from sami.text.leaks import content_words

ATTEMPTS = 16  # at each sentence, and at the list of names
NAMES = 4  # written if none are given

PROMPTS = {
    "names": "List styles in which a response can be written. Each style is one adjective.\n\n"
    "Task: writing birthday cards\nStyles: cheerful, personal, rhyming, brief\n\n"
    "Task: explaining machines\nStyles: technical, simple, vivid, thorough\n\n"
    "Task: {task}",
    "definition": "The task is {task}. In one short sentence, say what a response must do to be {name}.",
    "antithesis": "The task is {task}. In one short sentence, say what a response must do to be the opposite of "
    "{name}.",
    "style": "Someone is {task}. In one sentence, say what responses of a style are like.\n\n"
    + "".join(f"Style: {name}\n{sentence}\n\n" for name, sentence in EXAMPLES.items())
    + "Style: {name}",
}
OPENINGS = {
    "names": "Styles:",
    "definition": "Responses should",
    "antithesis": "Instead of being {name}, responses should",
    "style": "Responses should",
}

Kind = Literal["names", "definition", "antithesis"]


@dataclass(frozen=True)
class Question:
    """One request to a writer."""

    kind: Kind
    name: str
    """Name of the principle in question; empty for "names"."""
    prompt: str
    opening: str
    """Words that the answer must start with. A local writer is forced to, a served one is instructed to."""
    seed: int


Ask = Callable[[Sequence[Question]], Sequence[str]]
"""Answers questions with texts, each starting with its opening, in the same order."""


def write_principles(
    ask: Ask, task: str, names: Sequence[str] | None = None, seed: int = 0, *, count: int = NAMES
) -> list[Principle]:
    """Have a definition and an antithesis written for each name.

    Args:
        ask: the writer.
        task: what the responses do, such as "summarizing Reddit posts".
        names: of the principles, at least two, each alone or with its opposite, as in "military/romantic"; None has
            the writer choose them.
        seed: of sampling. Each attempt at an answer has a seed of its own, and no two values of this share one.
        count: how many names to choose if none are given.

    Raises:
        InputError: names that cannot be used, or a writer whose answers cannot be used after 16 attempts each.
    """
    task = " ".join(task.split()).rstrip(".")
    if not task:
        raise InputError("The task is empty. Say what the responses do, such as 'summarizing Reddit posts'.")
    wanted = count if names is None else len(names)
    if wanted < 2:
        raise InputError(too_few(wanted))
    # More names than needed, so that a name whose opposite the writer does not know costs nothing.
    given = _written_names(ask, task, count, seed) if names is None else checked_names(names)
    writing = _Writing(ask, task, dict(parted(name) for name in given), seed)
    for attempt in range(ATTEMPTS):
        writing.ask_for("definition", attempt)
        writing.ask_for("antithesis", attempt)
        if len(writing.antitheses) >= wanted:
            break
    complete = [name for name in writing.opposites if name in writing.antitheses][:wanted]
    if len(complete) < wanted:
        raise InputError(writing.failure(wanted))
    return [
        Principle(id=identifier(name), definition=writing.definitions[name], antithesis=writing.antitheses[name])
        for name in complete
    ]


def scripted(questions: Sequence[Question]) -> list[str]:
    """Answers that can always be used, without a model: for smoke runs and tests."""
    endings = {
        "definition": " be {name} from the first word to the last.",
        "antithesis": " hide all that could seem {name} and show no trace of it.",
        "names": " plain, vivid, formal, playful, patient, curious, gentle, bold",
    }
    return [q.opening + endings[q.kind].format(name=q.name) for q in questions]


@dataclass
class _Writing:
    """Sentences that were written so far, and why others could not be used."""

    ask: Ask
    task: str
    opposites: dict[str, str | None]
    """By the name of each principle, the name of its opposite if it was given."""
    seed: int
    definitions: dict[str, str] = field(default_factory=dict)
    antitheses: dict[str, str] = field(default_factory=dict)
    unusable: dict[tuple[Kind, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def ask_for(self, kind: Kind, attempt: int) -> None:
        """Ask for a sentence about each name that lacks one, and keep those that can be used."""
        if kind == "definition":
            about = [name for name in self.opposites if name not in self.definitions]
        else:
            about = [name for name in self.definitions if name not in self.antitheses]
        asked = [self._question(kind, name, attempt) for name in about]
        for question, answer in zip(asked, self.ask(asked) if asked else [], strict=True):
            try:
                self._take(question, read_sentence(answer, question.opening))
            except UnusableError as error:
                self.unusable[kind, question.name].append(f"{error} ({quoted(answer)})")

    def _question(self, kind: Kind, name: str, attempt: int) -> Question:
        asked: str = kind
        about = name
        if opposite := self.opposites[name]:  # the opposite of a name is the style of its opposite's name
            asked, about = "style", opposite if kind == "antithesis" else name
        prompt, opening = (texts[asked].format(task=self.task, name=about) for texts in (PROMPTS, OPENINGS))
        return Question(kind, name, prompt, opening, ATTEMPTS * self.seed + attempt)

    def _take(self, question: Question, sentence: str) -> None:
        name = question.name
        if question.kind == "definition":
            self.definitions[name] = checked_definition(sentence, name, self.definitions)
            return
        if opposite := self.opposites[name]:
            checked_definition(sentence, opposite, self.definitions)
        self.antitheses[name] = checked_antithesis(sentence, name, self.definitions[name], self.antitheses)

    def failure(self, wanted: int) -> str:
        """Which principles are missing and why, as a message."""
        lines = [
            f"The writer wrote {len(self.antitheses)} of {wanted} principles, with {ATTEMPTS} attempts at each. The "
            f"others failed:"
        ]
        for name in self.opposites:
            if name not in self.antitheses:
                kind: Kind = "antithesis" if name in self.definitions else "definition"
                lines.append(f"- the last {kind} of {name!r} cannot be used: {self.unusable[kind, name][-1]}")
        lines.append(
            "Nothing was written. Give other names or another seed, choose a stronger writer, or write the file "
            "yourself."
        )
        return "\n".join(lines)


def _written_names(ask: Ask, task: str, count: int, seed: int) -> list[str]:
    """Up to twice as many names as asked for, so that one that the writer cannot define costs nothing."""
    found: dict[str, str] = {}  # by stem: concise and concisely are the same name
    taken = content_words(PROMPTS["names"])
    problems: list[str] = []
    prompt = PROMPTS["names"].format(task=task)
    for attempt in range(ATTEMPTS):
        question = Question("names", "", prompt, OPENINGS["names"], ATTEMPTS * seed + attempt)
        [answer] = ask([question])
        try:
            for name in read_names(answer, question.opening):
                stem = min(content_words(name), default="")
                if stem and stem not in taken:
                    found.setdefault(stem, name)
        except UnusableError as error:
            problems.append(f"{error} ({quoted(answer)})")
        if len(found) >= 2 * count:
            break
    if len(found) < count:
        last = f"The last answer that could not be used: {problems[-1]}. " if problems else ""
        raise InputError(
            f"The writer named {len(found)} styles in {ATTEMPTS} attempts ({', '.join(found.values()) or 'none'}), but "
            f"you asked for {count}. {last}Give the names with --names, or choose a stronger writer."
        )
    return list(found.values())[: 2 * count]
