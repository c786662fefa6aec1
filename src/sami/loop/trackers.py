"""One run in each tracker for a whole run directory: all iterations, resumptions and evaluations.

Every iteration trains with a trainer of its own whose steps count from 0, in another process where several train,
and a run may be stopped and continued. So a tracker is opened for each piece of work by an identity that is kept in
the run's folder, steps are counted on over the iterations, and the integrations of transformers log.
"""

import copy
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sami.errors import InputError, one_line
from sami.files import write_json
from sami.loop.directory import JUDGING
from sami.loop.redaction import shareable
from sami.recipe import Recipe, flatten

PROJECT = "sami"


@dataclass(frozen=True)
class _Opened:
    """A tracker's run while it is open, and whether the model is handed on to its integration."""

    callback: TrainerCallback
    close: Callable[[], None]
    takes_model: bool = True


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
        self._folder, self._recipe = folder, recipe
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
            logs: whether this process is the one that logs.
            resumed_at: steps of this iteration that were done before; the next ones replace what was logged then.
        """
        if not logs:
            yield []
            return
        before = self._steps_before(iteration)
        with self._opened(before + resumed_at) as opened:
            yield [_Forwarded(opened, self._arguments(), before, iteration)] if opened else []

    def evaluated(self, policy: dict[str, Any]) -> None:
        """Log an evaluation, as summary.json has it, at the step after which it was made."""
        iteration = policy["iteration"]
        state = TrainerState(global_step=self._steps_before(iteration + 1))
        figures = {f"eval_{name}": value for name, value in _figures(policy).items() if value is not None}
        with self._opened(None) as opened:
            for one in opened:
                arguments: Any = self._arguments()
                one.callback.on_log(arguments, state, TrainerControl(), logs=figures, model=None)

    @contextmanager
    def _opened(self, done: int | None) -> Iterator[list[_Opened]]:
        """All trackers, closed at the end however it ends.

        Args:
            done: steps after which training goes on; None where what was logged stays.
        """
        with ExitStack() as closing:
            opened = []
            for name in self._names:
                try:
                    with redirect_stdout(sys.stderr):  # results go to stdout, and some trackers greet there
                        one = _OPENERS[name](self, done)
                except Exception as error:
                    reason = one_line(error)[:300]
                    raise InputError(
                        f"The tracker {name} cannot be used: {type(error).__name__}: {reason}. Set it up (account, "
                        f"address, offline mode) as its documentation says, or leave it out of training.report_to."
                    ) from None
                closing.callback(_quietly, one.close)
                opened.append(one)
            yield opened

    def _steps_before(self, iteration: int) -> int:
        return sum(self._recipe.training.steps_of(number) for number in range(1, iteration))

    @property
    def logs(self) -> Path:
        return self._folder / "trackers"

    def identity(self, **found: str) -> dict[str, str]:
        """What names this run in trackers: drawn once, kept in its folder, with what `found` adds."""
        file = self.logs / "run.json"
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        identity = {"id": secrets.token_hex(4)} | known | found
        if identity != known:
            write_json(file, identity)
        return identity

    @property
    def name(self) -> str:
        """As people see it: two runs of one folder name differ in the id."""
        return f"{self._folder.resolve().name}-{self.identity()['id']}"

    def _arguments(self) -> "_Arguments":
        values = {key: value for key, value in flatten(shareable(self._recipe)) if key not in JUDGING}
        return _Arguments(values, self.name, self.logs)


class _Arguments:
    """What integrations read of a run: its name, and as configuration the recipe, alike for all iterations.

    Everything else has the default of `TrainingArguments`, which cannot be made beside a trainer.
    """

    def __init__(self, shown: dict[str, Any], name: str, logs: Path) -> None:
        self.shown, self.run_name, self.output_dir, self.project = shown, name, str(logs), PROJECT

    def __getattr__(self, name: str) -> Any:
        return getattr(TrainingArguments, name)

    def to_dict(self) -> dict[str, Any]:
        return dict(self.shown)

    def to_json_string(self) -> str:
        return json.dumps(self.shown, indent=1)


class _Forwarded(TrainerCallback):
    """Hands a trainer's events to the integrations, with steps counted over all iterations."""

    def __init__(self, opened: Sequence[_Opened], arguments: _Arguments, before: int, iteration: int) -> None:
        self._opened, self._arguments, self._before, self._iteration = opened, arguments, before, iteration

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._forward("on_train_begin", state, control, given)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any) -> None:
        self._forward("on_log", state, control, given | {"logs": (logs or {}) | {"iteration": self._iteration}})

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._forward("on_save", state, control, given)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._forward("on_train_end", state, control, given)

    def _forward(self, event: str, state: TrainerState, control: TrainerControl, given: dict[str, Any]) -> None:
        counted = copy.copy(state)
        counted.global_step += self._before
        for one in self._opened:
            passed = given if one.takes_model else given | {"model": None}
            with redirect_stdout(sys.stderr):
                getattr(one.callback, event)(self._arguments, counted, control, **passed)


