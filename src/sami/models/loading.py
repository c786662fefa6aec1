"""Models and tokenizers, loaded in a dtype on a device.

    model, tokenizer = load_model(Model(source="org/name"), torch.bfloat16), load_tokenizer(Model(source="org/name"))

Sources are resolved by `sami.models.sources`; weights are read from safetensors only.
"""

import errno
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from huggingface_hub import list_repo_files
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
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
from sami.models import adapters, attention, generation_configs, quantization
from sami.models.devices import SPREAD_ABOVE, default_device, free_bytes, resolve_dtype
from sami.models.sources import adapter_folder, local_weights, resolve_source, without_adapter
from sami.recipe import Model

_Loaded = TypeVar("_Loaded")
_LOADING_FAILS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


@dataclass(frozen=True)
class Weights:
    """A model in a dtype, with an adapter on it if there is one.

    `identity` distinguishes these weights from others of the same name.
    """

    model: Model
    dtype: torch.dtype
    identity: str
    adapter: Path | None = None

    @classmethod
    def of(cls, model: Model, identity: str) -> "Weights":
        """The weights of a model, or of a folder with an adapter, in the dtype that it asks for."""
        return cls(without_adapter(model), resolve_dtype(model.dtype), identity, adapter_folder(model))

    def load(self, device: torch.device | None = None, *, quantize: Literal["nf4"] | None = None) -> PreTrainedModel:
        """Load them on a device, chosen as in `load_model` by default."""
        loaded = load_model(self.model, self.dtype, device, quantize=quantize)
        return loaded if self.adapter is None else adapters.base(adapters.load(loaded, self.adapter))


def load_config(model: Model) -> PreTrainedConfig:
    """The configuration of a model, or of an adapter's base model.

    A configuration that claims tied embeddings over a checkpoint with two different ones is corrected, so that the
    model is built, counted, sharded and saved as the checkpoint has it.
    """
    model = without_adapter(model)
    config: PreTrainedConfig = _or_explain(
        model, lambda source: AutoConfig.from_pretrained(source, **_hub_arguments(model))
    )
    if getattr(config, "tie_word_embeddings", False) and _has_own_head(resolve_source(model), model.revision):
        config.tie_word_embeddings = False
    return config


def empty_model(model: Model) -> PreTrainedModel:
    """The architecture without weights, for counting and for the names of its modules."""
    return empty_of(load_config(model), model.trust_remote_code)


def empty_of(
    config: PreTrainedConfig, trust_remote_code: bool = False, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """`empty_model` of a config, by default in the config's dtype."""
    with torch.device("meta"):
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, dtype=dtype or config.dtype
        )
    return empty


def load_for_shards(model: Model, dtype: torch.dtype, process: int) -> PreTrainedModel:
    """What each of several processes passes to `SAMITrainer`: process 0 the weights, on the CPU, the others none."""
    if process == 0:
        return load_model(model, dtype, torch.device("cpu"))
    empty = empty_of(load_config(model), model.trust_remote_code, dtype)
    attention.install(empty)
    return empty.eval()


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Padding falls back to EOS, which is safe because masks go by position.

    Raises:
        InputError: a tokenizer that cannot be loaded, or has no EOS token.
    """

    def load(source: str) -> PreTrainedTokenizerBase:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **_hub_arguments(model))
        return loaded

    tokenizer = _or_explain(model, load, part="tokenizer")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of {model.source} has no EOS token, so no response could ever end. Set eos_token in its "
            f"tokenizer_config.json."
        )
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
    """A causal language model in evaluation mode; from an adapter's folder, its base model with the adapter on it.

    Args:
        device: where it is loaded; by default `default_device`, or all GPUs of the machine, block by block, if one
            cannot hold it. A model that is spread scores and generates, but cannot be trained.
        quantize: "nf4" loads linear layers in 4 bits, for an adapter to train on.

    Raises:
        InputError: no weights, an unknown architecture, or a source that cannot be reached.
    """
    if adapter := adapter_folder(model):
        whole = load_model(without_adapter(model), dtype, device, quantize=quantize)
        return adapters.base(adapters.load(whole, adapter))
    loaded = _read(model, dtype, device, quantize)
    attention.install(loaded)
    if quantize:
        quantization.prepare(loaded, dtype)
    if getattr(loaded, "hf_device_map", None) and device is None and not quantize:
        answer_where_asked(model, loaded)
        return loaded.eval()
    return loaded.eval().to(device or default_device())


def _read(
    model: Model, dtype: torch.dtype, device: torch.device | None, quantize: Literal["nf4"] | None
) -> PreTrainedModel:
    """The model as transformers reads it, if its checkpoint holds all of its weights."""
    arguments = _hub_arguments(model) | {
        "config": load_config(model),
        "generation_config": generation_configs.load(resolve_source(model), model.revision)[0],
    }
    if quantize:
        arguments["quantization_config"] = quantization.nf4(dtype)
    elif device is None:
        arguments |= spreading(model, dtype)

    def load(source: str) -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **arguments
        )
        return loaded

    loaded, report = _or_explain(model, load)
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise InputError(
            f"The model {model.source} lacks weights of its architecture, such as {absent[0]} ({len(absent)} in all). "
            f"They would be initialized at random. Download or save the model again."
        )
    return loaded


def spreading(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments that spread a model over the GPUs of this machine; none if one of them can hold it."""
    if default_device().type != "cuda" or torch.cuda.device_count() == 1:
        return {}
    size = dtype.itemsize * sum(weight.numel() for weight in empty_model(model).parameters())
    if size <= SPREAD_ABOVE * free_bytes():
        return {}
    say(f"{model.source}: {size / 2**30:.0f} GiB of weights, spread over {torch.cuda.device_count()} GPUs")
    return {"device_map": "auto"}


