"""The weights that a checkpoint of training holds, by the names that they have in the model that is trained."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sami.errors import InputError
from sami.models import adapters


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


def require_adapter(model: PeftModel, folder: Path) -> None:
    """Refuse to resume one adapter from another one's checkpoint.

    Args:
        model: of which only names and shapes are looked at, so it may be one process's shards.

    Raises:
        InputError: the checkpoint lacks weights of the adapter, or holds others or of another shape.
    """
    own = get_peft_model_state_dict(model)
    with safe_open(folder / adapters.WEIGHTS, "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name, shape in saved.items():
        if name not in own or tuple(own[name].shape) != shape:
            held = f"has {name} of shape {tuple(own[name].shape)}" if name in own else f"has no {name}"
            raise InputError(
                f"The checkpoint {folder} is of another model: it holds {name} of shape {shape}, and the model {held}. "
                f"Resume from a checkpoint of this training, or start anew in another folder."
            )
    if absent := own.keys() - saved.keys():
        raise _another_models(folder, list(absent))


def _of_adapter(model: PeftModel, folder: Path) -> dict[str, Tensor]:
    require_adapter(model, folder)
    saved, adapter = load_file(folder / adapters.WEIGHTS), model.active_adapter
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return {n: saved[n.replace(f".modules_to_save.{adapter}", "").replace(f".{adapter}", "")] for n in trained}


def _another_models(folder: Path, names: list[str]) -> InputError:
    return InputError(
        f"The checkpoint {folder} is of another model: the two do not both have {min(names)} in one shape. Give the "
        f"checkpoint that belongs to this training, or start anew in another folder."
    )
