"""Recipes read from YAML and `key=value` overrides, their problems in words, and written back to YAML."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError

from sami.console import visible
from sami.errors import InputError, one_line, quoted, reason
from sami.files import parse_yaml, read_yaml
from sami.recipe.judging import Evaluation
from sami.recipe.recipe import Recipe
from sami.recipe.roles import with_paths
from sami.recipe.sections import Section
from sami.recipe.writing import WrittenPrinciples

PACKAGED_RECIPES = Path(__file__).parents[1] / "recipes"
MOST_PROBLEMS = 20  # listed of one recipe
# The two forms of `principles`, which pydantic adds to the location of an error and nobody wrote.
_FORMS = ("file", "written")
# Stands for what a recipe requires, where only one of its sections is read.
_REQUIRED = {"model": "–", "queries": {"path": "–"}, "principles": "–"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides, validate, and make its paths absolute.

    Args:
        path: a YAML file, or the name of a packaged recipe such as "quickstart".
        overrides: "section.key=value", the value in YAML.

    Raises:
        InputError: the file is missing or is not YAML, a key is unknown, or a value has the wrong type or is
            impossible. The message lists all problems.
    """
    file = _find(Path(path))
    raw = read_yaml(file, f"The recipe {file}")
    if not isinstance(raw, dict):
        raise InputError(f"The recipe {file} has no sections. A recipe needs model, queries and principles.")
    for override in overrides:
        _apply(raw, override)
    recipe = _validated(raw, f"The recipe {file}")
    return _with_absolute_paths(recipe, file.resolve().parent)


def load_evaluation(overrides: Sequence[str] = ()) -> Evaluation:
    """The evaluation section alone, to compare files of responses; its paths are relative to the working directory.

    Raises:
        InputError: an override is outside this section, or its key or value is wrong.
    """
    raw: dict[str, Any] = {"evaluation": {}}
    for override in overrides:
        if not override.startswith("evaluation."):
            raise InputError(
                f"The override {quoted(override)} has no effect on files of responses. Only evaluation.* has one: "
                f"remove the override."
            )
        _apply(raw, override)
    recipe = _validated(_REQUIRED | raw, "The set of overrides")
    return _with_absolute_paths(recipe, Path.cwd()).evaluation


def load_writing(settings: dict[str, Any]) -> WrittenPrinciples:
    """The settings of `sami write-principles`; their paths are relative to the working directory.

    Raises:
        InputError: a value has the wrong type or is impossible.
    """
    recipe = _validated(_REQUIRED | {"principles": settings}, "The set of options")
    written = _with_absolute_paths(recipe, Path.cwd()).principles
    assert isinstance(written, WrittenPrinciples)
    return written


def dump_recipe(recipe: Recipe) -> str:
    """Every resolved value as YAML, from which `load_recipe` reads an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested mapping with their dotted keys: ("training.lr", 1e-5), …"""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def describe(key: str) -> str:
    """The one-line description of a dotted key such as "training.lr"."""
    *parents, last = key.split(".")
    fields = [section.model_fields[last] for section in _sections_at(parents) if last in section.model_fields]
    return " ".join((fields[0].description or "").split())


def packaged_recipes() -> list[Path]:
    """The recipes that come with the package."""
    return sorted([*PACKAGED_RECIPES.glob("*.yaml"), *(PACKAGED_RECIPES / "paper").glob("*.yaml")])


def _find(path: Path) -> Path:
    packaged = PACKAGED_RECIPES / f"{path}.yaml"
    try:
        if path.is_file():
            return path
        if path.suffix == "" and packaged.is_file():
            return packaged
    except OSError as error:  # a name that no file can have
        raise InputError(f"The recipe {quoted(str(path))} cannot be read: {reason(error)}. Correct it.") from None
    names = sorted(str(p.relative_to(PACKAGED_RECIPES).with_suffix("")) for p in packaged_recipes())
    raise InputError(
        f"There is no recipe {path!s:.200}. Give the path of a YAML file, or one of the recipes that come with "
        f"sami: {', '.join(names)}."
    )


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"The override {quoted(override)} does not have the form section.key=value. Write it so.")
    value = parse_yaml(text, f"The value of the override {quoted(override)}")
    *parents, last = key.split(".")
    section = raw
    for name in parents:
        inner = section.get(name)
        if name == "model" and isinstance(inner, str):
            inner = {"source": inner}
        if inner is None or inner is True:
            inner = {}
        if not isinstance(inner, dict):
            raise InputError(
                f"The override {quoted(override)} sets a key inside {quoted(name)}, which is a plain value. Remove the "
                f"override, or set {quoted(name)} itself."
            )
        section[name] = inner
        section = inner
    section[last] = value


