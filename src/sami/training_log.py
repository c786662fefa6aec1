"""What training leaves on disk while it runs: metrics.jsonl line by line, and checkpoints to resume from."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import TrainerCallback

from sami.errors import InputError
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
    """The newest whole checkpoint; a save that was killed leaves one whose state does not parse."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: -step_of(p)):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def require_weights_of(checkpoint: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse to resume one model from another one's checkpoint.

    Args:
        weights: the model's, by the names that a checkpoint has.

    Raises:
        InputError: the checkpoint holds weights that the model lacks, or of another shape.
    """
    for file in sorted([*checkpoint.glob("model*.safetensors"), *checkpoint.glob("adapter_model.safetensors")]):
        with safe_open(file, "pt") as saved:
            for name in saved.keys():  # noqa: SIM118 - not a mapping
                shape = tuple(saved.get_slice(name).get_shape())
                if name not in weights or tuple(weights[name].shape) != shape:
                    held = f"has {name} of shape {tuple(weights[name].shape)}" if name in weights else f"has no {name}"
                    raise InputError(
                        f"The checkpoint {checkpoint} is of another model: it holds {name} of shape {shape}, and the "
                        f"model {held}. Resume from a checkpoint of this training, or start anew in another folder."
                    )


def keep_steps(metrics: Path, last: int) -> None:
    """Drop the lines of steps after `last`, which will be done again, and a line that was cut off."""
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
