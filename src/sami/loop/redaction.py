"""A recipe as others may see it, on a model card and in a tracker: without paths of this machine and servers."""

import os
from pathlib import Path
from typing import Any

from sami.recipe import Recipe
from sami.recipe.roles import with_paths


def shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values, with local paths cut to their file names and without servers, judges and baselines."""
    values = with_paths(recipe, lambda path: Path(path).name if is_local(path) else path).model_dump()
    for section in ("judges", "baselines"):
        del values["evaluation"][section]
    if isinstance(values["principles"], dict):
        values["principles"]["writer"].pop("url", None)
    return values


def is_local(path: str) -> bool:
    """Whether a source is a path on this machine, rather than a name that means the same everywhere."""
    return os.path.isabs(os.path.expanduser(path)) or (not path.startswith("pypi:") and os.path.exists(path))
