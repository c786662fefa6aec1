"""Files that training writes while it runs: metrics.jsonl line by line, and checkpoints to resume from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sami.files import append_json_line, replacing


class Recorder(TrainerCallback):
    """Appends each step's figures to metrics.jsonl and reports the step."""

    def __init__(self, file: Path, on_step: Callable[[int], None]) -> None:
        self._file, self._on_step = file, on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            append_json_line(self._file, {"step": state.global_step, **logs})
            self._on_step(state.global_step)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. A save that was killed leaves one whose state does not parse."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -step_of(p)):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


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
