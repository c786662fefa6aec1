"""The measurements: needed FLOPs by hand, the reference-style step, and each command on a tiny model."""

import json
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import generation, gpu, profile, scaling, train_step
from bench.data import contrast_of_lengths, made_contrasts, tldr_contrasts
from bench.flops import ModelSizes, needed_flops, needed_tokens
from bench.measure import DATA, ENGINE_SETTINGS, in_own_process
from bench.reference_step import ReferenceStep
from sami.contrasts import collate
from sami.objective import sami_loss
from sami.prompts import PromptBuilder
from sami.recipe import Prompt
from sami.scoring.logprobs import logprob_matrix
from tests.support.tiny import random_contrast, tiny_model


def test_needed_flops_by_hand():
    contrast = contrast_of_lengths([2, 3], [2, 3], vocabulary=10)
    # Rows: 2 + 1 + 2 and 3 + 1 + 2 tokens. Pairs of the first: prompt 3, responses (2 + 1) and (4 + 3); of the
    # second: prompt 6, responses (3 + 1) and (6 + 3). Scored in each: the prompt's last token, 1 and 2 more.
    assert needed_tokens(contrast) == 11
    tokens, pairs, scored = 11, 3 + 3 + 7 + 6 + 4 + 9, 8
    sizes = ModelSizes(block_parameters=1000, head_parameters=500, layers=3, attention_width=8)
    assert needed_flops(contrast, sizes) == 6 * 1000 * tokens + 12 * 3 * 8 * pairs + 6 * 500 * scored


def test_needed_tokens_are_those_of_a_packed_batch():
    contrast = random_contrast(constitutions=4)
    batch = collate([contrast], pad_token_id=0)
    assert needed_tokens(contrast) == batch.input_ids.numel()
    only_head = ModelSizes(block_parameters=0, head_parameters=1, layers=0, attention_width=0)
    assert needed_flops(contrast, only_head) == 6 * len(batch.scored)


def test_made_contrasts_have_the_lengths_of_the_posts():
    contrasts = made_contrasts(200, 2, vocabulary=1000)
    prompts = torch.tensor([len(ids) for c in contrasts for ids in c.prompt_ids], dtype=torch.float)
    responses = torch.tensor([len(ids) for c in contrasts for ids in c.response_ids], dtype=torch.float)
    assert abs(prompts.mean() - 445) < 15
    assert abs(prompts.std() - 94) < 15
    assert abs(responses.mean() - 114) < 12
    assert abs(responses.std() - 62) < 15
    assert contrasts == made_contrasts(200, 2, vocabulary=1000)


def test_reference_style_step_has_the_gradient_of_separate_sequences():
    contrast = random_contrast(constitutions=3)
    reference, ours = tiny_model("llama"), tiny_model("llama")
    assert ReferenceStep(reference, pad_token_id=2)(contrast) == 9 * (
        max(map(len, contrast.prompt_ids)) + max(map(len, contrast.response_ids))
    )
    sami_loss(logprob_matrix(ours, collate([contrast], 2, share_prefix=False))).backward()
    a, b = (torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (reference, ours))
    assert torch.cosine_similarity(a, b, dim=0) >= 0.99999
    assert abs(a.norm() / b.norm() - 1) < 1e-4


@pytest.fixture
def printed(capsys, monkeypatch) -> Any:
    """What a measurement prints with `--tiny --json`, without half a second for every matrix rate."""
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e12)

    def run(command: ModuleType, *arguments: str) -> Any:
        command.main(["--tiny", "--json", "--contrasts", "1", *arguments])
        return json.loads(capsys.readouterr().out)

    return run


def test_train_step_prints_its_contract(printed):
    result = printed(train_step)
    assert isinstance(result["machine"]["processor"], str)
    assert [row["constitutions"] for row in result["rows"]] == [2, 4, 8]
    for row in result["rows"]:
        assert set(row) == {"constitutions", "seconds", "speed_ratio", "memory_ratio", "matrix_rate_share"}
        compared = row["constitutions"] <= 4
        assert set(row["seconds"]) == ({"engine", "low_memory", "reference", "plain"} if compared else {"engine"})
        assert 0 < row["matrix_rate_share"] < 1
        if compared:
            assert row["speed_ratio"] == row["seconds"]["reference"] / row["seconds"]["engine"]
            assert row["memory_ratio"] > 0
        else:
            assert row["speed_ratio"] is None
            assert row["memory_ratio"] is None
    tokens = {(m["engine"], m["constitutions"]): m["tokens"][0] for m in result["measurements"]}
    assert tokens["engine", 4] < tokens["plain", 4] < tokens["reference", 4]
    assert "block parameters x tokens" in result["formula"]


