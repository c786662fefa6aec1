"""Step 2 of an iteration: from its contrasts to its saved model.

train(run, 1)
"""

import shutil
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback

from sami.console import bar, say
from sami.contrasts import Contrast, read_contrasts, row_tokens
from sami.costs.memory import Devices, caches_gradients
from sami.costs.shape import Shape
from sami.files import file_hash
from sami.loop import launch
from sami.loop.context import Run
from sami.models import adapters, devices, loading, saving
from sami.recipe import Training
from sami.recipe.roles import Role, keys_with
from sami.scoring.merge_check import checked_merge
from sami.training import memory
from sami.training.config import SAMIConfig
from sami.training.metrics_log import Recorder, keep_steps, last_checkpoint, last_line, step_of
from sami.training.trainer import SAMITrainer
from sami.training.weight_change import require_changed


def train(run: Run, iteration: int) -> None:
    """The model of one iteration, in as many processes as the recipe says, unless it is there."""
    training, start = run.recipe.training, _start_of(run, iteration)
    contrasts_file = run.directory.contrasts(iteration)
    inputs = run.inputs("training") | {
        "start": run.policy_inputs(start),
        "contrasts": file_hash(contrasts_file),
    }
    if run.recipe.adapter is not None:
        inputs |= {"adapter": run.recipe.adapter.model_dump()}

    def work() -> dict[str, Any]:
        metrics, checkpoints = run.directory.metrics(iteration), run.directory.checkpoints(iteration)
        resumable = last_checkpoint(checkpoints)
        keep_steps(metrics, step_of(resumable) if resumable else 0)
        contrasts = read_contrasts(contrasts_file)
        run.packing(contrasts)  # both are recorded before processes ask for them
        _caching(run, iteration, contrasts)
        devices.release_memory()  # what generation held belongs to training now
        if run.recipe.launch.total == 1:
            changed = train_model(run, iteration)
        else:
            launch.train(run.recipe, run.directory.folder, iteration)
            changed = last_line(metrics)["weights_changed"]
        steps, last = training.steps_of(iteration), last_line(metrics)
        say(
            f"iteration {iteration}: {steps} steps, bound on its training contrasts {last['bound']:.3f} nats "
            f"at the last one, {changed:.0%} of weights changed after rounding"
        )
        devices.release_memory()  # evaluation needs what trainer and model held
        return {"steps": steps, "weights_changed": changed}

    outputs, logs = [run.directory.model(iteration)], [run.directory.metrics(iteration)]
    run.directory.step(f"train-{iteration}", inputs, outputs, work, logs=logs)
    # After the step is recorded: a kill in the middle of this must not leave a run that resumes from half a checkpoint.
    shutil.rmtree(run.directory.checkpoints(iteration), ignore_errors=True)


