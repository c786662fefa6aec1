"""The engine of a recipe, for some weights."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sami.generation import Engine
from sami.generation.transformers_engine import TransformersEngine
from sami.generation.vllm_engine import Rescore, VLLMEngine
from sami.models import Weights
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
