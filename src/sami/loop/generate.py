"""Step 1 of an iteration: its contrasts, whole or in shards, and the filters they pass.

generate(run, 1)
"""

from pathlib import Path
from typing import Any

from sami.console import say
from sami.contrasts import Contrast, write_contrasts
from sami.errors import InputError
from sami.filters import filter_contrasts
from sami.generation import first_iteration
from sami.loop.context import Run
from sami.loop.shards import Shard, merge, require_same, write_shard
from sami.models import loading, structure
from sami.queries import hash_queries


def generate(run: Run, iteration: int, *, from_shards: bool = False) -> None:
    """Write the contrasts of an iteration that pass the recipe's filters, unless that is done.

    Args:
        from_shards: merge the shards in the run's folder instead of generating.

    Raises:
        InputError: inputs changed since the step was done, shards are missing, or too few contrasts survive.
    """
    target, inputs = run.directory.contrasts(iteration), _inputs(run, iteration)
    writer = first_iteration.identity(run.recipe) if iteration == 1 else None
    if writer is not None:
        inputs |= {"written_by": writer}

    def work() -> dict[str, Any]:
        written = None if writer is None else _written_elsewhere(run)
        if written is not None:
            contrasts = written.contrasts
        else:
            contrasts = _merged(run, iteration) if from_shards else _generated(run, iteration)
        return _filtered(run, iteration, contrasts, written)

    run.directory.step(f"generate-{iteration}", inputs, [target], work)


def generate_shard(run: Run, iteration: int, shard: Shard) -> Path:
    """Write one part of an iteration's contrasts, unfiltered; several machines may do this at once.

    Raises:
        InputError: there are fewer contrasts than shards, or an existing shard was made from other inputs.
    """
    target = shard.file(run.directory.shards(iteration))
    planned, inputs = run.prepared.training_plan(iteration), _shard_inputs(run, iteration)
    if shard.of > len(planned):
        raise InputError(
            f"You asked for shard {shard}, but iteration {iteration} has only {len(planned)} contrasts. Use fewer "
            f"shards."
        )
    if target.exists():
        require_same(target, inputs)
        say(f"iteration {iteration}: shard {shard} was already generated")
        return target
    with run.directory.held(target):
        part = shard.part(len(planned))
        label = f"iteration {iteration}: generating shard {shard}"
        contrasts = run.respond(run.engine(iteration - 1), planned, label, shuffle=True, part=part)
        write_shard(target, contrasts, shard, inputs)
    say(f"iteration {iteration}: shard {shard} holds {part.stop - part.start} of {len(planned)} contrasts")
    return target


def require_own_contrasts(run: Run, iteration: int) -> None:
    """Refuse shards of contrasts that the run's own model does not write.

    Raises:
        InputError: they are another model's or come from a file.
    """
    if iteration == 1 and first_iteration.identity(run.recipe) is not None:
        raise InputError(
            "You passed --shard or --merge, but the first iteration's contrasts come from another model or a file "
            "(generation.first_model, generation.first_contrasts). Shards are for what the run's own model writes: "
            "use `sami generate` without these options."
        )


def _generated(run: Run, iteration: int) -> list[Contrast]:
    engine, planned = run.engine(iteration - 1), run.prepared.training_plan(iteration)
    return run.respond(engine, planned, f"iteration {iteration}: generating", shuffle=True)


def _merged(run: Run, iteration: int) -> list[Contrast]:
    ids = [planned.id for planned in run.prepared.training_plan(iteration)]
    return merge(run.directory.shards(iteration), _shard_inputs(run, iteration), ids)


def _written_elsewhere(run: Run) -> first_iteration.Written:
    """The first iteration's contrasts, where another model or a file has them."""
    model = run.recipe.generation.first_model
    if model is None:
        assert run.prepared.imported is not None
        written = run.prepared.imported(run.prompts)
    else:
        written = first_iteration.written_by_model(
            model,
            run.prepared.training_plan(1),
            run.prompts,
            run.recipe,
            "iteration 1: generating",
            run.engine_of,
        )
    context = structure.context_length(loading.load_config(run.recipe.model))
    return first_iteration.without_too_long(written, context)


def _filtered(
    run: Run, iteration: int, contrasts: list[Contrast], written: first_iteration.Written | None
) -> dict[str, Any]:
    """Write the contrasts that pass the filters, as many as the steps need; returns the counts."""
    unfit = None if written is None else written.unfit
    prompts = run.prompts
    kept, dropped = filter_contrasts(contrasts, run.recipe.filters, prompts.stop, unfit, prompts.control)
    needed = run.recipe.training.steps_of(iteration) * run.recipe.training.batch_size
    write_contrasts(run.directory.contrasts(iteration), kept[:needed])
    taken = ", ".join(f"{name} {count}" for name, count in dropped.items() if count) or "none"
    by = "" if written is None else f", written by {written.by}"
    say(f"iteration {iteration}: {len(kept)} of {len(contrasts)} contrasts kept (dropped: {taken}){by}")
    if len(kept) < needed:
        say(f"iteration {iteration}: the steps need {needed} contrasts, so some are trained on twice")
    result = {"generated": len(contrasts), "kept": len(kept), "used": len(kept[:needed]), "dropped": dropped}
    return result if written is None else result | {"written_by": written.by}


def _inputs(run: Run, iteration: int) -> dict[str, Any]:
    sections = ("prompt", "sampling", "generation", "filters")
    return run.inputs(*sections) | {
        "policy": run.policy_inputs(iteration - 1),
        "contrasts": len(run.prepared.training_plan(iteration)),
        "queries": hash_queries(run.prepared.splits.train),
    }


def _shard_inputs(run: Run, iteration: int) -> dict[str, Any]:
    """What a shard depends on: also what the run's own recipe records where there is no other machine."""
    machine = {"dtype": run.recipe.model.dtype, "order_of_principles": run.recipe.training.seed}
    return _inputs(run, iteration) | machine