def _tensorboard(trackers: RunTrackers, done: int | None) -> _Opened:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    place = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(trackers.logs / "tensorboard")
    # Later steps of an interrupted attempt are hidden: they are done again.
    writer = SummaryWriter(log_dir=os.path.expanduser(place), purge_step=None if done is None else done + 1)
    return _Opened(TensorBoardCallback(writer), writer.close)


def _trackio(trackers: RunTrackers, done: int | None) -> _Opened:
    from transformers.integrations.integration_utils import TrackioCallback

    callback = TrackioCallback()  # resumes the run of that name in the project
    arguments: Any = trackers._arguments()
    callback.on_train_begin(arguments, TrainerState(), TrainerControl(), model=None)
    return _Opened(callback, lambda: callback.on_train_end(arguments, TrainerState(), TrainerControl()))


def _wandb(trackers: RunTrackers, done: int | None) -> _Opened:
    import wandb
    from transformers.integrations.integration_utils import WandbCallback

    trackers.logs.mkdir(parents=True, exist_ok=True)
    wandb.init(
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        id=os.environ.get("WANDB_RUN_ID") or trackers.identity()["id"],
        name=trackers.name,
        resume="allow",
        dir=os.environ.get("WANDB_DIR") or str(trackers.logs),
    )
    return _Opened(WandbCallback(), wandb.finish)  # logs to the run that is open


def _mlflow(trackers: RunTrackers, done: int | None) -> _Opened:
    import mlflow
    from transformers.integrations.integration_utils import MLflowCallback

    known = trackers.identity().get("mlflow")
    run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=trackers.name)
    trackers.identity(mlflow=run.info.run_id)
    # A model's configuration names its folder, and mlflow refuses another value of what it holds already.
    return _Opened(MLflowCallback(), mlflow.end_run, takes_model=False)


_OPENERS: dict[str, Callable[[RunTrackers, int | None], _Opened]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _quietly(close: Callable[[], None]) -> None:
    with redirect_stdout(sys.stderr):
        close()


def _figures(policy: dict[str, Any]) -> dict[str, float | None]:
    """The figures of an evaluation that one compares over iterations."""
    information, held_out, health = policy["information"], policy["information_held_out"], policy["health"]
    return {
        "bound": information["bound"],
        "base_bound": information["base_bound"],
        "base_bound_held_out": held_out["base_bound"],
        "column_accuracy": information["column_accuracy"],
        "verifier_rate": policy["verifier"]["learned"]["value"],
        "verifier_rate_held_out": policy["verifier"]["held_out"]["value"],
        **{name: health[name] for name in ("words", "unfinished", "loops", "leakage", "relevance", "forgetting")},
        "broken_health_limits": float(len(health["failures"])),
    }
