"""The loop: generate contrasts, train on them, evaluate, repeat.

    run(load_recipe("quickstart"), "runs/quickstart")

Every step is redone only if it never finished, and depends on nothing but its inputs and the seeds of the
recipe: a run that was killed and started again ends with the summary of one that was not.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sami.console import say
from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.loop import judge, launch
from sami.loop.context import Run
from sami.loop.directory import BASE
from sami.loop.evaluate import evaluate
from sami.loop.finish import summarize
from sami.loop.generate import generate, generate_shard, require_own_contrasts
from sami.loop.shards import Shard
from sami.loop.train import train
from sami.recipe import Recipe

_OTHER_SHARDS_OPEN = 60.0  # seconds during which all machines that generate shards may read the run's recipe


def run(recipe: Recipe, folder: str | Path) -> dict[str, Any]:
    """Run a recipe into a folder, or continue the run that is there.

    Args:
        recipe: from `sami.load_recipe`.
        folder: of the run; made if it does not exist.

    Returns:
        The value of summary.json. `sami.loop.results.Summary.model_validate` turns it into typed results.

    Raises:
        InputError: anything in the recipe, its data or the folder that cannot work.
    """
    return loop(start(recipe, folder))


def loop(run: Run) -> dict[str, Any]:
    """Do every step of a run that is not done yet, and return the summary: the algorithm of the paper."""
    if not _is_trained(run):
        launch.require_machines(run.recipe.launch)
    with run.opened():
        _announce(run)
        if not _is_trained(run):
            run.trackers.check()  # one that cannot be used would otherwise end the run after hours
        evaluate(run, 0)
        for iteration in run.prepared.iterations:
            generate(run, iteration)  # by the model of the iteration before
            train(run, iteration)
            evaluate(run, iteration)
        return summarize(run)


def start(recipe: Recipe, folder: str | Path) -> Run:
    """A run to work on. Reads and checks everything that the recipe names and writes nothing.

    Raises:
        InputError: anything in the recipe, the principles, the queries, the model or the judges that cannot work.
    """
    run = Run.start(recipe, folder)
    judge.check(run)
    return run


def _is_trained(run: Run) -> bool:
    return len(run.directory.trained()) == len(run.prepared.iterations)


def _announce(run: Run) -> None:
    prepared, training, directory = run.prepared, run.recipe.training, run.directory
    queries, loaded = prepared.splits, prepared.loaded
    steps = ", ".join(str(training.steps_of(i)) for i in prepared.iterations)
    say(
        f"{directory.folder}: {len(prepared.learned)} principles to learn, {len(prepared.held_out)} held out; "
        f"{sum(map(len, queries.train))} queries to train on, {len(queries.evaluation)} held out; "
        f"{len(prepared.iterations)} iterations of {steps} steps with {training.batch_size} contrasts each"
    )
    if note := run.recipe.launch.without_effect:
        say(f"note: {note}")
    if dropped := loaded.dropped():
        say(f"{len(loaded.queries)} of {loaded.read} records hold a usable query (dropped: {dropped})")


class Pipeline:
    """The steps of the loop one by one, as the commands call them. Building it checks the recipe and writes nothing.

    Raises:
        InputError: anything in the recipe, the principles, the queries, the model or the judges that cannot work.
    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        self.context = start(recipe, folder)
        self.recipe = self.context.recipe
        self.directory = self.context.directory

    def run(self) -> dict[str, Any]:
        """Everything that is not done yet; returns the summary."""
        return loop(self.context)

    def generate(self, iteration: int, *, merge: bool = False) -> None:
        """Contrasts of one iteration, by the model of the one before; with `merge` from existing shards."""
        with self.context.opened():
            self._require_ready(iteration)
            if merge:
                require_own_contrasts(self.context, iteration)
            generate(self.context, iteration, from_shards=merge)

    def generate_shard(self, iteration: int, shard: Shard) -> Path:
        """One part of an iteration's contrasts, unfiltered; several machines may do this at once."""
        require_own_contrasts(self.context, iteration)
        with self.context.opened(wait=_OTHER_SHARDS_OPEN):
            self._require_ready(iteration)
        return generate_shard(self.context, iteration, shard)

    def train(self, iteration: int) -> None:
        """The model of one iteration, from its contrasts."""
        with self.context.opened():
            self._require_iteration(iteration)
            self.directory.require(f"generate-{iteration}", "sami generate")
            train(self.context, iteration)

    def assist(self, iterations: Iterable[int]) -> None:
        """Train with machine 0, which does everything else of a run; for machines of a higher rank.

        Raises:
            InputError: whatever a process of this machine refused.
        """
        for iteration in iterations:
            self._require_iteration(iteration)
            if iteration not in self.directory.trained():
                machine = f"machine {self.recipe.launch.rank} of {self.recipe.launch.nodes}"
                say(f"iteration {iteration}: {machine} waits for machine 0 to train with it")
                launch.train(self.recipe, self.directory.folder, iteration)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate base and every trained iteration; returns their summary."""
        with self.context.opened():
            for iteration in (0, *self.directory.trained()):
                evaluate(self.context, iteration)
            return summarize(self.context)

    def judge(self) -> dict[str, Any]:
        """Ask the recipe's judges about what is evaluated; returns the summary with their win rates."""
        with self.context.opened():
            self.directory.require(f"score-{BASE}", "sami evaluate")
            return summarize(self.context)

    def calibrate(self) -> list[Calibration]:
        """Measure the recipe's judges on base's responses, whose better one is known."""
        with self.context.opened():
            self.directory.require(f"respond-{BASE}", "sami evaluate")
            return judge.calibrate(self.context)

    def _require_ready(self, iteration: int) -> None:
        """Refuse to generate for an iteration whose model does not exist yet."""
        self._require_iteration(iteration)
        if iteration > 1:
            self.directory.require(f"train-{iteration - 1}", "sami train")

    def _require_iteration(self, iteration: int) -> None:
        if iteration not in self.context.prepared.iterations:
            raise InputError(
                f"You asked for iteration {iteration}, but the recipe has {self.recipe.training.iterations}. Raise "
                f"training.iterations, or pass a lower --iteration."
            )
