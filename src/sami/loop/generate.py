"""Generation as a step of a run: the contrasts of an iteration, whole or in shards, and the filters they pass.

Generation(pipeline).generate(1)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami.console import say
from sami.contrasts import write_contrasts
from sami.errors import InputError
from sami.filters import filter_contrasts
from sami.loop import first_iteration
from sami.loop.shards import Shard, merge, require_same, write_shard
from sami.models import loading, structure
from sami.prompts.control import control_tokens
from sami.queries import hash_queries

if TYPE_CHECKING:
    from sami.pipeline import Pipeline


class Generation:
    """What one run's iterations are trained on."""

    def __init__(self, run: "Pipeline") -> None:
        self.run = run

    def generate(self, iteration: int, from_shards: bool = False) -> None:
        """The contrasts of one iteration that pass the recipe's filters, unless they are there."""
        target, inputs = self.run.directory.contrasts(iteration), self._inputs(iteration)
        writer = first_iteration.identity(self.run.recipe) if iteration == 1 else None
        if writer is not None:
            inputs |= {"written_by": writer}

        def work() -> dict[str, Any]:
            written = None if writer is None else self._written_elsewhere()
            if written is not None:
                contrasts = written.contrasts
            elif from_shards:
                ids = [p.id for p in self.run.training_plan(iteration)]
                contrasts = merge(self.run.directory.shards(iteration), self._shard_inputs(iteration), ids)
            else:
                engine = self.run.engine(self.run.weights(iteration - 1), self.run.tokenizer)
                label = f"iteration {iteration}: generating"
                contrasts = self.run.respond(engine, self.run.training_plan(iteration), label, shuffle=True)
            unfit = None if written is None else written.unfit
            kept, dropped = filter_contrasts(
                contrasts, self.run.recipe.filters, self.run.prompts.stop, unfit, control_tokens(self.run.tokenizer)
            )
            needed = self.run.recipe.training.steps_of(iteration) * self.run.recipe.training.batch_size
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

        self.run.directory.step(f"generate-{iteration}", inputs, [target], work)

    def generate_shard(self, iteration: int, shard: Shard) -> Path:
        """One part of an iteration's contrasts, unfiltered; several machines may do this at once."""
        target = shard.file(self.run.directory.shards(iteration))
        planned, inputs = self.run.training_plan(iteration), self._shard_inputs(iteration)
        if shard.of > len(planned):
            raise InputError(
                f"The shard {shard} was asked for, and iteration {iteration} has {len(planned)} contrasts."
            )
        if target.exists():
            require_same(target, inputs)
            say(f"iteration {iteration}: shard {shard} is there already")
            return target
        with self.run.directory.held(target):
            engine = self.run.engine(self.run.weights(iteration - 1), self.run.tokenizer)
            label = f"iteration {iteration}: generating shard {shard}"
            part = shard.part(len(planned))
            write_shard(target, self.run.respond(engine, planned, label, shuffle=True, part=part), shard, inputs)
        say(f"iteration {iteration}: shard {shard} holds {part.stop - part.start} of {len(planned)} contrasts")
        return target

    def _inputs(self, iteration: int) -> dict[str, Any]:
        sections = ("prompt", "sampling", "generation", "filters")
        inputs = self.run.inputs(*sections) | {"policy": self.run.policy_inputs(iteration - 1)}
        return inputs | {
            "contrasts": len(self.run.training_plan(iteration)),
            "queries": hash_queries(self.run.splits.train),
        }

    def require_own_contrasts(self, iteration: int) -> None:
        """Refuse shards of contrasts that the run's own model does not write."""
        if iteration == 1 and first_iteration.identity(self.run.recipe) is not None:
            raise InputError(
                "The first iteration's contrasts are another model's or a file's (generation.first_model, "
                "generation.first_contrasts), and shards are for what the run's own model writes. Use `sami generate` "
                "without --shard and --merge."
            )

    def _shard_inputs(self, iteration: int) -> dict[str, Any]:
        """What a shard depends on: also what the run's own recipe says where there is no other machine."""
        machine = {"dtype": self.run.recipe.model.dtype, "order_of_principles": self.run.recipe.training.seed}
        return self._inputs(iteration) | machine

    def _written_elsewhere(self) -> first_iteration.Written:
        """The first iteration's contrasts, where another model or a file has them."""
        model, label = self.run.recipe.generation.first_model, "iteration 1: generating"
        if model is None:
            written = self.run.imported(self.run.prompts)
        else:
            plan = self.run.training_plan(1)
            written = first_iteration.written_by_model(
                model, plan, self.run.prompts, self.run.recipe, label, self.run.engine
            )
        context = structure.context_length(loading.load_config(self.run.recipe.model))
        return first_iteration.without_too_long(written, context)
