"""The generation config that a model comes with, without the values that transformers loads but refuses to save.

config, dropped = load("org/name")
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import logging
from transformers.utils.hub import cached_file

FILE = "generation_config.json"
_MODES = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")
"""Keys that decide whether others have an effect."""


def load(source: str, revision: str | None = None) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation config of a folder or a hub model, and the values that were left out of it.

    Without a generation_config.json the values come from config.json, as in `PreTrainedModel.from_pretrained`. What
    is left out has no effect in transformers, such as a temperature without sampling, or contradicts other values.
    """
    arguments: dict[str, Any] = {"revision": revision or "main"}
    own = cached_file(source, FILE, _raise_exceptions_for_missing_entries=False, **arguments)
    place: dict[str, Any] = {} if own else {"config_file_name": "config.json", "_from_model_config": True}
    with _quiet():
        try:
            config = GenerationConfig.from_pretrained(source, **place, **arguments)
        except (ValueError, TypeError, AttributeError):  # a value that cannot even be loaded
            file = own or cached_file(source, "config.json", **arguments)
            values = json.loads(Path(str(file)).read_text(encoding="utf-8"))
            known = GenerationConfig().to_dict()
            return _repaired({key: value for key, value in values.items() if key in known})
        return (config, {}) if _can_be_saved(config) else _repaired(config.to_diff_dict())


def _repaired(values: dict[str, Any]) -> tuple[GenerationConfig, dict[str, Any]]:
    """The config of as many values as are valid together, taken in one by one, and the others."""
    kept: dict[str, Any] = {}
    for key in sorted(values, key=lambda name: name not in _MODES):
        if _is_valid(kept | {key: values[key]}):
            kept[key] = values[key]
    return GenerationConfig(**kept), {key: value for key, value in values.items() if key not in kept}


def _is_valid(values: dict[str, Any]) -> bool:
    try:
        return _can_be_saved(GenerationConfig(**values))
    except (ValueError, TypeError, AttributeError):
        return False


def _can_be_saved(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
        config.to_json_string(use_diff=True)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings about each value that is tried."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
