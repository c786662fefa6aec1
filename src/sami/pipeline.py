"""The loop as steps over a run directory: generate, train, evaluate, repeat, summarise.

    run(load_recipe("quickstart"), "runs/quickstart")

Every step is redone only if it never finished, and depends on nothing but its inputs and the seeds of the
recipe: a run that was killed and started again ends with the summary of one that was not.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sami.console import say
from sami.contrast_plan import Planned, evaluation_plan, training_plan
from sami.contrasts import Contrast, row_tokens
from sami.costs.memory import require_possible
from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.files import file_hash, write_json
from sami.generation import Engine
from sami.generation.engines import chosen_engine, make_engine
from sami.loop import first_iteration, judged_summary, launch, model_card, summary
from sami.loop.directory import BASE, RunDirectory, policy_name
from sami.loop.evaluate import Evaluation
from sami.loop.generate import Generation
from sami.loop.judge import Judging
from sami.loop.respond import as_contrasts, complete
from sami.loop.shards import Shard
from sami.loop.trackers import RunTrackers
from sami.loop.train import Training
from sami.models import adapters, devices, loading, quantization, saving, sources, structure
from sami.principle_writing import files as principle_files
from sami.principles import Principle, check_sampling, load_principles
from sami.prompts import PromptBuilder
from sami.queries import LoadedQueries, Splits, hash_queries, load_queries, split_queries
from sami.recipe import Model, Recipe, WrittenPrinciples
from sami.scoring.logprobs import response_logprobs
from sami.scoring.packing_check import check_packing

_OTHER_SHARDS_OPEN = 60.0  # seconds in which as many machines as there are shards may look at the run's recipe


class Pipeline:
    """The steps of one run. Building it reads and checks the recipe's data and writes nothing.

    Raises:
        InputError: anything in the recipe, the principles, the queries or the model that cannot work.
    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        dtype = devices.resolve_dtype(recipe.model.dtype)
        self.recipe = recipe.model_copy(
            update={
                "model": recipe.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
                "generation": recipe.generation.model_copy(update={"engine": chosen_engine(recipe.generation)}),
            }
        )
        if adapters.base_of(Path(recipe.model.source).expanduser()) is not None:
            raise InputError(
                f"The model {recipe.model.source} is an adapter, and a run starts from whole weights. Merge it into "
                f"its model first (peft's merge_and_unload), and give the folder of the merged model."
            )
        if recipe.adapter is not None and recipe.adapter.quantize:
            quantization.require_bitsandbytes()
        if recipe.training.master_weights == "bfloat16" and dtype != torch.bfloat16:
            raise InputError(
                f"training.master_weights is bfloat16, and model.dtype={recipe.model.dtype} means {dtype} on this "
                f"machine. Set model.dtype=bfloat16 too, which is slow here, or leave out training.master_weights."
            )
        self.directory = RunDirectory(folder)
        self.dtype = dtype
        self.principles = self._known_principles()
        self.loaded, self.splits = self._split()
        if recipe.generation.first_contrasts is not None:
            self.imported = first_iteration.written_in_file(
                Path(recipe.generation.first_contrasts), self.principles, self.splits.evaluation, recipe
            )
        self._check_sampling()
        Judging(self).check()
        self.trackers = RunTrackers(self.directory.folder, self.recipe)

    @cached_property
    def tokenizer(self) -> Any:
        return loading.load_tokenizer(self.recipe.model)

    @cached_property
    def prompts(self) -> PromptBuilder:
        return PromptBuilder(self.tokenizer, self.recipe.prompt, self.recipe.generation.chain_of_thought)

    @property
    def learned(self) -> list[Principle]:
        return [p for p in self.principles if not p.held_out]

    @property
    def held_out(self) -> list[Principle]:
        return [p for p in self.principles if p.held_out]

    @property
    def iterations(self) -> int:
        return self.recipe.training.iterations

    # The commands.

    def run(self) -> dict[str, Any]:
        """Everything that is not done yet; returns the summary."""
        if self.trained() < self.iterations and self.recipe.launch.total > 1:
            launch.require_machines(self.recipe.launch)
        with self.opened():
            self._announce()
            if self.trained() < self.iterations:
                self.trackers.check()
            Evaluation(self).evaluate(0)
            for iteration in range(1, self.iterations + 1):
                Generation(self).generate(iteration)
                Training(self).train(iteration)
                Evaluation(self).evaluate(iteration)
            return self._summarise()

    def generate(self, iteration: int, *, merge: bool = False) -> None:
        """Contrasts of one iteration, by the model of the one before; with `merge` from the shards that are there."""
        with self.opened():
            self._check_iteration(iteration)
            if merge:
                Generation(self).require_own_contrasts(iteration)
            if iteration > 1:
                self.directory.require(f"train-{iteration - 1}", "sami train")
            Generation(self).generate(iteration, merge)

    def generate_shard(self, iteration: int, shard: Shard) -> Path:
        """One part of an iteration's contrasts, unfiltered; several machines may do this at once."""
        self._check_iteration(iteration)
        Generation(self).require_own_contrasts(iteration)
        with self.opened(wait=_OTHER_SHARDS_OPEN):
            if iteration > 1:
                self.directory.require(f"train-{iteration - 1}", "sami train")
        return Generation(self).generate_shard(iteration, shard)

    def train(self, iteration: int) -> None:
        """The model of one iteration, from its contrasts."""
        with self.opened():
            self._check_iteration(iteration)
            self.directory.require(f"generate-{iteration}", "sami generate")
            Training(self).train(iteration)

    def train_model(self, iteration: int) -> float | None:
        """Train and save the model of one iteration: the part that each of several processes runs.

        Returns:
            The share of the saved weights that training changed; None in a process that does not save.
        """
        return Training(self).train_model(iteration)

    def assist(self, iterations: Iterable[int]) -> None:
        """Train along with machine 0, which does everything else of a run; for machines of a higher rank.

        Raises:
            InputError: whatever a process of this machine refused.
        """
        for iteration in iterations:
            self._check_iteration(iteration)
            if self.directory.record(f"train-{iteration}") is None:
                machine = f"machine {self.recipe.launch.rank} of {self.recipe.launch.nodes}"
                say(f"iteration {iteration}: {machine} waits for machine 0 to train with it")
                launch.train(self.recipe, self.directory.folder, iteration)

    def evaluate(self) -> dict[str, Any]:
        """Base and every iteration that is trained; returns the summary of those."""
        with self.opened():
            for iteration in range(self.trained() + 1):
                Evaluation(self).evaluate(iteration)
            return self._summarise()

    def judge(self) -> dict[str, Any]:
        """Ask the recipe's judges about what is evaluated; returns the summary with their win rates."""
        with self.opened():
            self.directory.require(f"score-{BASE}", "sami evaluate")
            return self._summarise()

    def calibrate(self) -> list[Calibration]:
        """Measure the recipe's judges on base's responses, whose better one is known."""
        with self.opened():
            self.directory.require(f"respond-{BASE}", "sami evaluate")
            return Judging(self).calibrate()

    def trained(self) -> int:
        """Iterations whose training is done."""
        done = itertools.takewhile(
            lambda i: self.directory.record(f"train-{i}") is not None, range(1, self.iterations + 1)
        )
        return sum(1 for _ in done)

    @contextmanager
    def opened(self, wait: float = 0.0) -> Iterator[None]:
        if self.directory.record(f"respond-{BASE}") is None:
            self.check_context()  # reads config, tokenizer and templates, before anything is written
            saving.require_savable(self.recipe.model, self.tokenizer)
            require_possible(self.recipe, self.dtype, self.adapter_weights())
        given = self.recipe.principles
        text = Path(given).read_text(encoding="utf-8") if isinstance(given, str) else None
        with self.directory.open(self.recipe, text, wait):
            if isinstance(given, WrittenPrinciples):
                self._write_principles(given)
            yield

    # The end of a run.

    def _summarise(self) -> dict[str, Any]:
        policies = [policy_name(i) for i in range(self.trained() + 1)]
        value = summary.summarise(self.directory, self.recipe, self.principles, policies)
        judging = Judging(self)
        baselines = [judging.baseline(one) for one in self.recipe.evaluation.baselines]
        value["policies"] += [judged_summary.baseline(one, self.principles, self.recipe) for one in baselines]
        value |= judging.compare(policies, baselines)
        if self.recipe.generation.chain_of_thought is not None:
            records = {p["name"]: self.directory.record(f"respond-{p['name']}") for p in value["policies"]}
            value["unsplit"] = {name: record["result"]["unsplit"] for name, record in records.items() if record}
        if value["comparisons"]:
            value["verdict"] = judged_summary.verdict(value["comparisons"][-1], value["win_rates"])
        write_json(self.directory.summary, value)
        for iteration in range(1, self.trained() + 1):
            self.write_card(value, iteration)
        return value

    def write_card(self, value: dict[str, Any], iteration: int) -> None:
        model_card.write(
            self.directory.model(iteration),
            value,
            iteration,
            name=self.directory.folder.resolve().name,
            recipe=self.recipe,
            principles=self.principles,
            prompts=self.prompts,
            tokenizer=self.tokenizer,
        )

    # Principles.

    def _known_principles(self) -> list[Principle]:
        """Those of the recipe's file, or those that the run's writer wrote; until then, stand-ins for planning."""
        given = self.recipe.principles
        if isinstance(given, str):
            return load_principles(given)
        target = self.directory.principles
        return load_principles(target) if target.is_file() else principle_files.placeholders(given)

    def _write_principles(self, settings: WrittenPrinciples) -> None:
        """Ask the recipe's writer once; what it wrote may be edited until something is made from it."""
        target = self.directory.principles

        def work() -> dict[str, Any]:
            target.unlink(missing_ok=True)  # of a recipe under which no step was finished
            principle_files.write_file(settings, target)
            return {}

        self.directory.step("principles", settings.model_dump(), [target], work)
        self.principles = load_principles(target)
        self._check_sampling()
        if self.directory.record(f"respond-{BASE}") is None:
            self.check_context()

    def _check_sampling(self) -> None:
        check_sampling(self.learned, self.recipe.sampling)

    # What is generated for.

    def training_plan(self, iteration: int) -> list[Planned]:
        return training_plan(self.recipe, self.learned, self.splits.for_iteration(iteration), iteration)

    def evaluation_plan(self) -> list[Planned]:
        return evaluation_plan(self.recipe, self.principles, self.splits.evaluation)

    def _split(self) -> tuple[LoadedQueries, Splits]:
        q = self.recipe.queries
        loaded = load_queries(
            q.path,
            format=q.format,
            field=q.field,
            split=q.split,
            config=q.config,
            data_dir=q.data_dir,
            revision=q.revision,
            min_chars=q.min_chars,
            max_chars=q.max_chars,
        )
        return loaded, split_queries(loaded.queries, train=q.train, evaluation=q.evaluation, seed=q.seed)

    # What the steps share: whose weights, which engine, and what a step is made from.

    def weights(self, iteration: int, dtype: torch.dtype | None = None) -> loading.Weights:
        """Where the weights of an iteration are; iteration 0 is base."""
        folder, dtype = self.directory.model(iteration).resolve(), dtype or self.dtype
        identity = self.policy_inputs(iteration)
        if iteration > 0 and adapters.base_of(folder) is None:
            return loading.Weights(sources.derived(self.recipe.model, folder), dtype, identity)
        return loading.Weights(self.recipe.model, dtype, identity, folder if iteration > 0 else None)

    def load(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The weights of an iteration to score and generate with, over several GPUs where one cannot hold them."""
        return self.weights(iteration, dtype).load(quantize=quantize)

    def load_to_train(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The weights of an iteration on one device."""
        return self.weights(iteration, dtype).load(devices.default_device(), quantize=quantize)

    def engine(self, weights: loading.Weights, tokenizer: Any) -> Engine:
        """The recipe's engine on some weights, with all other memory free for it."""
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
        """Answer each planned contrast; the principles' order is shuffled in the training prompt.

        Args:
            prompts: of the engine's model, where it is not the recipe's.
            part: answer only these, as they would be answered among all.
        """
        prompts = prompts or self.prompts
        # The seed goes on from the prompts before, so that parts do not share their random numbers.
        before = sum(len(p.constitutions) for p in planned[: part.start])
        generation = self.recipe.generation
        generation = generation.model_copy(update={"seed": generation.seed + before})
        completions = complete(engine, planned[part], prompts, generation, label)
        seed = self.recipe.training.seed if shuffle else None
        return as_contrasts(planned, completions, prompts, shuffle_seed=seed, part=part)

    def unsplit(self, contrasts: Sequence[Contrast]) -> dict[str, int]:
        """How many contrasts hold reasoning without an answer; nothing where none was asked for."""
        if self.recipe.generation.chain_of_thought is None:
            return {}
        return {"unsplit": sum("unsplit" in contrast.finish_reasons for contrast in contrasts)}

    def packing(self, contrasts: list[Contrast]) -> bool:
        """Whether responses may share rows on this model: as the recipe says, checked once on the base model."""
        if not self.recipe.training.share_prefix:
            return False
        longest = max(contrasts, key=row_tokens)

        def check() -> dict[str, Any]:
            # Weights that are never held in fp32 for training may not fit in it.
            dtype = torch.float32 if self.recipe.adapter is None else self.dtype
            found = check_packing(self.load(0, dtype), longest, self.tokenizer.pad_token_id)
            if not found.shared:
                say(f"responses are scored in rows of their own: shared rows differ by {found.difference:.2g} nats")
            return {"shared": found.shared, "difference": found.difference}

        inputs = {"policy": self.policy_inputs(0)}
        return bool(self.directory.step("packing", inputs, [], check)["shared"])

    def inputs(self, *sections: str) -> dict[str, Any]:
        # How vLLM runs on a machine is no part of what a step is made from; whoever writes the first iteration's
        # contrasts is recorded by content, in the step that uses them.
        apart = {"vllm", "first_model", "first_contrasts"}
        chosen = {name: getattr(self.recipe, name).model_dump(exclude=apart) for name in sections}
        return json.loads(json.dumps(chosen | {"principles": file_hash(self._principles_file)}))

    @property
    def _principles_file(self) -> Path:
        given = self.recipe.principles
        return Path(given) if isinstance(given, str) else self.directory.principles

    def answering_inputs(self) -> dict[str, Any]:
        """What held-out responses depend on besides the policy."""
        evaluation = {name: getattr(self.recipe.evaluation, name) for name in ("principles_per_query", "seed")}
        queries = hash_queries((self.splits.evaluation,))
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

    # Said and refused before anything is generated.

    def _announce(self) -> None:
        training, evaluation = self.recipe.training, len(self.splits.evaluation)
        steps = ", ".join(str(training.steps_of(i + 1)) for i in range(self.iterations))
        say(
            f"{self.directory.folder}: {len(self.learned)} principles to learn, {len(self.held_out)} held out; "
            f"{sum(map(len, self.splits.train))} queries to train on, {evaluation} held out; {self.iterations} "
            f"iterations of {steps} steps with {training.batch_size} contrasts each"
        )
        if dropped := self.loaded.dropped():
            say(f"{len(self.loaded.queries)} of {self.loaded.read} records hold a usable query (dropped: {dropped})")

    def adapter_weights(self) -> int:
        """Weights of the recipe's adapter, 0 without one.

        Raises:
            InputError: modules that do not exist or cannot have an adapter.
        """
        if self.recipe.adapter is None:
            return 0
        return adapters.trained_weights(self.recipe.adapter, self.recipe.model, loading.empty_model(self.recipe.model))

    def check_context(self) -> None:
        """Refuse a prompt that leaves no room for its response in the model's context."""
        plans = [self.evaluation_plan(), *(self.training_plan(i + 1) for i in range(self.iterations))]
        self.check_prompts(self.recipe.model, self.prompts, itertools.chain.from_iterable(plans))
        writer = self.recipe.generation.first_model
        if writer is not None:
            self.check_prompts(writer, first_iteration.prompts_of(writer, self.recipe), self.training_plan(1))

    def check_prompts(self, model: Model, prompts: PromptBuilder, plan: Iterable[Planned]) -> None:
        context = structure.context_length(loading.load_config(model))
        new = self.recipe.generation.max_new_tokens
        for p in plan:
            for c in p.constitutions:
                longest = len(prompts.generation_prompt(p.query, c.texts, c.text))
                if context and longest + new > context:
                    raise InputError(
                        f"The prompt for the query {p.query[:60]!r} has {longest} tokens and may get {new} more, and "
                        f"the model's context is {context} ({model.source}). Lower queries.max_chars or "
                        f"generation.max_new_tokens."
                    )

    def _check_iteration(self, iteration: int) -> None:
        if not 1 <= iteration <= self.iterations:
            raise InputError(f"Iteration {iteration} was asked for, and the recipe has {self.iterations}.")


def run(recipe: Recipe, folder: str | Path) -> dict[str, Any]:
    """Run a recipe into a folder, or continue what is there; returns the summary."""
    return Pipeline(recipe, folder).run()
