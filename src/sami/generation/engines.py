"""The engine of a recipe, for some weights."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from sami.console import say
from sami.errors import InputError
from sami.generation import Engine
from sami.generation.transformers_engine import TransformersEngine
from sami.generation.vllm_engine import (
    PYTHON_VARIABLE,
    Rescore,
    VLLMEngine,
    installed_version,
    interpreter,
    is_tested,
    tested_versions,
)
from sami.models.loading import Weights
from sami.recipe import Generation


def make_engine(
    settings: Generation, weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path, rescore: Rescore
) -> Engine:
    """The engine that `settings` names, which must be a resolved one (`chosen_engine`).

    Args:
        folder: for the files of an engine that runs in processes of its own.
        rescore: log-probs by the trainer's engine, with which another engine's are compared.
    """
    if settings.engine == "vllm":
        return VLLMEngine(weights, tokenizer, settings, folder, rescore)
    return TransformersEngine(weights.load(), tokenizer, settings.batch_size)


def chosen_engine(generation: Generation) -> str:
    """The engine that a recipe means on this machine: transformers or vllm.

    Raises:
        InputError: vllm was asked for and is absent, or of a version that was not tested.
    """
    if generation.engine == "transformers" or (generation.engine == "auto" and not torch.cuda.is_available()):
        return "transformers"
    found = installed_version()
    usable = found is not None and (generation.vllm.any_version or is_tested(found))
    if generation.engine == "auto":
        if found is not None and not usable:
            say(f"generation by transformers: vLLM {found} was not tested with this package, {tested_versions()} was")
        return "vllm" if usable else "transformers"
    if found is None:
        raise InputError(
            f"generation.engine is vllm, and {interpreter()} has no vLLM. Install "
            f"vllm=={tested_versions()} into an environment of its own and set {PYTHON_VARIABLE} to its Python, or use "
            f"generation.engine=transformers."
        )
    if not usable:
        raise InputError(
            f"generation.engine is vllm, and {interpreter()} has version {found}, which was not tested with "
            f"this package. Install vllm=={tested_versions()}, or set generation.vllm.any_version=true and mind the "
            f"gap that is reported."
        )
    return "vllm"
