"""Files that training writes while it runs: metrics.jsonl line by line, and checkpoints to resume from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sami.files import append_json_line, replacing, write_json

FILES = "sami-files.json"  # in a checkpoint, written last: the sizes of its files


class Recorder(TrainerCallback):
    """Appends each step's figures to metrics.jsonl and reports the step."""

    def __init__(self, file: Path, on_step: Callable[[int], None]) -> None:
        self._file, self._on_step = file, on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            append_json_line(self._file, {"step": state.global_step, **logs})
            self._on_step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            _list_files(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _list_files(checkpoint: Path) -> None:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != FILES)
    write_json(checkpoint / FILES, {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files})


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a kill while one is saved or removed leaves one that is not."""
    newest_first = sorted(folder.glob("checkpoint-*"), key=lambda path: -step_of(path))
    return next((path for path in newest_first if _is_complete(path)), None)


def _is_complete(checkpoint: Path) -> bool:
    """Whether all files are there that were saved; without their list, those that a resumption reads."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        listed = checkpoint / FILES
        if listed.is_file():
            sizes: dict[str, int] = json.loads(listed.read_text(encoding="utf-8"))
            return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
    needed = ("*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
    return all(any(checkpoint.glob(pattern)) for pattern in needed)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def keep_steps(metrics: Path, last: int) -> None:
    """Drop the lines of steps after `last`, which will be repeated, and a line that was cut off."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line)
        except ValueError:
            break
    with replacing(metrics) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def last_line(metrics: Path) -> dict[str, Any]:
    return dict(json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1]))
