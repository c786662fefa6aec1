"""Which engine a recipe means on this machine, and the registry of engines.

A new engine is a class in a file of its own and a line in `ENGINES`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sami.console import say
from sami.errors import InputError
from sami.generation import Engine
from sami.generation.transformers_engine import TransformersEngine
from sami.generation.vllm_engine import VLLMEngine
from sami.models.loading import Weights
from sami.recipe import VLLM, Generation

# Log-probs of response tokens by the trainer's engine, for a model, (prompt ids, response ids) pairs and a pad id.
Rescore = Callable[[PreTrainedModel, Sequence[tuple[list[int], list[int]]], int], list[list[float]]]


class EngineClass(Protocol):
    """What the registry needs of an engine's class."""

    def unavailable(self, settings: Generation) -> str | None:
        """Why this engine cannot run here, as a sentence without full stop that advises; None where it can."""

    def fits_machine(self) -> bool:
        """Whether `auto` takes this engine on a machine like this, if it is available."""

    def for_weights(
        self, settings: Generation, weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path, rescore: Rescore
    ) -> Engine: ...


# `auto` takes the first one that fits the machine and is available.
ENGINES: dict[str, EngineClass] = {
    "vllm": VLLMEngine,
    "transformers": TransformersEngine,
}


def make_engine(
    settings: Generation, weights: Weights, tokenizer: PreTrainedTokenizerBase, folder: Path, rescore: Rescore
) -> Engine:
    """The engine that `settings` name, which must be resolved (`with_engine`).

    Args:
        folder: for the files of an engine that runs in processes of its own.
        rescore: log-probs by the trainer's engine, with which those of another engine are compared.
    """
    return ENGINES[settings.engine].for_weights(settings, weights, tokenizer, folder, rescore)


def with_engine(generation: Generation) -> Generation:
    """The settings with the engine that they mean on this machine, and without settings of other engines.

    Raises:
        InputError: the engine is unknown, or it was asked for and cannot run here.
    """
    chosen = chosen_engine(generation)
    if chosen == "vllm" or generation.vllm == VLLM():
        return generation.model_copy(update={"engine": chosen})
    say(
        f"generation.vllm has no effect: generation.engine is {generation.engine}, which means {chosen} on this "
        f"machine. Set generation.engine=vllm to see why vLLM is not used."
    )
    return generation.model_copy(update={"engine": chosen, "vllm": VLLM()})


def chosen_engine(generation: Generation) -> str:
    """The name of the engine that a recipe means on this machine.

    Raises:
        InputError: the engine is unknown, or it was asked for and cannot run here.
    """
    if generation.engine == "auto":
        return next(name for name, engine in ENGINES.items() if _taken_by_auto(name, engine, generation))
    if generation.engine not in ENGINES:
        raise InputError(
            f"generation.engine is {generation.engine!r}, which is not an engine. Use auto or one of "
            f"{', '.join(ENGINES)}."
        )
    if reason := ENGINES[generation.engine].unavailable(generation):
        raise InputError(f"generation.engine is {generation.engine}, and {reason}.")
    return generation.engine


def _taken_by_auto(name: str, engine: EngineClass, generation: Generation) -> bool:
    if not engine.fits_machine():
        return False
    reason = engine.unavailable(generation)
    if reason is not None:
        say(f"generation.engine=auto does not use {name}: {reason}")
    return reason is None