def train_model(run: Run, iteration: int) -> float | None:
    """Train and save the model of one iteration: the part that each of several processes runs.

    Returns:
        The share of the saved weights that training changed; None in a process that does not save.
    """
    contrasts = read_contrasts(run.directory.contrasts(iteration))
    resumable = last_checkpoint(run.directory.checkpoints(iteration))
    trainer = SAMITrainer(
        **starting_point(run, _start_of(run, iteration)),
        args=arguments(run, iteration, contrasts),
        train_dataset=contrasts,
        processing_class=run.tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    steps = run.recipe.training.steps_of(iteration)
    with bar(f"iteration {iteration}: training", steps, "steps") as update:
        trainer.add_callback(Recorder(run.directory.metrics(iteration), update))
        done = step_of(resumable) if resumable else 0
        with run.trackers.training(iteration, done, logs=trainer.is_world_process_zero()) as callbacks:
            for callback in callbacks:
                trainer.add_callback(callback)
            trainer.train(resume_from_checkpoint=str(resumable) if resumable else None)
    trained = trainer.whole_model()
    if not trainer.is_world_process_zero():
        return None
    return _save(run, trained, iteration, last_line(run.directory.metrics(iteration))["weights_changed"])


def starting_point(run: Run, iteration: int) -> dict[str, Any]:
    """Model, new adapter and reference that training starts from; iteration 0 is base."""
    adapter = run.recipe.adapter
    if adapter is not None and iteration > 0 and not adapter.merge:
        # The same adapter goes on, so its base remains the reference.
        base = run.load_to_train(0, quantize=adapter.quantize)
        return {"model": adapters.load(base, run.directory.model(iteration), trainable=True)}
    quantize = None if adapter is None else adapter.quantize
    reference = run.load_to_train(0, quantize=quantize) if run.recipe.training.beta and iteration > 0 else None
    if adapter is None and run.recipe.launch.total > 1:
        source = run.source(iteration)[0]
        return {"model": loading.load_for_shards(source, torch.float32, launch.this_process())}
    if adapter is None:
        masters = torch.bfloat16 if run.recipe.training.master_weights == "bfloat16" else torch.float32
        return {"model": run.load_to_train(iteration, masters), "ref_model": reference}
    config = adapters.lora_config(adapter, run.recipe.model)
    return {
        "model": run.load_to_train(iteration, quantize=quantize),
        "peft_config": config,
        "ref_model": reference,
    }


def _save(run: Run, model: Any, iteration: int, changed: float) -> float:
    """Save what was trained; returns the share of the saved weights that training changed."""
    adapter, folder = run.recipe.adapter, run.directory.model(iteration)
    if adapter is not None and not adapter.merge:
        adapters.save(model, run.tokenizer, folder)
        return changed
    if adapter is not None:
        if adapter.quantize:
            model = adapters.moved(model, run.load_to_train(_start_of(run, iteration)))
        contrasts = read_contrasts(run.directory.contrasts(iteration))
        model, changed = checked_merge(model, max(contrasts, key=row_tokens))
        require_changed(
            changed,
            run.recipe.training.steps_of(iteration),
            run.recipe.training.lr_of(iteration),
            run.prepared.dtype,
        )
    saving.save_model(model, run.tokenizer, folder, run.prepared.dtype)
    return changed


def _start_of(run: Run, iteration: int) -> int:
    """The policy that an iteration's training starts from; 0 is base."""
    return iteration - 1 if run.recipe.training.restart_from == "previous" else 0


def arguments(run: Run, iteration: int, contrasts: list[Contrast]) -> SAMIConfig:
    """The trainer's settings for one iteration: the recipe's, and what was decided about its contrasts."""
    t = run.recipe.training
    share = t.batch_size // run.recipe.launch.total  # of a step, for each process
    micro = t.micro_batch(run.recipe.launch.total)
    scheduler = "constant_with_warmup" if t.lr_scheduler == "constant" and t.warmup_steps else t.lr_scheduler
    return SAMIConfig(
        output_dir=str(run.directory.checkpoints(iteration)),
        max_steps=t.steps_of(iteration),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=t.lr_of(iteration),
        lr_scheduler_type=scheduler,
        optim={"adamw": "adamw_torch_fused", "rmsprop": "rmsprop"}[t.optimizer],
        share_prefix=run.packing(contrasts),
        gradient_cache=_caching(run, iteration, contrasts),
        compile_layers=t.compile,
        compute_dtype="bfloat16" if run.prepared.dtype == torch.bfloat16 else "float32",
        save_strategy="steps" if t.checkpoint_steps else "no",
        save_steps=t.checkpoint_steps or 500,
        save_total_limit=2,  # the last one may be half written when the process is killed
        report_to="none",  # trackers are of the whole run
        disable_tqdm=True,
        **{name: getattr(t, name) for name in keys_with(Role.TRAINER, Training)},
    )


def _caching(run: Run, iteration: int, contrasts: list[Contrast]) -> bool:
    """Whether an iteration trains with the gradient cache: the recipe decides, or once the memory of a device.

    The two routes round differently, so an iteration that is resumed must take the one it began with.
    """
    recipe = run.recipe
    if recipe.training.gradient_cache is not None:
        return recipe.training.gradient_cache

    def decide() -> dict[str, Any]:
        shape = Shape.of(loading.load_config(recipe.model), recipe.model.trust_remote_code)
        on = Devices.here(recipe.launch, run.prepared.dtype, devices.free_bytes())  # weights are loaded later
        row = memory.longest_constitution(contrasts, shared=run.packing(contrasts))
        return {"gradient_cache": caches_gradients(shape, recipe, on, run.prepared.adapter_weights(), row)}

    return bool(run.directory.step(f"gradient-cache-{iteration}", {}, [], decide)["gradient_cache"])
