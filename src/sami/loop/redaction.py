"""A recipe as others may see it, on a model card and in a tracker: without paths of this machine and servers."""

import os
from pathlib import Path
from typing import Any

from sami.recipe import Recipe

# The only keys of a recipe whose text can be a path; other text, such as a prompt, is never shortened.
_PLACES = {"source", "path", "principles", "first_contrasts"}


def shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values, with local paths cut to their file names and without servers, judges and baselines."""
    values = recipe.model_dump()
    for place in ("judges", "baselines"):
        del values["evaluation"][place]
    if isinstance(values["principles"], dict):
        values["principles"]["writer"].pop("url", None)
    return _named(values)


def is_local(path: str) -> bool:
    """Whether a source is a path on this machine, rather than a name that means the same everywhere."""
    return os.path.isabs(os.path.expanduser(path)) or (not path.startswith("pypi:") and os.path.exists(path))


def _named(values: dict[str, Any]) -> dict[str, Any]:
    def shown(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _named(value)
        return Path(value).name if key in _PLACES and isinstance(value, str) and is_local(value) else value

    return {key: shown(key, value) for key, value in values.items()}
