"""Trackers: all iterations, evaluations and resumptions of a run in one run of the tracker, by real trackers."""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer import event_file_writer

from sami.errors import InputError
from sami.loop import trackers
from sami.loop.trackers import RunTrackers
from sami.pipeline import Pipeline, run
from sami.recipe import Recipe, load_recipe
from sami.training import metrics_log
from tests.support.recipes import write_recipe

Series = dict[str, list[tuple[int, float]]]

SETTINGS = {"training__steps": [2, 3], "training__micro_batch_size": 4, "evaluation__principles_per_query": 1}


@pytest.fixture(scope="module", autouse=True)
def names_in_order() -> Iterator[None]:
    """Event files of one second are read in the order of their names, which end with a counter: 9 after 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(100))
        yield


def recipe_with(folder: Path, model: Path, *trackers: str, **changes: Any) -> Recipe:
    return load_recipe(write_recipe(folder, model, training__report_to=list(trackers), **(SETTINGS | changes)))


def events(folder: Path) -> Any:
    """What TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def logged(folder: Path) -> Series:
    """Every scalar as TensorBoard shows it, by name: (step, value) in order."""
    found = events(folder)
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def losses(folder: Path) -> list[float]:
    files = [folder / f"iteration-{n}" / "metrics.jsonl" for n in (1, 2)]
    return [json.loads(line)["loss"] for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, model_folder) -> Path:
    """A finished run of two iterations with tensorboard. Tests read it only."""
    folder = tmp_path_factory.mktemp("tracked")
    run(recipe_with(folder / "recipe", model_folder("llama", True), "tensorboard"), folder / "run")
    return folder / "run"


def test_all_iterations_are_one_run_with_steps_counted_on(tracked):
    series = logged(tracked / "trackers" / "tensorboard")
    assert [step for step, _ in series["train/loss"]] == [1, 2, 3, 4, 5]
    assert [value for _, value in series["train/loss"]] == pytest.approx(losses(tracked), abs=1e-4)
    assert {(step, value) for step, value in series["train/iteration"]} == {(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)}
    assert {"train/bound", "train/column_accuracy", "train/grad_norm"} <= series.keys()


def test_evaluations_stand_at_the_step_they_were_made_after(tracked):
    series = logged(tracked / "trackers" / "tensorboard")
    policies = json.loads((tracked / "summary.json").read_text())["policies"]
    expected = [(step, policy["information"]["base_bound"]) for step, policy in zip((0, 2, 5), policies, strict=True)]
    assert [step for step, _ in series["eval/base_bound"]] == [0, 2, 5]
    assert [value for _, value in series["eval/base_bound"]] == pytest.approx([v for _, v in expected], abs=1e-6)
    assert "eval/verifier_rate" in series


def test_what_is_shown_as_configuration_is_the_recipe_without_places(tracked):
    text = (
        events(tracked / "trackers" / "tensorboard").Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    shown = json.loads(text)
    assert (shown["training.steps"], shown["queries.path"]) == ([2, 3], "queries.jsonl")
    assert str(tracked.parent) not in text
    assert not [key for key in shown if key.startswith(("evaluation.judges", "evaluation.baselines"))]


def test_a_finished_run_opens_no_tracker(tracked, model_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(tracked, tmp_path / "run")
    monkeypatch.setattr(trackers.TensorBoard, "start", lambda *_: pytest.fail("a tracker was opened"))
    run(recipe_with(tmp_path / "recipe", model_folder("llama", True), "tensorboard"), folder)


def test_a_continued_run_goes_on_in_the_same_run_and_hides_what_is_done_again(model_folder, tmp_path, monkeypatch):
    recipe = recipe_with(tmp_path / "recipe", model_folder("llama", True), "tensorboard", training__checkpoint_steps=2)
    append, seen = metrics_log.append_json_line, []

    def stopped(path, value):
        append(path, value)
        seen.append(value["step"])
        if seen == [1, 2, 1, 2, 3]:  # the checkpoint of step 2 is whole, and step 3 is logged
            raise KeyboardInterrupt

    monkeypatch.setattr(metrics_log, "append_json_line", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "run")
    run(recipe, tmp_path / "run")
    assert seen[5:] == [3]
    series = logged(tmp_path / "run" / "trackers" / "tensorboard")
    assert [step for step, _ in series["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in series["eval/bound"]] == [0, 2, 5]


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_gets_one_run(model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported, here at first
    recipe = recipe_with(tmp_path / "recipe", model_folder("llama", True), "trackio")
    run(recipe, tmp_path / "run")
    assert capsys.readouterr().out == ""
    from trackio.sqlite_storage import SQLiteStorage

    identity = json.loads((tmp_path / "run" / "trackers" / "run.json").read_text())["id"]
    assert SQLiteStorage.get_runs("sami") == [f"run-{identity}"]
    entries = SQLiteStorage.get_logs("sami", f"run-{identity}")
    trained = [(entry["train/global_step"], entry["train/iteration"]) for entry in entries if "train/loss" in entry]
    assert trained == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert [entry["train/global_step"] for entry in entries if "eval/bound" in entry] == [0, 2, 5]


def test_without_trackers_nothing_is_written(model_folder, tmp_path):
    none = RunTrackers(tmp_path / "run", recipe_with(tmp_path / "recipe", model_folder("llama", True)))
    none.check()
    with none.training(1, 0) as callbacks:
        assert callbacks == []
    assert not (tmp_path / "run").exists()


def test_an_absent_tracker_is_refused_with_what_to_install(model_folder, tmp_path):
    recipe = recipe_with(tmp_path / "recipe", model_folder("llama", True), "wandb", "tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
        with pytest.raises(InputError, match="pip install wandb"):
            Pipeline(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_opened_is_known_before_anything_is_generated(model_folder, tmp_path, monkeypatch):
    def locked(*_):
        raise PermissionError("no account")

    monkeypatch.setattr(trackers.TensorBoard, "start", locked)
    recipe = recipe_with(tmp_path / "recipe", model_folder("llama", True), "tensorboard")
    with pytest.raises(InputError, match=r"tensorboard cannot be used: PermissionError: no account"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation").exists()


def test_a_tracker_that_fails_while_training_does_not_end_the_run(model_folder, tmp_path, monkeypatch, capsys):
    def gone(self, figures, step):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(trackers.TensorBoard, "log", gone)
    short = {"training__iterations": 1, "training__steps": [2]}
    recipe = recipe_with(tmp_path / "recipe", model_folder("llama", True), "tensorboard", **short)
    assert run(recipe, tmp_path / "run")["policies"][-1]["iteration"] == 1
    assert "the tracker tensorboard failed" in capsys.readouterr().err


def test_a_name_that_is_no_tracker_is_refused_by_the_recipe(model_folder, tmp_path):
    with pytest.raises(InputError, match=r"training\.report_to.*'tensorbord'.*'tensorboard', 'trackio'"):
        recipe_with(tmp_path / "recipe", model_folder("llama", True), "tensorbord")
    write_recipe(tmp_path / "recipe", model_folder("llama", True), training__report_to="tensorboard")
    assert load_recipe(tmp_path / "recipe" / "tiny.yaml").training.report_to == ["tensorboard"]
