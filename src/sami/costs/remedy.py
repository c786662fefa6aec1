"""Which settings make a phase of a run fit into memory, tried out from the cheapest on."""

from collections.abc import Callable, Iterator
from typing import Any

from sami.recipe import Recipe

MOST_PROCESSES = 512

# Whether the phase in question fits, with a changed recipe and a number of training processes.
Fits = Callable[[Recipe, int], bool]


def remedy(phase: str, recipe: Recipe, processes: int, fits: Fits) -> str | None:
    """The cheapest settings with which a phase of `costs.memory.needs` fits; None if no setting suffices."""
    if phase == "training":
        return _leaner_training(recipe, processes, fits)
    if phase == "generation":
        return _leaner_generation(recipe, processes, fits)
    return None


def _leaner_training(recipe: Recipe, processes: int, fits: Fits) -> str | None:
    lean, settings = recipe, []
    for key, value in (("micro_batch_size", 1), ("gradient_cache", True), ("gradient_checkpointing", True)):
        if getattr(lean.training, key) != value:
            lean = _changed(lean, "training", **{key: value})
            settings.append(f"training.{key}={str(value).lower()}")
            if fits(lean, processes):
                return " ".join(settings)
    for candidate, chosen in ((recipe, []), (lean, settings)):
        more = next((n for n in _process_counts(recipe, processes) if fits(candidate, n)), None)
        if more is not None:
            return " ".join([f"launch.processes={more} (on {more} GPUs)", *chosen])
    return None


def _process_counts(recipe: Recipe, processes: int) -> Iterator[int]:
    """Larger numbers of processes in which the recipe can be trained."""
    count = 2 * processes
    while count <= min(MOST_PROCESSES, recipe.training.batch_size):
        if recipe.conflict(count) is None:
            yield count
        count *= 2


def _leaner_generation(recipe: Recipe, processes: int, fits: Fits) -> str | None:
    batch = recipe.generation.batch_size
    while recipe.generation.engine != "vllm" and (batch := batch // 2):
        if fits(_changed(recipe, "generation", batch_size=batch), processes):
            return f"generation.batch_size={batch}"
    for gpus in (2, 4, 8, 16):
        vllm = recipe.generation.vllm.model_copy(update={"tensor_parallel": gpus, "data_parallel": 1})
        if fits(_changed(recipe, "generation", engine="vllm", vllm=vllm), processes):
            return f"generation.engine=vllm generation.vllm.tensor_parallel={gpus}"
    return None


def _changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
