"""What a recipe's keys are for, apart from their values; each field declares it as an annotation.

    path: Annotated[str, Role.PATH]

What identifies a run, what is made absolute on loading, what is shown to others and what the trainer gets all follow
from these annotations, so a new key is written in one place.
"""

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

_Section = TypeVar("_Section", bound=BaseModel)


class Role(Enum):
    """A property of a key, or of all keys of a section."""

    PATH = auto()
    """May name a place on this machine. It may change between calls if its content does not, and others see only the
    last part of it."""
    MACHINE = auto()
    """Where the work is done; it may differ from step to step of one run."""
    JUDGING = auto()
    """May change once a run is finished: verdicts have their own cache keys."""
    TRAINER = auto()
    """Passed to `SAMIConfig` under the same name."""


def keys_with(role: Role, section: type[BaseModel]) -> frozenset[str]:
    """Dotted keys of a section and the sections in it that have a role; the elements of lists have no keys."""
    return frozenset(key for key, roles in _keys(section, frozenset(), "") if role in roles)


def with_paths(section: _Section, absolute: Callable[[str], str]) -> _Section:
    """The section with every path in it, also in lists of sections, passed through `absolute`."""
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            changes[name] = with_paths(value, absolute)
        elif isinstance(value, list):
            changes[name] = [with_paths(one, absolute) if isinstance(one, BaseModel) else one for one in value]
        elif isinstance(value, str) and Role.PATH in field.metadata:
            changes[name] = absolute(value)
    return section.model_copy(update=changes)


def _keys(section: type[BaseModel], inherited: frozenset[Role], prefix: str) -> Iterator[tuple[str, frozenset[Role]]]:
    for name, field in section.model_fields.items():
        roles = inherited | {one for one in field.metadata if isinstance(one, Role)}
        yield prefix + name, roles
        for inner in _sections(field.annotation):
            yield from _keys(inner, roles, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif getattr(annotation, "__origin__", None) is not list:
        for inner in get_args(annotation):
            yield from _sections(inner)
