"""The weights that a checkpoint of training holds, by the names that they have in the model that is trained."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from sami import adapters
from sami.errors import InputError


def trained_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The weights that were saved of a model, on the CPU: all of it, or its adapter's alone.

    They are read as transformers reads a model, because a saved one has other names for some (experts) and leaves out
    those that are tied.

    Args:
        model: of which only names and dtype are looked at, so it may be one process's shards.

    Raises:
        InputError: the checkpoint is not one of this model.
    """
    if isinstance(model, PeftModel):
        return _of_adapter(model, folder)
    kind: Any = type(model)
    whole, report = kind.from_pretrained(
        folder,
        config=model.config,
        dtype=next(model.parameters()).dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are reported
        output_loading_info=True,
    )
    others = [*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if others:
        raise _another_models(folder, others)
    weights: dict[str, Tensor] = whole.state_dict()
    return weights


def _of_adapter(model: PeftModel, folder: Path) -> dict[str, Tensor]:
    saved, adapter = load_file(folder / adapters.WEIGHTS), model.active_adapter
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    names = {name: name.replace(f".modules_to_save.{adapter}", "").replace(f".{adapter}", "") for name in trained}
    if absent := [name for name in names.values() if name not in saved]:
        raise _another_models(folder, absent)
    return {name: saved[as_saved] for name, as_saved in names.items()}


def _another_models(folder: Path, names: list[str]) -> InputError:
    return InputError(
        f"The checkpoint {folder} is of another model: the two do not both have {min(names)} in one shape. Give the "
        f"checkpoint that belongs to this training, or start anew in another folder."
    )
