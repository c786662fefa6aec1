"""LoRA adapters through peft: put on a model, saved alone or merged into it, loaded again.

The base weights stay frozen in the dtype of compute; only the adapter is held, trained and saved in fp32.
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper as _Copied
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from sami.errors import InputError, one_line
from sami.files import replacing
from sami.models.quantization import is_packed
from sami.recipe import Adapter, Model

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def lora_config(adapter: Adapter, base: Model) -> LoraConfig:
    """A recipe's adapter as peft describes it."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        revision=base.revision,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.target_modules,
    )


def attach(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Put a new adapter on a model, in place.

    Raises:
        InputError: target modules that do not exist, cannot be adapted, or share their weights with others; some
            that can be adapted are listed.
    """
    _require_modules(model, getattr(config, "target_modules", None))
    tied = _tied_modules(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # refused below
            attached = get_peft_model(model, config)
    except ValueError as error:
        reason = one_line(error)[:300]
        raise InputError(f"The adapter cannot be put on the model: {reason} {_those_that_can(model)}") from None
    assert isinstance(attached, PeftModel)
    _require_untied(attached, tied)
    return attached


def _tied_modules(model: nn.Module) -> set[str]:
    """Names of the modules whose weight is another module's too, such as a head tied to the input embeddings."""
    owners: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(weight), []).append(name.rpartition(".")[0])
    return {module for modules in owners.values() if len(modules) > 1 for module in modules}


def _require_untied(attached: PeftModel, tied: set[str]) -> None:
    """Merged into a tied head, an adapter would change the input embeddings too: another model than was trained."""
    adapted = (name for name, module in attached.named_modules() if isinstance(module, BaseTunerLayer | _Copied))
    shared = [name.removeprefix("base_model.model.") for name in adapted]
    if found := sorted(tied.intersection(shared)):
        others = ", ".join(sorted(tied.difference(found)))
        raise InputError(
            f"The adapter is put on {found[0]}, whose weights are also those of {others or 'another module'} (tied "
            f"embeddings). Merged, it would change both and give another model than the one that was trained. "
            f"Leave {found[0]} out of target_modules and modules_to_save."
        )


def trained_weights(adapter: Adapter, base: Model, empty: PreTrainedModel) -> int:
    """How many weights a recipe's adapter trains, from the model without weights, which gets it in place.

    Raises:
        InputError: modules that do not exist or cannot have an adapter.
    """
    attached = attach(empty, lora_config(adapter, base))
    return sum(weight.numel() for weight in attached.parameters() if weight.requires_grad)


def hold(model: PeftModel, dtype: torch.dtype) -> None:
    """Hold the frozen base weights in a dtype; buffers such as rotary frequencies and weights in 4 bits keep theirs.

    Raises:
        InputError: whole modules are trained (modules_to_save), which need inputs in fp32.
    """
    whole = next((n for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" in n), None)
    if whole is not None and dtype != torch.float32:
        raise InputError(
            f"modules_to_save trains {whole} in fp32, and the base computes in {str(dtype).removeprefix('torch.')}. "
            f"Set compute_dtype='float32', or name the module in target_modules instead."
        )
    for weight in model.parameters():
        if not weight.requires_grad and not is_packed(weight):
            weight.data = weight.data.to(dtype)


def base_of(folder: Path) -> Model | None:
    """The model that the adapter in a folder belongs to; None for a folder that holds no adapter."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        return Model(source=config["base_model_name_or_path"], revision=config.get("revision"))
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"The adapter in {folder} does not say which model it belongs to: {CONFIG} is damaged."
        ) from None


def load(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The model with the adapter of a folder, in evaluation mode; the model itself gets the adapter's layers.

    Raises:
        InputError: the adapter's weights are missing, damaged, or those of another model.
    """
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"The folder {folder} has no {WEIGHTS}. Adapters are read from safetensors only.")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be drawn at random
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UserWarning, SafetensorError) as error:
        reason = one_line(error)[:400]
        raise InputError(f"The adapter in {folder} cannot be put on its model: {reason}.") from None


def base(model: PeftModel) -> PreTrainedModel:
    """The causal language model with the adapter's layers in it, for whatever takes an ordinary model."""
    inner: Any = model.get_base_model()
    assert isinstance(inner, PreTrainedModel)
    return inner


def save(model: PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the adapter alone as plain peft loads it, so that a folder of that name is either whole or absent."""
    with replacing(folder) as temporary:
        # The base's embeddings never change; left to decide, peft asks the hub about them.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # peft's is a form to fill in; see `sami.loop.model_card`
        tokenizer.save_pretrained(temporary)


def moved(model: PeftModel, other: PreTrainedModel) -> PeftModel:
    """A model's adapter on another copy of its base, such as one that is not quantised; the copy gets its layers."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    on_other = get_peft_model(other, model.active_peft_config)
    set_peft_model_state_dict(on_other, weights)
    assert isinstance(on_other, PeftModel)
    return on_other


def merge(model: PeftModel) -> tuple[PreTrainedModel, float]:
    """The base model with the adapter added to its weights, and the share of adapted weights that this changed.

    In bf16 a small adapter is lost to rounding, so the share tells whether the merged model is another one.
    """
    changed = total = 0
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        before = layer.get_base_layer().weight.detach().clone()
        layer.merge()
        changed += int((layer.get_base_layer().weight != before).sum())
        total += before.numel()
    return model.unload(), changed / total


def _require_modules(model: nn.Module, wanted: str | set[str] | list[str] | None) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if wanted is None or wanted == "all-linear":
        return
    if isinstance(wanted, str):
        try:
            found = any(re.fullmatch(wanted, name) for name in names)
        except re.error as error:
            raise InputError(
                f"target_modules is {wanted!r}, which is not a valid regular expression: {error}."
            ) from None
        if not found:
            raise InputError(
                f"target_modules is {wanted!r}, a regular expression that is the full name of no module. "
                f"Give names as a list. {_those_that_can(model)}"
            )
        return
    # peft would train what it finds and pass over the rest.
    absent = sorted(one for one in wanted if not any(n == one or n.endswith(f".{one}") for n in names))
    if absent:
        raise InputError(f"target_modules names {', '.join(absent)}, and the model has none. {_those_that_can(model)}")


def _those_that_can(model: nn.Module) -> str:
    linear = (name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return f"Modules that can have an adapter: {', '.join(dict.fromkeys(linear))}."