def _validated(raw: dict[str, Any], what: str) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{what} cannot be used.\n{_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    lines = [f"- {_explain_one(problem)}" for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"- and {len(problems) - MOST_PROBLEMS} more.")
    return "\n".join(lines)


def _explain_one(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    where = visible(".".join(part for part in location if part not in _FORMS))[:200]
    match problem["type"]:
        case "extra_forbidden":
            return f"{where} is not a key of a recipe; {_hint(location)}"
        case "missing":
            return f"{where} is missing: {describe('.'.join(location))}"
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = ", ".join(kind for kind, _ in _members_at(location))
            return f"{where} is {quoted(problem['input'])}; `kind` must be one of {kinds}."
        case "value_error":
            return f"{where or 'recipe'}: {one_line(problem['ctx']['error'])}."
        case _:
            message = one_line(problem["msg"])
            return f"{where} is {quoted(problem['input'])}: {message[0].lower() + message[1:]}."


def _hint(location: Sequence[str]) -> str:
    """The key that a person probably meant by an unknown one, or the keys that exist beside it."""
    known, name = list(_sections_at(location[:-1])[0].model_fields), location[-1][:200]
    guesses = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    guesses += [key for key in _all_keys() if key.split(".")[-1] == name]
    guesses += difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {guesses[0]!r}?" if guesses else f"known keys: {', '.join(known)}."


def _sections_at(location: Sequence[str]) -> list[type[BaseModel]]:
    """The sections allowed at a location of a recipe: several where a section has several kinds."""
    return [section for _, section in _members_at(location)]


def _members_at(location: Sequence[str]) -> list[tuple[str, type[BaseModel]]]:
    """The same with the kind of each, "" if there is only one kind."""
    found: list[tuple[str, type[BaseModel]]] = [("", Recipe)]
    for name in location:
        if name in {kind for kind, _ in found}:
            found = [(kind, section) for kind, section in found if kind == name]
        elif not name.isdigit():  # a number is an index into a list
            fields = [section.model_fields[name] for _, section in found if name in section.model_fields]
            found = [member for field in fields for member in _members(field.annotation)]
    return found


def _members(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections that a field's type allows, each with the tag that selects it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield "", annotation
    tags = [one.tag for one in getattr(annotation, "__metadata__", ()) if isinstance(one, Tag)]
    for inner in get_args(annotation):
        yield from ((tags[0] if tags else tag, section) for tag, section in _members(inner))


def _all_keys() -> Iterator[str]:
    for name in Recipe.model_fields:
        yield name
        for section in _sections_at([name]):
            yield from (f"{name}.{inner}" for inner in section.model_fields)


def _with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths are relative to the recipe's folder or, where nothing exists there, to the working directory."""

    def absolute(value: str) -> str:
        try:
            for place in (folder / value, Path(value).expanduser()):
                if place.exists():
                    return str(place.resolve())
        except (OSError, RuntimeError) as error:  # a name that no file can have, or no such user
            raise InputError(f"The path {quoted(value)} cannot be used: {reason(error)}. Correct it.") from None
        return value

    given = recipe.principles
    if isinstance(given, str):
        found = absolute(given)
        principles = found if found != given else _packaged_principles(given, folder)
        recipe = recipe.model_copy(update={"principles": principles})
    return with_paths(recipe, absolute)


def _packaged_principles(name: str, folder: Path) -> str:
    """The path of a packaged principles file given by its bare name, such as "diverse"; else the path in the recipe."""
    packaged = {file.stem: file for file in (PACKAGED_RECIPES / "principles").glob("*.yaml")}
    return str(packaged.get(name) or (folder / name).resolve())
