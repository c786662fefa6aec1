"""An MkDocs hook that generates `recipe.md` and `principles-file.md` from the models that parse these files."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sami.principles import Principle
from sami.recipe import Recipe, Section
from sami.text import verifiers

INTRODUCTION = """# Recipe reference

This page lists every key of a recipe. `model`, `queries`, and `principles` are required; all other keys have the
default shown here. To override a key on the command line, use its dotted name: `training.lr=1e-5`.
An unknown key is an error that suggests the closest known key. `sami plan RECIPE` prints every resolved value.
"""

PRINCIPLES = """# Principles file

A principles file is a YAML list of principles, or a mapping with such a list under `principles`. Unknown keys are
refused.
"""

CHECKS = """## Checks

`verifier` and `antithesis_verifier` take one of these checks, with `check` and its parameters. An empty response passes
no check. A check that could never fail, or never pass, is refused.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "recipe.md", content=page()))
    files.append(File.generated(config, "principles-file.md", content=principles_page()))
    return files


def principles_page() -> str:
    """Keys of a principle and every verifier, in Markdown."""
    parts = [PRINCIPLES, _table("A principle", Principle), CHECKS]
    for check in get_args(get_args(verifiers.VerifierSpec)[0]):
        fields = {name: field for name, field in check.model_fields.items() if name != "check"}
        name = get_args(check.model_fields["check"].annotation)[0]
        rows = [f"| `{key}`{{ .key }} | {_typed(field)} | {_default(field)} |" for key, field in fields.items()]
        meaning = " ".join((check.__doc__ or "").split())
        parts.append(
            "\n".join([f"### {name}", "", meaning, "", "| key | type | default |", "|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def page() -> str:
    """The recipe's sections in Markdown."""
    parts = [INTRODUCTION, _table("The recipe", Recipe)]
    described: set[type[Section]] = {Recipe}
    for name, section in _sections("", Recipe):
        if section not in described:
            described.add(section)
            parts.append(_table(f"`{name}`", section))
    return "\n".join(parts)


def type_name(annotation: Any) -> str:
    """A type in plain words: "text", "list of integers", "`auto`, `chat` or `plain`"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(inner[0])
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(f"`{one}`" for one in inner[:-1]), f"`{inner[-1]}`"]))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in inner))
    if origin is list:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    if isinstance(annotation, type) and issubclass(annotation, verifiers.Verifier):
        return "check"
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", NoneType: "`null`"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _sections(name: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Each section below this one with its dotted name, depth first."""
    for key, field in section.model_fields.items():
        dotted = f"{name}.{key}" if name else key
        for inner in _inside(field.annotation):
            kind = inner.model_fields.get("kind")
            label = f"{dotted}, kind {get_args(kind.annotation)[0]}" if kind else dotted
            yield label, inner
            yield from _sections(label, inner)


def _inside(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for one in get_args(annotation):
        yield from _inside(one)


def _table(title: str, section: type[BaseModel]) -> str:
    rows = [f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{key}`{{ .key }} | {_typed(field)} | {_default(field)} | {_cell(meaning)} |")
    return "\n".join([*rows, ""])


def _typed(field: FieldInfo) -> str:
    limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(one, name):g}"
        for one in field.metadata
        for name, sign in limits.items()
        if isinstance(getattr(one, name, None), int | float)
    ]
    return _cell(", ".join([type_name(field.annotation), *bounds]))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return "its defaults"
    if isinstance(value, list) and value and all(isinstance(one, Section) for one in value):
        return _cell(f"`[{', '.join(getattr(one, 'kind', '…') for one in value)}]`")
    if value is None or isinstance(value, bool):
        return f"`{'null' if value is None else str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return _cell(f"`{value}`") if value != "" else '`""`'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
