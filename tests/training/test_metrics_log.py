"""Which checkpoint a training resumes from when a kill left one that is not whole."""

import shutil
from types import SimpleNamespace

import pytest

from sami.training.metrics_log import FILES, Recorder, last_checkpoint

SAVED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")


def save(folder, step, *, listed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in SAVED:
        (checkpoint / name).write_text("{}")
    if listed:
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        Recorder(folder / "metrics.jsonl", lambda _: None).on_save(SimpleNamespace(output_dir=str(folder)), state, None)
    return checkpoint


def test_the_newest_complete_checkpoint_is_resumed(tmp_path):
    assert last_checkpoint(tmp_path) is None
    save(tmp_path, 9)
    newest = save(tmp_path, 10)
    assert last_checkpoint(tmp_path) == newest


@pytest.mark.parametrize("gone", SAVED)
def test_a_checkpoint_whose_saving_or_removal_was_killed_is_passed_over(tmp_path, gone):
    older, newest = save(tmp_path, 2), save(tmp_path, 4)
    (newest / gone).write_text("")  # cut off
    assert last_checkpoint(tmp_path) == older
    (newest / gone).unlink()
    assert last_checkpoint(tmp_path) == older


@pytest.mark.parametrize("gone", [name for name in SAVED if name != "config.json"])
def test_without_a_list_of_files_those_that_are_read_must_exist(tmp_path, gone):
    """Runs of earlier versions have no list."""
    older, newest = save(tmp_path, 2, listed=False), save(tmp_path, 4, listed=False)
    assert last_checkpoint(tmp_path) == newest
    (newest / gone).unlink()
    assert last_checkpoint(tmp_path) == older


def test_a_folder_half_removed_down_to_its_list_is_passed_over(tmp_path):
    newest = save(tmp_path, 4)
    for name in SAVED:
        (newest / name).unlink()
    assert (newest / FILES).is_file()
    assert last_checkpoint(tmp_path) is None
    shutil.rmtree(newest)
    assert last_checkpoint(tmp_path) is None
