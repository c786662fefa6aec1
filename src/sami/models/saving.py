"""Saving models, and the check before a run that what is loaded can be saved again.

require_savable(Model(source="org/name"), tokenizer)
"""

import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sami.console import say
from sami.errors import InputError, one_line
from sami.files import replacing
from sami.models import generation_configs
from sami.models.loading import empty_model, load_tokenizer
from sami.models.sources import resolve_source
from sami.recipe import Model

_SAMPLE = "Why is the sky blue?\n1. Naïve élan: 日本語, 42 %."


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Save as safetensors in `dtype`, so that a folder of that name is either whole or absent."""
    with replacing(folder) as temporary:
        model.to(dtype)  # type: ignore[arg-type]
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def require_savable(model: Model, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Save a model's configs and tokenizer on trial, before hours of work depend on it, and load them again.

    Values of the generation config that transformers loads and refuses to save are left out, with a notice.

    Args:
        tokenizer: the model's, if it is loaded already.

    Raises:
        InputError: something cannot be saved, or is something else when it is loaded again.
    """
    tokenizer = tokenizer or load_tokenizer(model)
    empty = empty_model(model)
    empty.generation_config, dropped = generation_configs.load(resolve_source(model), model.revision)
    if dropped:
        values = ", ".join(f"{key}={value!r}"[:80] for key, value in dropped.items())
        say(
            f"{model.source}: models are saved without {values}. In a generation config these have no effect or "
            f"contradict other values, and transformers does not save them."
        )
    with tempfile.TemporaryDirectory(prefix="sami-dry-save-") as folder:
        try:
            empty.save_pretrained(folder, state_dict={})
            tokenizer.save_pretrained(folder)
            config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
            again = AutoTokenizer.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        except Exception as error:
            raise InputError(
                f"The model {model.source} can be loaded, but its configuration or tokenizer cannot be saved: "
                f"{one_line(error)[:400]}. Its trained versions would be lost. Correct the named value in its "
                f"config.json, generation_config.json or tokenizer_config.json."
            ) from error
    if type(config).__name__ != type(empty.config).__name__:
        raise InputError(
            f"The model {model.source} is a {type(empty.config).__name__}, and as {type(config).__name__} when it is "
            f"saved and loaded again. Set model.trust_remote_code=true if its code comes with it."
        )
    if again(_SAMPLE).input_ids != tokenizer(_SAMPLE).input_ids or again.eos_token_id != tokenizer.eos_token_id:
        raise InputError(
            f"The tokenizer of {model.source} gives other tokens after it is saved and loaded again, so trained "
            f"models would read their prompts differently. Save the model with the installed version of transformers."
        )
