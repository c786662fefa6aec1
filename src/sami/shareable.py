"""A recipe as others may see it: on a model card and in a tracker."""

from pathlib import Path
from typing import Any

from sami.recipe import Recipe


def shareable(recipe: Recipe) -> dict[str, Any]:
    """Its values with files by name instead of where they lie here, without the servers and folders of judging."""
    values = recipe.model_dump()
    for place in ("judges", "baselines"):
        del values["evaluation"][place]
    return dict(_named(values))


def is_local(path: str) -> bool:
    """Whether a source is a place on this machine rather than a name that means the same everywhere."""
    if path.startswith("pypi:"):
        return False
    try:
        return Path(path).expanduser().is_absolute() or Path(path).exists()
    except (OSError, ValueError, RuntimeError):  # a template or a sentence, which no path can be
        return False


def _named(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_named(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and is_local(value) else value
