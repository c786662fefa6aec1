"""A model that one device cannot hold, its blocks in several places, scores and generates as a whole one does.

There is one device here, so accelerate's hooks are tested with blocks that wait on disk.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sami.contrasts import collate
from sami.errors import InputError
from sami.generation import SamplingSettings
from sami.generation.transformers_engine import TransformersEngine
from sami.models import loading, structure
from sami.recipe import Model
from sami.scoring import logprobs, packing_check
from tests.support.tiny import PAD, random_contrast, tiny_tokenizer

ARCHITECTURES = ("llama", "mixtral", "gemma2", "gemma3", "gpt2")
Folder = Callable[[str, bool], Path]


def both(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[PreTrainedModel, PreTrainedModel]:
    """One model whole, and with its second block, its last norm and where it can its head on disk."""
    source, cpu = Model(source=str(folder)), torch.device("cpu")
    whole = loading.load_model(source, torch.float32, cpu)
    base: Any = whole.base_model
    places = {f"{whole.base_model_prefix}.{name}": "cpu" for name, _ in base.named_children()}
    blocks = next(name for name, module in base.named_children() if isinstance(module, torch.nn.ModuleList))
    blocks = f"{whole.base_model_prefix}.{blocks}"
    del places[blocks]
    places |= {f"{blocks}.0": "cpu", f"{blocks}.1": "disk"}
    places["lm_head"] = "cpu" if whole.config.tie_word_embeddings else "disk"
    arguments = {"device_map": places, "offload_folder": str(tmp_path / "offloaded")}
    monkeypatch.setattr(loading, "spreading", lambda *_: arguments)
    spread = loading.load_model(source, torch.float32)
    assert any(weight.is_meta for weight in spread.parameters())  # they come when their block is at work
    return whole, spread


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_spread_model_scores_and_generates_as_a_whole_one(
    architecture: str, model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, spread = both(model_folder(architecture, False), tmp_path, monkeypatch)
    contrasts = [random_contrast(seed, 3) for seed in range(2)]
    with torch.no_grad():
        for shared in (True, False):
            batch = collate(contrasts, PAD, share_prefix=shared)
            assert torch.equal(logprobs.logprob_matrix(spread, batch), logprobs.logprob_matrix(whole, batch))
        at_once = logprobs.logprob_matrix(whole, batch)
        monkeypatch.setattr(logprobs, "MOST_LOGITS", 3 * structure.vocabulary_size(whole))
        assert logprobs.logprob_matrix(spread, batch) == pytest.approx(at_once, abs=1e-6)
    assert packing_check.check_packing(spread, contrasts[0], PAD) == packing_check.check_packing(
        whole, contrasts[0], PAD
    )
    prompts = [contrast.prompt_ids[0] for contrast in contrasts]
    settings = SamplingSettings(max_new_tokens=5)
    ours, theirs = (
        TransformersEngine(m, tiny_tokenizer(False), 2).generate(prompts, settings) for m in (spread, whole)
    )
    assert [answer.token_ids for answer in ours] == [answer.token_ids for answer in theirs]


class Gpus:
    """What torch says of two GPUs with so many bytes free."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, free: int) -> None:
        monkeypatch.setattr(loading, "default_device", lambda: torch.device("cuda"))
        monkeypatch.setattr(loading, "free_bytes", lambda: free)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_only_a_model_that_one_gpu_cannot_hold_is_spread(model_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Model(source=str(model_folder("llama", False)))
    held = 4 * sum(weight.numel() for weight in loading.empty_model(source).parameters())
    spread = {"device_map": "auto"}
    for count, free, dtype, expected in (
        (2, held, torch.float32, spread),
        (2, held, torch.bfloat16, {}),
        (2, 2 * held, torch.float32, {}),
        (1, held, torch.float32, {}),
    ):
        Gpus(monkeypatch, count, free)
        assert loading.spreading(source, dtype) == expected


def test_a_model_that_all_gpus_cannot_hold_is_refused(
    model_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as here:
        _, spread = both(model_folder("llama", False), tmp_path, here)
    Gpus(monkeypatch, 2, 0)
    with pytest.raises(InputError, match="larger than the free memory of this machine's GPUs"):
        loading.answer_where_asked(Model(source="a/model"), spread)