def answer_where_asked(model: Model, spread: Any) -> None:
    """Move the hidden states of a spread model to the device of its input, as accelerate does with its logits.

    Raises:
        InputError: a part of the model fits on no GPU.
    """
    if default_device().type == "cuda" and {"cpu", "disk"} & set(map(str, spread.hf_device_map.values())):
        raise InputError(
            f"The model {model.source} in {spread.dtype} is larger than the free memory of this machine's GPUs. "
            f"Use more GPUs, or a smaller model."
        )
    hook = AlignDevicesHook(io_same_device=True, skip_keys=spread._skip_keys_device_placement)
    add_hook_to_module(spread.base_model, hook, append=True)


def _has_own_head(source: str, revision: str | None) -> bool:
    """Whether a checkpoint holds an output head that differs from its input embeddings."""
    files = local_weights(source, revision)
    head = next((name for name in files if name.endswith(("lm_head.weight", "embed_out.weight"))), None)
    embeddings = next((n for n in files if n.endswith(("embed_tokens.weight", "embed_in.weight", "wte.weight"))), None)
    if head is None or embeddings is None:
        return False
    tensors = []
    for name in (head, embeddings):
        with safe_open(files[name], "pt") as weights:
            tensors.append(weights.get_tensor(name))
    return not torch.equal(*tensors)


def _hub_arguments(model: Model) -> dict[str, Any]:
    arguments: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision:
        arguments["revision"] = model.revision
    return arguments


def _or_explain(model: Model, load: Callable[[str], _Loaded], part: Literal["model", "tokenizer"] = "model") -> _Loaded:
    source = resolve_source(model)
    folder = Path(source)
    if (folder.is_absolute() or source.startswith(".")) and not folder.is_dir():
        raise InputError(f"There is no model folder {source}. Give a folder with config.json and *.safetensors.")
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", adapters.CONFIG)):
        found = sorted(file.name for file in folder.glob("*.gguf"))
        hint = f" Give one of its GGUF files instead, such as {folder / found[0]}." if found else ""
        raise InputError(f"The folder {source} is not a model of transformers: config.json is missing.{hint}")
    try:
        return load(source)
    except _LOADING_FAILS as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if part == "model" and _is_pickled(source, model.revision):
            raise InputError(_conversion_of_pickles(model, source)) from None
        subject = f"The model {model.source}" if part == "model" else f"The tokenizer of the model {model.source}"
        raise InputError(f"{subject} cannot be loaded: {one_line(error)[:400]}. {_hint(source, part, error)}") from None


def _hint(source: str, part: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Install what is missing with pip, and run the command again."
    if not Path(source).is_dir():
        return "It is neither a local folder nor a model that could be reached on the hub."
    if part == "tokenizer":
        return "The folder needs the tokenizer's files: tokenizer_config.json and, for most models, tokenizer.json."
    return "It must hold a causal language model of transformers with safetensors weights."


def _is_pickled(source: str, revision: str | None) -> bool:
    """Whether the weights exist as .bin files only."""
    if Path(source).is_dir():
        return any(Path(source).glob("*.bin")) and not any(Path(source).glob("*.safetensors"))
    try:
        files = list_repo_files(source, revision=revision)
    except (OSError, ValueError, HfHubHTTPError):  # out of reach
        return False
    return any(file.endswith(".bin") for file in files) and not any(file.endswith(".safetensors") for file in files)


def _conversion_of_pickles(model: Model, source: str) -> str:
    target = f"{source.rstrip('/').split('/')[-1]}-safetensors"
    if Path(source).is_dir():
        target = str(Path(source).with_name(target))
    arguments = "".join(f", {name}={value!r}" for name, value in _hub_arguments(model).items() if value)
    code = (
        f"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; s, t = {source!r}, {target!r}; "
        f"M.from_pretrained(s, dtype='auto', use_safetensors=False{arguments}).save_pretrained(t); "
        f"T.from_pretrained(s{arguments}).save_pretrained(t)"
    )
    return (
        f"The weights of {model.source} are pickled .bin files, which can run code when they are read: convert them "
        f"once to safetensors with\npython -c {shlex.quote(code)}\nand give the new folder {target} as the model."
    )
