"""Files of the reference implementation: constitution pairs, and contrasts as (prompt, response) pairs.

    pairs = read_constitutions([Path("constitutions/opus")])      # {"positive", "negative", "identifiers"}
    contrasts = read_contrasts(Path("contrasts.json"))            # {id: [{"prompt", "response", "example_id"}, …]}
    principles = opposed(pairs)

Their prompts open with a system line, list the constitution under a line that ends in "Constitution:", and close with
a human turn for an assistant or a post for a summary. Other prompts are refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sami.errors import InputError, quoted
from sami.files import parse_json, read_text, replacing, require_creatable
from sami.principles import Principle

_PROMPT = re.compile(
    r"\A.*?Constitution:[ ]*\n(?P<constitution>(?:[ ]*\d+\.[^\n]*\n)+)\n"
    r"(?:Human: (?P<query>.*)\n\nAssistant:|POST: (?P<post>.*)\n\nSummary:)\s*\Z",
    re.DOTALL,
)
_NUMBER = re.compile(r"\s*\d+\.\s*")


@dataclass(frozen=True)
class ConstitutionPair:
    """The statements of a positive and a negative constitution, in their order."""

    place: str
    positive: list[str]
    negative: list[str]
    names: tuple[list[str], list[str]] | None = None
    """The identifier of each statement without its "pos" or "neg"; None where the file has none."""


@dataclass(frozen=True)
class WrittenContrast:
    """A query with the statements of each constitution, and the response written under it."""

    id: str
    query: str
    constitutions: list[list[str]]
    responses: list[str]


def read_constitutions(sources: Iterable[Path]) -> list[ConstitutionPair]:
    """The pairs of constitution files, of folders of them, and of the prompts in files of contrasts.

    Raises:
        InputError: a file is missing or of neither format.
    """
    pairs: list[ConstitutionPair] = []
    for file in (file for source in sources for file in _json_files(source)):
        value = _read_json(file)
        if isinstance(value, dict) and {"positive", "negative"} <= value.keys():
            pairs.append(_pair(file, value))
        else:
            for contrast in _contrasts(file, value):
                first, *others = contrast.constitutions
                place = f"Contrast {contrast.id} of {file}"
                pairs += [ConstitutionPair(place, first, other) for other in others]
    return pairs


def read_contrasts(file: Path) -> list[WrittenContrast]:
    """The contrasts of a file, in its order.

    Raises:
        InputError: the file is missing, empty or of another format, or a prompt is not one of theirs.
    """
    return _contrasts(file, _read_json(file))


def opposed(pairs: Sequence[ConstitutionPair]) -> list[Principle]:
    """The principles that the pairs are made of: each positive statement with the negative one that replaces it.

    Statements are paired by identifiers where the files have them. Others are paired where two constitutions differ
    in one statement after all known opposites are set aside, until nothing more follows; such principles get numbers
    for ids.

    Raises:
        InputError: a statement has no opposite, has two, or cannot be part of a principle.
    """
    definitions = list(dict.fromkeys(statement for pair in pairs for statement in pair.positive))
    antitheses: dict[str, str] = {}
    names = _pair_by_name(pairs, antitheses)
    _pair_by_difference(pairs, antitheses)
    if alone := [statement for statement in definitions if statement not in antitheses]:
        raise InputError(
            f"These files do not show the opposite of the statement {quoted(alone[0])}. Each principle needs one. Add "
            f"the file of its negative constitution, or write the principles file by hand."
        )
    ids = [_id(names.get(statement, f"principle-{number}")) for number, statement in enumerate(definitions, start=1)]
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise InputError(f"The files call two different statements {repeated[0]!r}. Import them one folder at a time.")
    return [_principle(name, one, antitheses[one]) for name, one in zip(ids, definitions, strict=True)]


def _pair_by_name(pairs: Sequence[ConstitutionPair], antitheses: dict[str, str]) -> dict[str, str]:
    """Adds the antitheses that identifiers give; returns the identifier of each statement that has one."""
    names: dict[str, str] = {}
    for pair in pairs:
        if pair.names is None:
            continue
        negative = dict(zip(pair.names[1], pair.negative, strict=True))
        for name, statement in zip(pair.names[0], pair.positive, strict=True):
            if names.setdefault(statement, name) != name:
                raise InputError(
                    f"{pair.place} calls a statement {name!r} that another file calls {names[statement]!r}. Give one "
                    f"statement one identifier."
                )
            if name in negative and negative[name] != statement:
                _oppose(antitheses, statement, negative[name], pair.place)
    return names


def _pair_by_difference(pairs: Sequence[ConstitutionPair], antitheses: dict[str, str]) -> None:
    known = -1
    while known < len(antitheses):
        known = len(antitheses)
        for pair in pairs:
            mine = [s for s in pair.positive if s not in pair.negative and antitheses.get(s) not in pair.negative]
            theirs = [s for s in pair.negative if s not in pair.positive and s not in antitheses.values()]
            if len(mine) == len(theirs) == 1:
                _oppose(antitheses, mine[0], theirs[0], pair.place)


def write_principles(principles: Sequence[Principle], file: Path) -> None:
    """Write a principles file that a person can edit.

    Raises:
        InputError: the file exists or cannot be created.
    """
    if file.exists():
        raise InputError(f"The file {file} exists and is not overwritten. Give another --output, or remove it.")
    require_creatable(file)
    entries = [{name: getattr(p, name) for name in ("id", "definition", "antithesis")} for p in principles]
    with replacing(file) as temporary:
        temporary.write_text(yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=100), encoding="utf-8")


def _oppose(antitheses: dict[str, str], statement: str, opposite: str, place: str) -> None:
    if antitheses.setdefault(statement, opposite) != opposite:
        raise InputError(
            f"{place} opposes {quoted(opposite)} to {quoted(statement)}, and another file opposes "
            f"{quoted(antitheses[statement])}. A principle has one antithesis. Import the files of one writer only."
        )


def _principle(name: str, definition: str, antithesis: str) -> Principle:
    try:
        return Principle(id=name, definition=definition, antithesis=antithesis)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(
            f"The statements {quoted(definition)} and {quoted(antithesis)} of {name!r} cannot become a principle: "
            f"{reason}. Correct them in the files, or write the principles file by hand."
        ) from None


def _json_files(source: Path) -> list[Path]:
    if not source.exists():
        raise InputError(
            f"You passed {source}, which does not exist. Give constitution files, a folder of them, or contrasts."
        )
    if not source.is_dir():
        return [source]
    files = sorted(source.glob("*.json"))
    if not files:
        raise InputError(f"The folder {source} has no .json file. Give a folder of constitution files, or one file.")
    return files


def _read_json(file: Path) -> Any:
    return parse_json(read_text(file, f"The file {file}"), f"The file {file}", "Give a file of the reference code.")


def _pair(file: Path, value: dict[str, Any]) -> ConstitutionPair:
    texts = [value["positive"], value["negative"]]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"`positive` and `negative` of {file} must each be a numbered list in one string.")
    positive, negative = ([_bare(line) for line in text.splitlines() if line.strip()] for text in texts)
    if not positive or len(positive) != len(negative):
        raise InputError(
            f"{file} lists {len(positive)} positive and {len(negative)} negative statements. Each statement needs its "
            f"opposite, or itself, in the other list."
        )
    found = value.get("identifiers")
    if found is None:
        return ConstitutionPair(str(file), positive, negative)
    try:
        names = tuple([name.split(maxsplit=1)[1] for name in found[side]] for side in ("positive", "negative"))
    except (TypeError, KeyError, AttributeError, IndexError):
        names = ()
    if [len(side) for side in names] != [len(positive)] * 2:
        raise InputError(f'The identifiers of {file} must be "pos NAME" or "neg NAME", one for each statement.')
    return ConstitutionPair(str(file), positive, negative, (names[0], names[1]))


def _contrasts(file: Path, value: Any) -> list[WrittenContrast]:
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"The file {file} is not in a format of the reference code. Give a constitution with `positive` and "
            f"`negative`, or contrasts as {{id: [{{prompt, response, example_id}}, …]}}."
        )
    return [_contrast(f"Contrast {key} of {file}", key, rows) for key, rows in value.items()]


def _contrast(place: str, key: str, rows: Any) -> WrittenContrast:
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("prompt", "response")) for row in rows
    )
    if not whole or len(rows) < 2:
        raise InputError(f"{place} is not a list of at least two objects with the texts `prompt` and `response`.")
    parsed = [_PROMPT.match(row["prompt"]) for row in rows]
    queries, constitutions = [], []
    for match in parsed:
        if match is None:
            raise InputError(
                f"{place} has a prompt in which no constitution and query are found. It must list a constitution under "
                f'a line that ends in "Constitution:", and close with "Human: …" and "Assistant:", or with "POST: …" '
                f'and "Summary:".'
            )
        queries.append((match["query"] or match["post"] or "").strip())
        constitutions.append([_bare(line) for line in match["constitution"].splitlines()])
    if len(set(queries)) > 1 or not queries[0]:
        raise InputError(f"The prompts of {place} do not have the same query. Give contrasts of one query each.")
    return WrittenContrast(key, queries[0], constitutions, [row["response"].strip() for row in rows])


def _bare(line: str) -> str:
    """A numbered statement without its number, with single spaces."""
    return " ".join(_NUMBER.sub("", line, count=1).split())


def _id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("_.-") or "principle"