def test_scaling_compares_with_its_first_sizes(printed):
    result = printed(scaling, "--cache", "4")
    rows = {(row["axis"], row["size"]): row for row in result["rows"]}
    assert [size for axis, size in rows if axis == "constitutions"] == [2, 4, 8]
    assert rows["constitutions", 2]["cost_over_predicted"] == 1.0
    eight = rows["constitutions", 8]
    assert eight["cost_over_predicted"] == pytest.approx(eight["cost_ratio"] / eight["flops_ratio"])
    assert eight["flops_ratio"] == eight["needed_flops"] / rows["constitutions", 2]["needed_flops"]
    assert [(row["constitutions"], row["gradient_cache"]) for row in result["gradient_cache"]] == [
        (4, "off"),
        (4, "on"),
    ]
    assert all(row["peak_bytes"] > 0 for row in result["gradient_cache"])


def test_generation_counts_tokens(printed):
    rows = printed(generation, "--batch-sizes", "1", "2", "--new-tokens", "4")["rows"]
    assert [row["batch_size"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["tokens"] <= 2 * 4
        assert row["tokens_per_second"] == row["tokens"] / row["seconds"]


def test_profile_lists_matrix_products(printed):
    entries = printed(profile)["entries"]
    assert any(entry["name"] in ("aten::mm", "aten::addmm", "aten::bmm") for entry in entries)
    assert sum(entry["share"] for entry in entries) <= 1


def test_gpu_compares_with_the_reference_style_step(printed):
    rows = {(row["engine"], row["constitutions"]): row for row in printed(gpu)["rows"]}
    assert list(rows) == [("engine", 2), ("reference", 2), ("engine", 4), ("reference", 4)]
    for (engine, c), row in rows.items():
        reference = rows["reference", c]
        assert row["needed_tokens"] == reference["needed_tokens"]
        assert row["tokens_per_second"] == row["needed_tokens"] / sum(row["measurement"]["seconds"])
        assert row["speed_ratio"] == reference["seconds"] / row["seconds"]
        assert 0 < row["matrix_rate_share"] < 1
        assert (sum(row["measurement"]["tokens"]) > row["needed_tokens"]) == (engine == "reference")


def test_gpu_without_a_gpu_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "needs a GPU" in capsys.readouterr().err


def test_a_measurement_runs_in_its_own_process_with_its_settings():
    row = in_own_process("bench.generation", ["--tiny", "--contrasts", "1", "--new-tokens", "2"], "2", ENGINE_SETTINGS)
    assert row["batch_size"] == 2
    assert row["peak_bytes"] > 100e6


def test_the_table_shows_the_formula_and_the_machine(capsys, monkeypatch):
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e12)
    train_step.main(["--tiny", "--contrasts", "1", "--constitutions", "2"])
    shown = capsys.readouterr().out
    assert "needed FLOPs = 6 x block parameters x tokens" in shown
    assert "bf16 matrix rate 1.0 to 1.0 TFLOP/s" in " ".join(shown.split())
    assert "plain rows" in shown


def test_a_folder_without_posts_is_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_step.main(["--data", str(tmp_path)])
    assert "posts.jsonl is missing" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of TL;DR posts is absent")
def test_contrasts_of_posts_share_them_across_constitutions(chat_tokenizer):
    prompts = PromptBuilder(chat_tokenizer, Prompt())
    two, sixteen = (tldr_contrasts(DATA, 3, c, prompts, chat_tokenizer) for c in (2, 16))
    assert [contrast.id for contrast in two] == [contrast.id for contrast in sixteen]
    for few, many in zip(two, sixteen, strict=True):
        assert few.prompt_ids == many.prompt_ids[:2]
        assert few.response_ids == many.response_ids[:2]
        assert len(set(map(tuple, many.prompt_ids))) == 16
