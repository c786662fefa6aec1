"""Training as a step of a run: from an iteration's contrasts to its saved model.

Training(pipeline).train(1)
"""

import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import PrinterCallback

from sami.console import bar, say
from sami.contrasts import Contrast, read_contrasts, row_tokens
from sami.costs.memory import micro_batch
from sami.files import file_hash
from sami.loop import launch
from sami.models import adapters, devices, loading, quantization, saving
from sami.scoring.merge_check import checked_merge
from sami.training.config import SAMIConfig
from sami.training.metrics_log import Recorder, keep_steps, last_checkpoint, last_line, step_of
from sami.training.trainer import SAMITrainer, needs_gradient_cache
from sami.training.weight_change import require_changed

if TYPE_CHECKING:
    from sami.pipeline import Pipeline


class Training:
    """What becomes of the contrasts of one run's iterations."""

    def __init__(self, run: "Pipeline") -> None:
        self.run = run

    def train(self, iteration: int) -> None:
        """The model of one iteration, in as many processes as the recipe says, unless it is there."""
        training, start = self.run.recipe.training, self._start_of(iteration)
        contrasts_file = self.run.directory.contrasts(iteration)
        inputs = self.run.inputs("training") | {
            "start": self.run.policy_inputs(start),
            "contrasts": file_hash(contrasts_file),
        }
        if self.run.recipe.adapter is not None:
            inputs |= {"adapter": self.run.recipe.adapter.model_dump()}

        def work() -> dict[str, Any]:
            metrics, checkpoints = self.run.directory.metrics(iteration), self.run.directory.checkpoints(iteration)
            resumable = last_checkpoint(checkpoints)
            keep_steps(metrics, step_of(resumable) if resumable else 0)
            contrasts = read_contrasts(contrasts_file)
            self.run.packing(contrasts)  # both are recorded before processes ask for them
            self._caching(iteration, contrasts)
            devices.release_memory()  # what generation held belongs to training now
            if self.run.recipe.launch.total == 1:
                changed = self.train_model(iteration)
            else:
                launch.train(self.run.recipe, self.run.directory.folder, iteration)
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
            devices.release_memory()  # evaluation needs what trainer and model held
            return {"steps": steps, "weights_changed": changed}

        self.run.directory.step(f"train-{iteration}", inputs, [self.run.directory.model(iteration)], work)

    def train_model(self, iteration: int) -> float | None:
        """Train and save the model of one iteration: the part that each of several processes runs.

        Returns:
            The share of the saved weights that training changed; None in a process that does not save.
        """
        contrasts = read_contrasts(self.run.directory.contrasts(iteration))
        resumable = last_checkpoint(self.run.directory.checkpoints(iteration))
        trainer = SAMITrainer(
            **self._start(self._start_of(iteration)),
            args=self.arguments(iteration, contrasts),
            train_dataset=contrasts,
            processing_class=self.run.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        steps = self.run.recipe.training.steps_of(iteration)
        with bar(f"iteration {iteration}: training", steps, "steps") as update:
            trainer.add_callback(Recorder(self.run.directory.metrics(iteration), update))
            done = step_of(resumable) if resumable else 0
            with self.run.trackers.training(iteration, done, logs=trainer.is_world_process_zero()) as callbacks:
                for callback in callbacks:
                    trainer.add_callback(callback)
                trainer.train(resume_from_checkpoint=str(resumable) if resumable else None)
        trained = trainer.whole_model()
        if not trainer.is_world_process_zero():
            return None
        return self._save(trained, iteration, last_line(self.run.directory.metrics(iteration))["weights_changed"])

    def _start(self, iteration: int) -> dict[str, Any]:
        """Model, new adapter and reference that training starts from; iteration 0 is base."""
        adapter = self.run.recipe.adapter
        if adapter is not None and iteration > 0 and not adapter.merge:
            # The same adapter goes on, so its base remains the reference.
            base = self.run.load_to_train(0, quantize=adapter.quantize)
            return {"model": adapters.load(base, self.run.directory.model(iteration), trainable=True)}
        quantize = None if adapter is None else adapter.quantize
        reference = (
            self.run.load_to_train(0, quantize=quantize) if self.run.recipe.training.beta and iteration > 0 else None
        )
        if adapter is None and self.run.recipe.launch.total > 1:
            source = self.run.weights(iteration).model
            return {"model": loading.load_for_shards(source, torch.float32, launch.this_process())}
        if adapter is None:
            masters = torch.bfloat16 if self.run.recipe.training.master_weights == "bfloat16" else torch.float32
            return {"model": self.run.load_to_train(iteration, masters), "ref_model": reference}
        config = adapters.lora_config(adapter, self.run.recipe.model)
        return {
            "model": self.run.load_to_train(iteration, quantize=quantize),
            "peft_config": config,
            "ref_model": reference,
        }

    def _save(self, model: Any, iteration: int, changed: float) -> float:
        """Save what was trained; returns the share of the saved weights that training changed."""
        adapter, folder = self.run.recipe.adapter, self.run.directory.model(iteration)
        if adapter is not None and not adapter.merge:
            adapters.save(model, self.run.tokenizer, folder)
            return changed
        if adapter is not None:
            if adapter.quantize:
                model = adapters.moved(model, self.run.load_to_train(self._start_of(iteration)))
            contrasts = read_contrasts(self.run.directory.contrasts(iteration))
            model, changed = checked_merge(model, max(contrasts, key=row_tokens))
            require_changed(
                changed,
                self.run.recipe.training.steps_of(iteration),
                self.run.recipe.training.lr_of(iteration),
                self.run.dtype,
            )
        saving.save_model(model, self.run.tokenizer, folder, self.run.dtype)
        return changed

    def _start_of(self, iteration: int) -> int:
        """The policy that an iteration's training starts from; 0 is base."""
        return iteration - 1 if self.run.recipe.training.restart_from == "previous" else 0

    def arguments(self, iteration: int, contrasts: list[Contrast]) -> SAMIConfig:
        """The trainer's settings for one iteration: the recipe's, and what was decided about its contrasts."""
        t = self.run.recipe.training
        share = t.batch_size // self.run.recipe.launch.total  # of a step, for each process
        micro = micro_batch(self.run.recipe, self.run.recipe.launch.total)
        scheduler = "constant_with_warmup" if t.lr_scheduler == "constant" and t.warmup_steps else t.lr_scheduler
        return SAMIConfig(
            output_dir=str(self.run.directory.checkpoints(iteration)),
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
            share_prefix=self.run.packing(contrasts),
            gradient_cache=self._caching(iteration, contrasts),
            gradient_checkpointing=t.gradient_checkpointing,
            compile_layers=t.compile,
            compute_dtype="bfloat16" if self.run.dtype == torch.bfloat16 else "float32",
            master_weights=t.master_weights,
            save_strategy="steps" if t.checkpoint_steps else "no",
            save_steps=t.checkpoint_steps or 500,
            save_total_limit=2,  # the last one may be half written when the process is killed
            report_to="none",  # trackers are of the whole run
            disable_tqdm=True,
            seed=t.seed,
        )

    def _caching(self, iteration: int, contrasts: list[Contrast]) -> bool:
        """Whether an iteration trains with the gradient cache: as the recipe says, or decided once by free memory.

        The two routes round differently, so an iteration that is resumed must take the one it began with.
        """
        training = self.run.recipe.training
        if training.gradient_cache is not None:
            return training.gradient_cache

        def decide() -> dict[str, Any]:
            model = loading.empty_model(self.run.recipe.model)  # its weights are loaded later
            total = sum(p.numel() for p in model.parameters())
            if self.run.recipe.adapter is None:
                held = total * (4 + self.run.dtype.itemsize) / self.run.recipe.launch.total  # masters and copy
            else:
                narrow = quantization.weights_in_4_bits(model) if self.run.recipe.adapter.quantize else 0
                held = quantization.held_bytes(total, narrow, self.run.dtype)
            config, free = loading.load_config(self.run.recipe.model), devices.free_bytes() - int(held)
            needed = needs_gradient_cache(config, contrasts, training.micro_batch_size, self.run.dtype, free)
            return {"gradient_cache": needed}

        return bool(self.run.directory.step(f"gradient-cache-{iteration}", {}, [], decide)["gradient_cache"])
