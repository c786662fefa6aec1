"""The loop as steps over a run directory: generate, train, evaluate, repeat, summarise.

    run(load_recipe("quickstart"), "runs/quickstart")

Every step is redone only if it never finished, and depends on nothing but its inputs and the seeds of the
recipe: a run that was killed and started again ends with the summary of one that was not.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback

from sami import (
    adapters,
    first_iteration,
    judged_summary,
    launch,
    model_card,
    models,
    principle_files,
    quantization,
    summary,
)
from sami.answering import as_contrasts, complete
from sami.contrasts import Contrast, filter_contrasts, read_contrasts, row_tokens, write_contrasts
from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.evaluation.measure import measure
from sami.files import file_hash, write_json
from sami.generation import Engine, SamplingSettings
from sami.generation.making import make_engine
from sami.generation.transformers_engine import TransformersEngine
from sami.generation.vllm_engine import chosen_engine
from sami.judging_steps import Judging
from sami.memory import micro_batch, require_possible
from sami.principles import Principle, check_sampling, load_principles
from sami.progress import bar, say
from sami.prompts import PromptBuilder
from sami.queries import LoadedQueries, Query, Splits, load_queries, split_queries
from sami.recipe import Model, Recipe, WrittenPrinciples
from sami.run_directory import BASE, RunDirectory, policy_name
from sami.sampling import Planned, evaluation_plan, training_plan
from sami.scoring import check_packing, response_logprobs
from sami.shards import Shard, merge, require_same, write_shard
from sami.trackers import RunTrackers
from sami.trainer import SAMIConfig, SAMITrainer, needs_gradient_cache
from sami.training_log import Recorder, keep_steps, last_checkpoint, last_line, step_of
from sami.weight_change import require_changed

_OTHER_SHARDS_OPEN = 60.0  # seconds in which as many machines as there are shards may look at the run's recipe


class Pipeline:
    """The steps of one run. Building it reads and checks the recipe's data and writes nothing.

    Raises:
        InputError: anything in the recipe, the principles, the queries or the model that cannot work.
    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        dtype = models.resolve_dtype(recipe.model.dtype)
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
            self._imported = first_iteration.written_in_file(
                Path(recipe.generation.first_contrasts), self.principles, self.splits.evaluation, recipe
            )
        self._check_sampling()
        Judging(self).check()
        self.trackers = RunTrackers(self.directory.folder, self.recipe)

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.recipe.model)

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
            self._evaluate(0)
            for iteration in range(1, self.iterations + 1):
                self._generate(iteration)
                self._train(iteration)
                self._evaluate(iteration)
            return self._summarise()

    def generate(self, iteration: int, *, merge: bool = False) -> None:
        """Contrasts of one iteration, by the model of the one before; with `merge` from the shards that are there."""
        with self.opened():
            self._check_iteration(iteration)
            if merge:
                self._require_own_contrasts(iteration)
            if iteration > 1:
                self.directory.require(f"train-{iteration - 1}", "sami train")
            self._generate(iteration, merge)

    def generate_shard(self, iteration: int, shard: Shard) -> Path:
        """One part of an iteration's contrasts, unfiltered; several machines may do this at once."""
        self._check_iteration(iteration)
        self._require_own_contrasts(iteration)
        with self.opened(wait=_OTHER_SHARDS_OPEN):
            if iteration > 1:
                self.directory.require(f"train-{iteration - 1}", "sami train")
        target = shard.file(self.directory.shards(iteration))
        planned, inputs = self.training_plan(iteration), self._shard_inputs(iteration)
        if shard.of > len(planned):
            raise InputError(
                f"The shard {shard} was asked for, and iteration {iteration} has {len(planned)} contrasts."
            )
        if target.exists():
            require_same(target, inputs)
            say(f"iteration {iteration}: shard {shard} is there already")
            return target
        with self.directory.held(target):
            engine = self.engine(self.weights(iteration - 1), self.tokenizer)
            label = f"iteration {iteration}: generating shard {shard}"
            part = shard.part(len(planned))
            write_shard(target, self.respond(engine, planned, label, shuffle=True, part=part), shard, inputs)
        say(f"iteration {iteration}: shard {shard} holds {part.stop - part.start} of {len(planned)} contrasts")
        return target

    def train(self, iteration: int) -> None:
        """The model of one iteration, from its contrasts."""
        with self.opened():
            self._check_iteration(iteration)
            self.directory.require(f"generate-{iteration}", "sami generate")
            self._train(iteration)

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
                self._evaluate(iteration)
            return self._summarise()

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
            require_possible(self.recipe, self.dtype, self.adapter_weights())
        given = self.recipe.principles
        text = Path(given).read_text(encoding="utf-8") if isinstance(given, str) else None
        with self.directory.open(self.recipe, text, wait):
            if isinstance(given, WrittenPrinciples):
                self._write_principles(given)
            yield

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
        sampling = self.recipe.sampling
        check_sampling(
            self.learned,
            scheme=sampling.scheme,
            constitutions=sampling.constitutions,
            principles_per_constitution=sampling.principles_per_constitution,
        )

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

    # Generate.

    def _generation_inputs(self, iteration: int) -> dict[str, Any]:
        sections = ("prompt", "sampling", "generation", "filters")
        inputs = self.inputs(*sections) | {"policy": self.policy_inputs(iteration - 1)}
        return inputs | {
            "contrasts": len(self.training_plan(iteration)),
            "queries": _hash_queries(self.splits.train),
        }

    def _require_own_contrasts(self, iteration: int) -> None:
        if iteration == 1 and first_iteration.identity(self.recipe) is not None:
            raise InputError(
                "The first iteration's contrasts are another model's or a file's (generation.first_model, "
                "generation.first_contrasts), and shards are for what the run's own model writes. Use `sami generate` "
                "without --shard and --merge."
            )

    def _shard_inputs(self, iteration: int) -> dict[str, Any]:
        """What a shard depends on: also what the run's own recipe says where there is no other machine."""
        machine = {"dtype": self.recipe.model.dtype, "order_of_principles": self.recipe.training.seed}
        return self._generation_inputs(iteration) | machine

    def _generate(self, iteration: int, from_shards: bool = False) -> None:
        target, inputs = self.directory.contrasts(iteration), self._generation_inputs(iteration)
        writer = first_iteration.identity(self.recipe) if iteration == 1 else None
        if writer is not None:
            inputs |= {"written_by": writer}

        def work() -> dict[str, Any]:
            written = None if writer is None else self._written_elsewhere()
            if written is not None:
                contrasts = written.contrasts
            elif from_shards:
                ids = [p.id for p in self.training_plan(iteration)]
                contrasts = merge(self.directory.shards(iteration), self._shard_inputs(iteration), ids)
            else:
                engine = self.engine(self.weights(iteration - 1), self.tokenizer)
                label = f"iteration {iteration}: generating"
                contrasts = self.respond(engine, self.training_plan(iteration), label, shuffle=True)
            unfit = None if written is None else written.unfit
            kept, dropped = filter_contrasts(contrasts, self.recipe.filters, self.prompts.stop, unfit)
            needed = self.recipe.training.steps_of(iteration) * self.recipe.training.batch_size
            write_contrasts(target, kept[:needed])
            taken = ", ".join(f"{name} {count}" for name, count in dropped.items() if count) or "none"
            by = "" if written is None else f", written by {written.by}"
            say(f"iteration {iteration}: {len(kept)} of {len(contrasts)} contrasts kept (dropped: {taken}){by}")
            if len(kept) < needed:
                say(f"iteration {iteration}: the steps need {needed} contrasts, so some are trained on twice")
            result = {
                "generated": len(contrasts),
                "kept": len(kept),
                "used": len(kept[:needed]),
                "dropped": dropped,
            }
            return result if written is None else result | {"written_by": written.by}

        self.directory.step(f"generate-{iteration}", inputs, [target], work)

    def _written_elsewhere(self) -> first_iteration.Written:
        """The first iteration's contrasts, where another model or a file has them."""
        model, label = self.recipe.generation.first_model, "iteration 1: generating"
        if model is None:
            written = self._imported(self.prompts)
        else:
            plan = self.training_plan(1)
            written = first_iteration.written_by_model(model, plan, self.prompts, self.recipe, label, self.engine)
        context = models.context_length(models.load_config(self.recipe.model))
        return first_iteration.without_too_long(written, context)

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

    # Train.

    def _train(self, iteration: int) -> None:
        training, start = self.recipe.training, self._start_of(iteration)
        contrasts_file = self.directory.contrasts(iteration)
        inputs = self.inputs("training") | {
            "start": self.policy_inputs(start),
            "contrasts": file_hash(contrasts_file),
        }
        if self.recipe.adapter is not None:
            inputs |= {"adapter": self.recipe.adapter.model_dump()}

        def work() -> dict[str, Any]:
            metrics, checkpoints = self.directory.metrics(iteration), self.directory.checkpoints(iteration)
            resumable = last_checkpoint(checkpoints)
            keep_steps(metrics, step_of(resumable) if resumable else 0)
            contrasts = read_contrasts(contrasts_file)
            self._packing(contrasts)  # both are recorded before processes ask for them
            self._caching(iteration, contrasts)
            models.release_memory()  # what generation held belongs to training now
            if self.recipe.launch.total == 1:
                changed = self.train_model(iteration)
            else:
                launch.train(self.recipe, self.directory.folder, iteration)
                changed = last_line(metrics)["weights_changed"]
            for checkpoint in checkpoints.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            with suppress(OSError):  # there may be none
                checkpoints.rmdir()
            steps, last = training.steps_of(iteration), last_line(metrics)
            say(
                f"iteration {iteration}: {steps} steps, bound on its training contrasts {last['bound']:.3f} nats "
                f"at the last one, {changed:.0%} of weights changed after rounding"
            )
            models.release_memory()  # evaluation needs what trainer and model held
            return {"steps": steps, "weights_changed": changed}

        self.directory.step(f"train-{iteration}", inputs, [self.directory.model(iteration)], work)

    def train_model(self, iteration: int) -> float | None:
        """Train and save the model of one iteration: the part that each of several processes runs.

        Returns:
            The share of the saved weights that training changed; None in a process that does not save.
        """
        contrasts = read_contrasts(self.directory.contrasts(iteration))
        resumable = last_checkpoint(self.directory.checkpoints(iteration))
        trainer = SAMITrainer(
            **self._start(self._start_of(iteration)),
            args=self._training_arguments(iteration, contrasts),
            train_dataset=contrasts,
            processing_class=self.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        steps = self.recipe.training.steps_of(iteration)
        with bar(f"iteration {iteration}: training", steps, "steps") as update:
            trainer.add_callback(Recorder(self.directory.metrics(iteration), update))
            done = step_of(resumable) if resumable else 0
            with self.trackers.training(iteration, done, logs=trainer.is_world_process_zero()) as callbacks:
                for callback in callbacks:
                    trainer.add_callback(callback)
                trainer.train(resume_from_checkpoint=str(resumable) if resumable else None)
        trained = trainer.whole_model()
        if not trainer.is_world_process_zero():
            return None
        return self._save(trained, iteration, last_line(self.directory.metrics(iteration))["weights_changed"])

    def _start(self, iteration: int) -> dict[str, Any]:
        """Model, new adapter and reference that training starts from; iteration 0 is base."""
        adapter = self.recipe.adapter
        if adapter is not None and iteration > 0 and not adapter.merge:
            # The same adapter goes on, so its base remains the reference.
            base = self.load_to_train(0, quantize=adapter.quantize)
            return {"model": adapters.load(base, self.directory.model(iteration), trainable=True)}
        quantize = None if adapter is None else adapter.quantize
        reference = self.load_to_train(0, quantize=quantize) if self.recipe.training.beta and iteration > 0 else None
        if adapter is None and self.recipe.launch.total > 1:
            source = self.weights(iteration).model
            return {"model": models.load_for_shards(source, torch.float32, launch.this_process())}
        if adapter is None:
            masters = torch.bfloat16 if self.recipe.training.master_weights == "bfloat16" else torch.float32
            return {"model": self.load_to_train(iteration, masters), "ref_model": reference}
        config = adapters.lora_config(adapter, self.recipe.model)
        return {
            "model": self.load_to_train(iteration, quantize=quantize),
            "peft_config": config,
            "ref_model": reference,
        }

    def _save(self, model: Any, iteration: int, changed: float) -> float:
        """Save what was trained; returns the share of the saved weights that training changed."""
        adapter, folder = self.recipe.adapter, self.directory.model(iteration)
        if adapter is not None and not adapter.merge:
            adapters.save(model, self.tokenizer, folder)
            return changed
        if adapter is not None:
            if adapter.quantize:
                model = adapters.moved(model, self.load_to_train(self._start_of(iteration)))
            model, changed = adapters.merge(model)
            require_changed(
                changed, self.recipe.training.steps_of(iteration), self.recipe.training.lr_of(iteration), self.dtype
            )
        models.save_model(model, self.tokenizer, folder, self.dtype)
        return changed

    def _start_of(self, iteration: int) -> int:
        """The policy that an iteration's training starts from; 0 is base."""
        return iteration - 1 if self.recipe.training.restart_from == "previous" else 0

    def adapter_weights(self) -> int:
        """Weights of the recipe's adapter, 0 without one.

        Raises:
            InputError: modules that do not exist or cannot have an adapter.
        """
        if self.recipe.adapter is None:
            return 0
        return adapters.trained_weights(self.recipe.adapter, self.recipe.model, models.empty_model(self.recipe.model))

    def _training_arguments(self, iteration: int, contrasts: list[Contrast]) -> SAMIConfig:
        t = self.recipe.training
        share = t.batch_size // self.recipe.launch.total  # of a step, for each process
        micro = micro_batch(self.recipe, self.recipe.launch.total)
        scheduler = "constant_with_warmup" if t.lr_scheduler == "constant" and t.warmup_steps else t.lr_scheduler
        return SAMIConfig(
            output_dir=str(self.directory.checkpoints(iteration)),
            max_steps=t.steps_of(iteration),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=share // micro,
            learning_rate=t.lr_of(iteration),
            lr_scheduler_type=scheduler,
            warmup_steps=t.warmup_steps,
            optim={"adamw": "adamw_torch_fused", "rmsprop": "rmsprop"}[t.optimizer],
            weight_decay=t.weight_decay,
            max_grad_norm=t.max_grad_norm,
            explode_above=t.explode_above,
            beta=t.beta,
            contrast=t.contrast,
            per_token=t.per_token,
            train_eos=t.train_eos,
            share_prefix=self._packing(contrasts),
            gradient_cache=self._caching(iteration, contrasts),
            gradient_checkpointing=t.gradient_checkpointing,
            compile_layers=t.compile,
            compute_dtype="bfloat16" if self.dtype == torch.bfloat16 else "float32",
            master_weights=t.master_weights,
            save_strategy="steps" if t.checkpoint_steps else "no",
            save_steps=t.checkpoint_steps or 500,
            save_total_limit=2,  # the last one may be half written when the process is killed
            report_to="none",  # trackers are of the whole run
            disable_tqdm=True,
            seed=t.seed,
        )

    # Evaluate.

    def _evaluate(self, iteration: int) -> None:
        policy = policy_name(iteration)
        generation = self.answering_inputs() | {"policy": self.policy_inputs(iteration)}
        responses = self.directory.responses(policy)

        def respond() -> dict[str, Any]:
            engine = self.engine(self.weights(iteration), self.tokenizer)
            contrasts = self.respond(engine, self.evaluation_plan(), f"{policy}: answering", shuffle=False)
            write_contrasts(responses, contrasts)
            counts = self.unsplit(contrasts)
            if counts.get("unsplit"):
                say(f"{policy}: {counts['unsplit']} of {len(contrasts)} contrasts hold reasoning without an answer")
            return counts

        def score() -> dict[str, Any]:
            figures = self._score(iteration, read_contrasts(responses))
            write_json(self.directory.scores(policy), figures)
            return {}

        self.directory.step(f"respond-{policy}", generation, [responses], respond)
        scoring = {"responses": file_hash(responses), "policy": self.policy_inputs(iteration)}
        fresh = self.directory.record(f"score-{policy}") is None
        self.directory.step(f"score-{policy}", scoring, [self.directory.scores(policy)], score)
        policies = [policy_name(i) for i in range(iteration + 1)]
        done = summary.summarise(self.directory, self.recipe, self.principles, policies)
        say(summary.headline(done["policies"][-1]))
        if fresh:
            self.trackers.evaluated(done["policies"][-1])
        if iteration > 0 and not (self.directory.model(iteration) / model_card.FILE).is_file():
            self._write_card(done, iteration)

    def _write_card(self, value: dict[str, Any], iteration: int) -> None:
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

    def _score(self, iteration: int, contrasts: list[Contrast]) -> dict[str, Any]:
        """Log-prob matrices by the policy and by the base model, verdicts and health of one policy."""
        share_prefix = self._packing(contrasts)
        models.release_memory()
        base = self.load(0)
        policy = None if iteration == 0 else self.load(iteration)
        total = len(contrasts) * (1 if policy is None else 2)
        with bar(f"{policy_name(iteration)}: scoring", total, "contrasts") as update:
            return measure(
                policy,
                base,
                contrasts,
                tokenizer=self.tokenizer,
                prompts=self.prompts,
                principles=self.principles,
                plain_answers=[] if policy is None else self._plain_answers(base),
                health_queries=self.recipe.evaluation.health_queries,
                batch_size=2 * self.recipe.training.micro_batch_size,  # no gradients, so twice the contrasts fit
                share_prefix=share_prefix,
                on_contrasts=update,
            )

    def _packing(self, contrasts: list[Contrast]) -> bool:
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

    def _caching(self, iteration: int, contrasts: list[Contrast]) -> bool:
        """Whether an iteration trains with the gradient cache: as the recipe says, or decided once by free memory.

        The two routes round differently, so an iteration that is resumed must take the one it began with.
        """
        training = self.recipe.training
        if training.gradient_cache is not None:
            return training.gradient_cache

        def decide() -> dict[str, Any]:
            model = models.empty_model(self.recipe.model)  # its weights are loaded later
            total = sum(p.numel() for p in model.parameters())
            if self.recipe.adapter is None:
                held = total * (4 + self.dtype.itemsize) / self.recipe.launch.total  # masters and copy
            else:
                narrow = quantization.weights_in_4_bits(model) if self.recipe.adapter.quantize else 0
                held = quantization.held_bytes(total, narrow, self.dtype)
            config, free = models.load_config(self.recipe.model), models.free_bytes() - int(held)
            needed = needs_gradient_cache(config, contrasts, training.micro_batch_size, self.dtype, free)
            return {"gradient_cache": needed}

        return bool(self.directory.step(f"gradient-cache-{iteration}", {}, [], decide)["gradient_cache"])

    def _plain_answers(self, base: PreTrainedModel) -> list[tuple[list[int], list[int]]]:
        """The base model's answers without a constitution, the ground on which forgetting is measured."""
        queries = self.splits.evaluation[: self.recipe.evaluation.health_queries]
        asked = [self.prompts.training_prompt(q.text, [], "") for q in queries]
        settings = SamplingSettings(max_new_tokens=self.recipe.generation.max_new_tokens, stop=self.prompts.stop)
        # The model is in memory already, and few are asked for: no process is worth its start here.
        engine = TransformersEngine(base, self.tokenizer, self.recipe.generation.batch_size)
        answers = engine.generate(asked, settings)
        return [(prompt, answer.token_ids) for prompt, answer in zip(asked, answers, strict=True)]

    # Summarise.

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
            self._write_card(value, iteration)
        return value

    # Judge.

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

    # Shared.

    def weights(self, iteration: int, dtype: torch.dtype | None = None) -> models.Weights:
        """Where the weights of an iteration are; iteration 0 is base."""
        folder, dtype = self.directory.model(iteration).resolve(), dtype or self.dtype
        identity = self.policy_inputs(iteration)
        if iteration > 0 and adapters.base_of(folder) is None:
            return models.Weights(Model(source=str(folder)), dtype, identity)
        return models.Weights(self.recipe.model, dtype, identity, folder if iteration > 0 else None)

    def load(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The weights of an iteration to score and generate with, over several GPUs where one cannot hold them."""
        return self.weights(iteration, dtype).load(quantize=quantize)

    def load_to_train(
        self, iteration: int, dtype: torch.dtype | None = None, *, quantize: Literal["nf4"] | None = None
    ) -> PreTrainedModel:
        """The weights of an iteration on one device."""
        return self.weights(iteration, dtype).load(models.default_device(), quantize=quantize)

    def engine(self, weights: models.Weights, tokenizer: Any) -> Engine:
        """The recipe's engine on some weights, with all other memory free for it."""
        models.release_memory()
        workplace = self.directory.folder / ".generation"
        return make_engine(self.recipe.generation, weights, tokenizer, workplace, response_logprobs)

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
        queries = _hash_queries((self.splits.evaluation,))
        return self.inputs("prompt", "sampling", "generation") | {"evaluation": evaluation, "queries": queries}

    def policy_inputs(self, iteration: int) -> str:
        """What identifies a policy: the base weights, or the contrasts and settings it was trained with."""
        if iteration == 0:
            return self._base_fingerprint
        record = self.directory.require(f"train-{iteration}", "sami train")
        return _hash(json.dumps(record["inputs"], sort_keys=True))

    @cached_property
    def _base_fingerprint(self) -> str:
        return models.fingerprint(self.recipe.model)

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

    def check_context(self) -> None:
        """Refuse a prompt that leaves no room for its response in the model's context."""
        plans = [self.evaluation_plan(), *(self.training_plan(i + 1) for i in range(self.iterations))]
        self.check_prompts(self.recipe.model, self.prompts, itertools.chain.from_iterable(plans))
        writer = self.recipe.generation.first_model
        if writer is not None:
            self.check_prompts(writer, first_iteration.prompts_of(writer, self.recipe), self.training_plan(1))

    def check_prompts(self, model: Model, prompts: PromptBuilder, plan: Iterable[Planned]) -> None:
        context = models.context_length(models.load_config(model))
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


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_queries(groups: Sequence[Sequence[Query]]) -> str:
    return _hash(json.dumps([[q.text for q in group] for group in groups]))
