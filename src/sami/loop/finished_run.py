"""A run's folder opened for reading: its recipe, its principles and its models, by whoever looks at it later.

finished = FinishedRun("runs/quickstart")
base, policy = finished.load(0), finished.load(finished.last)
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami.errors import InputError
from sami.loop.directory import RunDirectory
from sami.principles import Principle, load_principles
from sami.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sami.prompts import PromptBuilder


class FinishedRun:
    """What a run left; nothing is written.

    Args:
        folder: of the run, as `sami run` made it.

    Raises:
        InputError: the folder is no run, or its recipe or principles cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.directory = RunDirectory(folder)
        recipe = self.directory.folder / "recipe.yaml"
        if not recipe.is_file():
            raise InputError(
                f"The folder {folder} holds no recipe.yaml, so it is no run. Give the folder that `sami run` wrote, "
                f"such as runs/quickstart."
            )
        self.recipe: Recipe = load_recipe(recipe)
        self.principles: list[Principle] = load_principles(self.directory.folder / "principles.yaml")

    @property
    def trained(self) -> list[int]:
        """Iterations whose model is there, in order."""
        numbers = range(1, self.recipe.training.iterations + 1)
        return [number for number in numbers if self.directory.model(number).is_dir()]

    @property
    def last(self) -> int:
        return self.iteration(None)

    def iteration(self, wanted: int | None) -> int:
        """The iteration that was asked for, by default the last one that is trained.

        Raises:
            InputError: it is not trained.
        """
        if not self.trained:
            raise InputError(f"The run {self.directory.folder} has no trained model yet. Continue it with `sami run`.")
        if wanted is None:
            return self.trained[-1]
        if wanted not in self.trained:
            raise InputError(
                f"Iteration {wanted} was asked for, and the run {self.directory.folder} has the models of "
                f"{', '.join(map(str, self.trained))}."
            )
        return wanted

    @cached_property
    def tokenizer(self) -> Any:
        from sami.models import loading

        return loading.load_tokenizer(self.recipe.model)

    @cached_property
    def prompts(self) -> "PromptBuilder":
        from sami.prompts import PromptBuilder

        return PromptBuilder(self.tokenizer, self.recipe.prompt, self.recipe.generation.chain_of_thought)

    @property
    def dtype(self) -> "torch.dtype":
        from sami.models import devices

        return devices.resolve_dtype(self.recipe.model.dtype)

    def load(self, iteration: int) -> "PreTrainedModel":
        """The model of an iteration in evaluation mode, 0 is base."""
        from sami.models import loading, sources

        model = self.recipe.model
        if iteration > 0:
            model = sources.derived(model, self.directory.model(iteration))
        return loading.load_model(model, self.dtype)
