"""Principles, and the constitutions made of them."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sami.console import say_once, visible
from sami.errors import MOST_QUOTED, InputError, one_line, quoted
from sami.files import cut_values, parse_yaml, read_text
from sami.text.languages import ENGLISH, language_of
from sami.text.verifiers import Negate, VerifierSpec

BANK = Path(__file__).parent / "recipes" / "principles"


class Principle(BaseModel):
    """A behavior in one sentence, with the sentence that asks for its opposite."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    id: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    definition: str = Field(min_length=1)
    antithesis: str = Field(min_length=1)
    verifier: VerifierSpec | None = None
    """Decides whether a response follows the definition."""
    antithesis_verifier: VerifierSpec | None = None
    """Decides whether a response follows the antithesis; by default, whether `verifier` fails."""
    held_out: bool = False
    """Evaluated, never trained on."""

    @model_validator(mode="after")
    def _opposed(self) -> Self:
        if " ".join(self.definition.casefold().split()) == " ".join(self.antithesis.casefold().split()):
            raise ValueError("the antithesis is the definition itself; write what its opposite asks for")
        if self.antithesis_verifier and not self.verifier:
            raise ValueError("an antithesis_verifier needs a verifier beside it")
        english = {name for one in (self.verifier, self.antithesis_verifier) if one for name in one.english_checks()}
        if english and language_of(f"{self.definition}\n{self.antithesis}") != ENGLISH:
            raise ValueError(
                f"the check {min(english)} knows English only, and the principle is in another language; use another "
                f"check"
            )
        return self

    def text(self, positive: bool) -> str:
        return self.definition if positive else self.antithesis

    def follows(self, response: str, positive: bool) -> bool | None:
        """Whether a response does what the definition (or the antithesis) asks; None without a verifier."""
        if self.verifier is None:
            return None
        if positive:
            return self.verifier.passes(response)
        if self.antithesis_verifier is not None:
            return self.antithesis_verifier.passes(response)
        return Negate(spec=self.verifier).passes(response)


@dataclass(frozen=True)
class Constitution:
    """Principles with a polarity each, in the order in which a prompt lists them."""

    principles: tuple[tuple[Principle, bool], ...]

    @property
    def texts(self) -> list[str]:
        """What each principle asks for, in order."""
        return [principle.text(positive) for principle, positive in self.principles]

    @property
    def text(self) -> str:
        """One principle is given as it is; several are numbered."""
        if len(self.texts) == 1:
            return self.texts[0]
        return "\n".join(f"{number}. {text}" for number, text in enumerate(self.texts, start=1))

    @property
    def key(self) -> frozenset[tuple[str, bool]]:
        """What it asks for, whatever the order."""
        return frozenset((principle.id, positive) for principle, positive in self.principles)

    def shuffled(self, rng: random.Random) -> "Constitution":
        return Constitution(tuple(rng.sample(self.principles, len(self.principles))))


def load_principles(path: str | Path) -> list[Principle]:
    """Read and check a principles file: a YAML list, or a mapping with the list under `principles`.

    Raises:
        InputError: missing or malformed file, a principle without antithesis, duplicate ids, none to learn.
    """
    file = Path(path)
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in BANK.glob("*.yaml")))
        raise InputError(
            f"The principles file {file} does not exist. Give a path relative to the recipe, or one of the names that "
            f"come with sami: {names}."
        )
    place = f"The principles file {file}"
    text = read_text(file, place)
    raw: Any = parse_yaml(text, place)
    _warn_of_cut_sentences(text, file)
    entries = raw.get("principles") if isinstance(raw, dict) else raw
    if not isinstance(entries, list) or not entries:
        raise InputError(
            f"{file} is not a principles file: it has no list of principles. Write a list in which each has id, "
            f"definition and antithesis."
        )
    principles = [_read(entry, number, file) for number, entry in enumerate(entries, start=1)]
    repeated = [name for name, count in Counter(p.id for p in principles).items() if count > 1]
    if repeated:
        raise InputError(f"The principles file {file} uses the id {repeated[0]!r} twice. Ids must be distinct.")
    if all(p.held_out for p in principles):
        raise InputError(
            f"Every principle in {file} is held out, which leaves none to train on. Remove `held_out` from at least "
            f"one."
        )
    return principles


def _warn_of_cut_sentences(text: str, file: Path) -> None:
    for cut in cut_values(text):
        if cut.key in ("definition", "antithesis"):
            say_once(
                f"warning: line {cut.line} of {file}: YAML reads {quoted(cut.comment)} as a comment, so the {cut.key} "
                f"ends with {quoted(cut.value[-40:])}. If the comment belongs to the sentence, put the whole sentence "
                f"in quotation marks."
            )


def _read(entry: Any, number: int, file: Path) -> Principle:
    given = entry.get("id") if isinstance(entry, dict) else None
    name = visible(given) if isinstance(given, str) and 0 < len(given) <= MOST_QUOTED else f"number {number}"
    if isinstance(entry, dict) and not entry.get("antithesis"):
        raise InputError(
            f"Principle {name} in {file} has no antithesis. SAMI learns from the contrast between a principle "
            f"and its opposite: write the sentence that asks for the opposite behavior."
        )
    try:
        return Principle.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = visible(".".join(str(part) for part in first["loc"]))[:MOST_QUOTED]
        reason = one_line(first["msg"].removeprefix("Value error, "))
        raise InputError(f"Principle {name} in {file} cannot be used. {where or 'It'}: {reason}.") from None
