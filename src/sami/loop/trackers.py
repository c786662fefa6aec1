"""One run in each tracker for a whole run directory: all iterations, resumptions and evaluations.

Each iteration has its own trainer whose steps count from 0, possibly in another process, and a run may be stopped
and continued. So a tracker is opened for each piece of work under an identity that is kept in the run's folder, and
steps are counted over all iterations.

A new tracker is a class with `start`, `log` and `finish`, and a line in `TRACKERS`.
"""

import importlib.util
import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from sami.console import say
from sami.errors import InputError, one_line
from sami.files import write_json
from sami.loop.directory import JUDGING
from sami.loop.redaction import shareable
from sami.loop.results import PolicyResult
from sami.recipe import Recipe, flatten

PROJECT = "sami"
# The number of optimizer steps of all iterations, for trackers whose own step counts calls.
STEP = "train/global_step"


class Identity:
    """What names a run in its trackers: drawn once and kept in the run's folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.logs = folder / "trackers"
        self._run = folder.resolve().name

    def values(self, **found: str) -> dict[str, str]:
        """`id`, and what trackers found out about themselves; `found` is added."""
        file = self.logs / "run.json"
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        values = {"id": secrets.token_hex(4)} | known | found
        if values != known:
            write_json(file, values)
        return values

    @property
    def name(self) -> str:
        """As users see it: two runs in folders of the same name differ in the id."""
        return f"{self._run}-{self.values()['id']}"


class Tracker(Protocol):
    """Where figures are logged."""

    def start(self, identity: Identity, config: Mapping[str, Any], resumed_at: int | None) -> None:
        """Open the run of that identity, new or to be continued.

        Args:
            config: the recipe, by dotted key.
            resumed_at: steps after which training continues, so that later ones are logged again; None where
                everything that was logged stays.
        """

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures such as {"train/loss": 0.3} at a step."""

    def finish(self) -> None:
        """Send what is buffered, and close the run."""


class TensorBoard:
    """Event files in the run's folder, or where TENSORBOARD_LOGGING_DIR points."""

    def start(self, identity: Identity, config: Mapping[str, Any], resumed_at: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(identity.logs / "tensorboard")
        # Later steps of an interrupted attempt are hidden: they are done again.
        purge = None if resumed_at is None else resumed_at + 1
        self._writer = SummaryWriter(log_dir=os.path.expanduser(place), purge_step=purge)
        self._writer.add_text("args", json.dumps(config, indent=1))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class Trackio:
    def start(self, identity: Identity, config: Mapping[str, Any], resumed_at: int | None) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self._run = trackio.init(project=project, name=identity.name, config=dict(config), resume="allow")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        import trackio

        trackio.log({**figures, STEP: step})

    def finish(self) -> None:
        import trackio

        trackio.finish()


class WeightsAndBiases:
    def start(self, identity: Identity, config: Mapping[str, Any], resumed_at: int | None) -> None:
        import wandb

        identity.logs.mkdir(parents=True, exist_ok=True)
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=os.environ.get("WANDB_RUN_ID") or identity.values()["id"],
            name=identity.name,
            config=dict(config),
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(identity.logs),
        )
        wandb.define_metric("*", step_metric=STEP, step_sync=True)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        import wandb

        wandb.log({**figures, STEP: step})

    def finish(self) -> None:
        import wandb

        wandb.finish()


class MLflow:
    LONGEST_VALUE = 500  # characters that every version of mlflow accepts

    def start(self, identity: Identity, config: Mapping[str, Any], resumed_at: int | None) -> None:
        import mlflow

        known = identity.values().get("mlflow")
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=identity.name)
        identity.values(mlflow=run.info.run_id)
        if not known:  # a parameter cannot be logged twice
            mlflow.log_params({key: str(value)[: self.LONGEST_VALUE] for key, value in config.items()})

    def log(self, figures: Mapping[str, float], step: int) -> None:
        import mlflow

        mlflow.log_metrics(dict(figures), step=step)

    def finish(self) -> None:
        import mlflow

        mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


