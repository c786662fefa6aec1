"""The weights in a training checkpoint, by the names they have in the model that is trained."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sami.errors import InputError
from sami.models import adapters


def trained_weights(model: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The saved weights of a model, on the CPU: all of them, or only its adapter's.

    They are read as transformers reads a model, because a saved model has other names for some weights (experts) and
    omits tied ones.

    Args:
        model: only its names and dtype are used, so it may hold one process's shards.

    Raises:
        InputError: the checkpoint belongs to another model.
    """
    if isinstance(model, PeftModel):
        return _of_adapter(model, folder)
    kind: Any = type(model)
    whole, report = kind.from_pretrained(
        folder,
        config=model.config,
        dtype=next(model.parameters()).dtype,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # they are reported below
        output_loading_info=True,
    )
    others = [*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if others:
        raise _of_another_model(folder, others)
    weights: dict[str, Tensor] = whole.state_dict()
    return weights


def require_adapter(model: PeftModel, folder: Path) -> None:
    """Refuse to resume an adapter from the checkpoint of another one.

    Args:
        model: only its names and shapes are used, so it may hold one process's shards.

    Raises:
        InputError: the checkpoint lacks weights of the adapter, or has others or some of another shape.
    """
    own = get_peft_model_state_dict(model)
    with safe_open(folder / adapters.WEIGHTS, "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a mapping
    for name, shape in saved.items():
        if name not in own or tuple(own[name].shape) != shape:
            held = f"has {name} of shape {tuple(own[name].shape)}" if name in own else f"has no {name}"
            raise InputError(
                f"The checkpoint {folder} belongs to another model: it holds {name} of shape {shape}, and the model "
                f"{held}. Resume from a checkpoint of this training, or start over in another folder."
            )
    if absent := own.keys() - saved.keys():
        raise _of_another_model(folder, list(absent))


def _of_adapter(model: PeftModel, folder: Path) -> dict[str, Tensor]:
    require_adapter(model, folder)
    saved, adapter = load_file(folder / adapters.WEIGHTS), model.active_adapter
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return {n: saved[n.replace(f".modules_to_save.{adapter}", "").replace(f".{adapter}", "")] for n in trained}


def _of_another_model(folder: Path, names: list[str]) -> InputError:
    return InputError(
        f"The checkpoint {folder} belongs to another model: only one of the two has {min(names)}, or its shapes "
        f"differ. Resume from a checkpoint of this training, or start over in another folder."
    )
