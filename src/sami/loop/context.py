"""A run: a prepared recipe in its folder. The steps of the loop are functions of it.

run = Run.start(load_recipe("quickstart"), "runs/quickstart")     # to work on
run = Run.open("runs/quickstart")                                 # to look at; nothing is written
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sami.console import say
from sami.contrast_plan import Planned
from sami.contrasts import Contrast, row_tokens
from sami.costs.memory import require_possible
from sami.errors import InputError
from sami.files import file_hash
from sami.generation import Engine
from sami.generation.engines import make_engine
from sami.generation.respond import respond
from sami.loop.directory import BASE, RunDirectory
from sami.loop.trackers import RunTrackers
from sami.models import adapters, devices, loading, saving, sources
from sami.prepared import Prepared, prepare
from sami.principle_writing import files as principle_files
from sami.principles import Principle, load_principles
from sami.prompts import PromptBuilder
from sami.queries import hash_queries
from sami.recipe import Model, Recipe, WrittenPrinciples, load_recipe
from sami.recipe.roles import Role, keys_with
from sami.scoring.logprobs import response_logprobs
from sami.scoring.packing_check import check_packing


class Run:
    """Whose weights, which engine, and what each step is made from, for one recipe in one folder."""

    def __init__(self, prepared: Prepared, directory: RunDirectory) -> None:
        self.prepared = prepared
        self.directory = directory

    @classmethod
    def start(cls, recipe: Recipe, folder: str | Path) -> "Run":
        """A run to work on, new or to be continued. Reads and checks the recipe's data and writes nothing.

        Raises:
            InputError: anything in the recipe, the principles, the queries or the model that cannot work.
        """
        directory = RunDirectory(folder)
        run = cls(prepare(_dated(recipe, directory), directory.principles), directory)
        _ = run.trackers  # one that is not installed is refused here
        return run

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """A run that someone looks at later; its queries and trackers need not be available.

        Raises:
            InputError: not a run folder, or its recipe or principles cannot be read.
        """
        directory = RunDirectory(folder)
        directory.require_run()
        return cls(Prepared(load_recipe(directory.recipe), load_principles(directory.principles)), directory)

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    @property
    def principles(self) -> list[Principle]:
        return self.prepared.principles

    @property
    def tokenizer(self) -> Any:
        return self.prepared.tokenizer

    @property
    def prompts(self) -> PromptBuilder:
        return self.prepared.prompts

    @cached_property
    def trackers(self) -> RunTrackers:
        return RunTrackers(self.directory.folder, self.recipe)

    def iteration(self, wanted: int | None = None) -> int:
        """A trained iteration whose model exists: the one that was asked for, by default the last one.

        Raises:
            InputError: it has no model.
        """
        models = self.directory.models()
        if not models:
            raise InputError(f"The run {self.directory.folder} has no trained model yet. Continue it with `sami run`.")
        if wanted is not None and wanted not in models:
            raise InputError(
                f"You asked for iteration {wanted}, but the run {self.directory.folder} has the models of "
                f"{', '.join(map(str, models))}."
            )
        return max(models) if wanted is None else wanted

    @contextmanager
    def opened(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the run's lock; in a new run, check first that model and prompts fit, and have principles written.

        Args:
            wait: seconds to wait for another process that holds the lock.

        Raises:
            InputError: the folder belongs to another recipe or is in use, or something cannot fit.
        """
        fresh = self.directory.record(f"respond-{BASE}") is None
        if fresh:
            self.prepared.require_room()  # reads config, tokenizer and templates, before anything is written
            saving.require_savable(self.recipe.model, self.tokenizer)
            require_possible(self.recipe, self.prepared.dtype, self.prepared.adapter_weights())
        given = self.recipe.principles
        text = Path(given).read_text(encoding="utf-8") if isinstance(given, str) else None
        with self.directory.open(self.recipe, text, wait):
            if isinstance(given, WrittenPrinciples):
                self._write_principles(given)
                if fresh:
                    self.prepared.require_room()
            yield

    def _write_principles(self, settings: WrittenPrinciples) -> None:
        """Ask the recipe's writer once; its principles may be edited until something is made from them."""
        target = self.directory.principles

        def work() -> dict[str, Any]:
            target.unlink(missing_ok=True)  # from a recipe under which no step was finished
            principle_files.write_file(settings, target)
            return {}

        self.directory.step("principles", settings.model_dump(), [target], work, may_be_edited=True)
        self.prepared.principles = load_principles(target)
        self.prepared.require_distinct_constitutions()

    # Weights and engines. Iteration 0 is base.

    def source(self, iteration: int) -> tuple[Model, Path | None]:
        """The model of an iteration, and the folder of its adapter if it has one.

        Raises:
            InputError: its weights changed after training wrote them.
        """
        if iteration > 0:
            self.directory.require_intact_model(iteration)
        folder = self.directory.model(iteration).resolve()
        if iteration > 0 and adapters.base_of(folder) is None:
            return sources.derived(self.recipe.model, folder), None
        return self.recipe.model, folder if iteration > 0 else None

    def _weights(self, iteration: int, dtype: torch.dtype | None = None) -> loading.Weights:
        model, adapter = self.source(iteration)
        return loading.Weights(model, dtype or self.prepared.dtype, identity="", adapter=adapter)

    def load(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The model of an iteration to score and generate with, spread over several GPUs if one cannot hold it."""
        return self._weights(iteration, dtype).load(quantize=quantize)

    def load_to_train(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The model of an iteration on one device."""
        return self._weights(iteration, dtype).load(devices.default_device(), quantize=quantize)

    def engine(self, iteration: int) -> Engine:
        """The recipe's engine on the weights of an iteration."""
        weights = replace(self._weights(iteration), identity=self.policy_inputs(iteration))
        return self.engine_of(weights, self.tokenizer)

    def engine_of(self, weights: loading.Weights, tokenizer: Any) -> Engine:
        """The recipe's engine on any weights, with all other memory free for it."""
        devices.release_memory()
        workplace = self.directory.folder / ".generation"
        return make_engine(self.recipe.generation, weights, tokenizer, workplace, response_logprobs)

    def respond(
        self,
        engine: Engine,
        planned: Sequence[Planned],
        label: str,
        *,
        shuffle: bool,
        prompts: PromptBuilder | None = None,
        part: slice = slice(0, None),
    ) -> list[Contrast]:
        """Contrasts from an engine's responses to planned ones.

        Args:
            shuffle: whether the principles' order is shuffled in the training prompt.
            prompts: of the engine's model, if it is not the recipe's.
            part: answer only these, as they would be answered among all.
        """
        return respond(engine, planned, prompts or self.prompts, self.recipe, label, shuffle=shuffle, part=part)

    def unsplit(self, contrasts: Sequence[Contrast]) -> dict[str, int]:
        """How many contrasts hold reasoning without an answer; empty if there is no reasoning in this run."""
        reasons = self.recipe.generation.chain_of_thought is not None or self.prompts.thinking is not None
        count = sum("unsplit" in contrast.finish_reasons for contrast in contrasts)
        return {"unsplit": count} if reasons or count else {}

    def packing(self, contrasts: Sequence[Contrast]) -> bool:
        """Whether responses may share rows on this model: as the recipe says, checked once on the base model."""
        if not self.recipe.training.share_prefix:
            return False
        longest = max(contrasts, key=row_tokens)

        def check() -> dict[str, Any]:
            # Weights that are never held in fp32 for training may not fit in it.
            dtype = torch.float32 if self.recipe.adapter is None else self.prepared.dtype
            found = check_packing(self.load(0, dtype), longest, self.tokenizer.pad_token_id)
            if not found.shared:
                say(f"responses are scored in rows of their own: shared rows differ by {found.difference:.2g} nats")
            return {"shared": found.shared, "difference": found.difference}

        inputs = {"policy": self.policy_inputs(0)}
        return bool(self.directory.step("packing", inputs, [], check)["shared"])

    # What a step is made from, as JSON values that its record holds.

    def inputs(self, *sections: str) -> dict[str, Any]:
        """Sections of the recipe, and the principles by content."""
        # Machines do not change what a step is made from, and whoever writes the first iteration's contrasts is
        # recorded by content, in the step that uses them.
        machines = {key.partition(".")[2] for key in keys_with(Role.MACHINE, Recipe) if key.startswith("generation.")}
        apart = {*machines, "first_model", "first_contrasts"}
        chosen = {name: getattr(self.recipe, name).model_dump(exclude=apart) for name in sections}
        given = self.recipe.principles
        file = Path(given) if isinstance(given, str) else self.directory.principles
        return dict(json.loads(json.dumps(chosen | {"principles": file_hash(file)})))

    def answering_inputs(self) -> dict[str, Any]:
        """What held-out responses depend on besides the policy."""
        evaluation = {name: getattr(self.recipe.evaluation, name) for name in ("principles_per_query", "seed")}
        queries = hash_queries((self.prepared.splits.evaluation,))
        return self.inputs("prompt", "sampling", "generation") | {"evaluation": evaluation, "queries": queries}

    def policy_inputs(self, iteration: int) -> str:
        """What identifies a policy: the base weights, or the contrasts and settings it was trained with."""
        if iteration == 0:
            return self._base_fingerprint
        record = self.directory.require(f"train-{iteration}", "sami train")
        return hashlib.sha256(json.dumps(record["inputs"], sort_keys=True).encode()).hexdigest()

    @cached_property
    def _base_fingerprint(self) -> str:
        return sources.fingerprint(self.recipe.model)


def _dated(recipe: Recipe, directory: RunDirectory) -> Recipe:
    """The recipe with the date that chat templates show: the day on which the run began, also on later days."""
    if recipe.prompt.date is not None:
        return recipe
    recorded = directory.recorded_recipe()
    # Runs of earlier versions recorded no date and keep none.
    day = date.today().isoformat() if recorded is None else (recorded.get("prompt") or {}).get("date")
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": day})})