class RunTrackers:
    """The trackers of one run. Without trackers every method does nothing and nothing is written.

    Args:
        folder: of the run.
        recipe: its `training.report_to` names the trackers, and its values are what they show as configuration.

    Raises:
        InputError: a tracker that is not installed.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._names: Sequence[str] = recipe.training.report_to
        self._identity, self._recipe = Identity(folder), recipe
        absent = [name for name in self._names if importlib.util.find_spec(name) is None]
        if absent:
            raise InputError(
                f"training.report_to names {', '.join(absent)}, which is not installed here. "
                f"Install it with `pip install {' '.join(absent)}`, or leave it out of the recipe."
            )

    def check(self) -> None:
        """Open and close every tracker, so that one that cannot be used is known before any training."""
        with self._opened(None):
            pass

    @contextmanager
    def training(self, iteration: int, resumed_at: int, *, logs: bool = True) -> Iterator[list[TrainerCallback]]:
        """What a trainer calls while it trains an iteration.

        Args:
            resumed_at: steps of this iteration that were done before; the next ones replace what was logged then.
            logs: whether this process is the one that logs.
        """
        if not logs:
            yield []
            return
        before = self._steps_before(iteration)
        with self._opened(before + resumed_at) as opened:
            yield [_LogsSteps(opened, before, iteration)] if opened else []

    def evaluated(self, policy: PolicyResult) -> None:
        """Log the evaluation of one of the run's policies, at the step after which it was made."""
        step = self._steps_before((policy.iteration or 0) + 1)
        figures = {f"eval/{name}": value for name, value in _figures(policy).items() if value is not None}
        with self._opened(None) as opened:
            for tracker in opened:
                tracker.log(figures, step)

    @contextmanager
    def _opened(self, resumed_at: int | None) -> Iterator[list["_Open"]]:
        """All trackers, closed at the end however it ends."""
        config = {key: value for key, value in flatten(shareable(self._recipe)) if key not in JUDGING}
        with ExitStack() as closing:
            opened = []
            for name in self._names:
                tracker = TRACKERS[name]()
                try:
                    with redirect_stdout(sys.stderr):  # results go to stdout, and some trackers greet there
                        tracker.start(self._identity, config, resumed_at)
                except Exception as error:
                    raise InputError(
                        f"The tracker {name} cannot be used: {type(error).__name__}: {one_line(error)[:300]}. Set it "
                        f"up (account, address, offline mode) as its documentation says, or leave it out of "
                        f"training.report_to."
                    ) from None
                opened.append(_Open(name, tracker))
                closing.callback(opened[-1].finish)
            yield opened

    def _steps_before(self, iteration: int) -> int:
        return sum(self._recipe.training.steps_of(number) for number in range(1, iteration))


@dataclass
class _Open:
    """A tracker that was started. One that fails later is left alone: it must not end a training."""

    name: str
    tracker: Tracker
    failed: bool = False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        self._call("log", finite, step)

    def finish(self) -> None:
        self._call("finish")

    def _call(self, method: str, *arguments: Any) -> None:
        if self.failed:
            return
        try:
            with redirect_stdout(sys.stderr):
                getattr(self.tracker, method)(*arguments)
        except Exception as error:
            self.failed = True
            say(
                f"warning: the tracker {self.name} failed and gets no more figures of this step "
                f"({type(error).__name__}: {one_line(error)[:200]}); the run goes on, and metrics.jsonl has them all"
            )


class _LogsSteps(TrainerCallback):
    """Hands a trainer's figures to the trackers, with steps counted over all iterations."""

    def __init__(self, opened: Sequence[_Open], before: int, iteration: int) -> None:
        self._opened, self._before, self._iteration = opened, before, iteration

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        numbers = {
            f"train/{key}": float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)
        }
        for tracker in self._opened:
            tracker.log(numbers | {"train/iteration": self._iteration}, self._before + state.global_step)


def _figures(policy: PolicyResult) -> dict[str, float | None]:
    """The figures of an evaluation that are worth comparing over iterations."""
    health = policy.health
    return {
        "bound": policy.information.bound,
        "base_bound": policy.information.base_bound,
        "base_bound_held_out": policy.information_held_out.base_bound,
        "column_accuracy": policy.information.column_accuracy,
        "verifier_rate": policy.verifier.learned.value,
        "verifier_rate_held_out": policy.verifier.held_out.value,
        "words": health.words,
        "unfinished": health.unfinished,
        "loops": health.loops,
        "leakage": health.leakage,
        "relevance": health.relevance,
        "forgetting": health.forgetting,
        "broken_health_limits": float(len(health.failures)),
    }
