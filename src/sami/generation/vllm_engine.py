"""Generation with vLLM: a process of its own on saved weights, which ends with the step.

The weights are therefore those that were saved, and all memory comes back. Files of a folder are the only way
between the two (`vllm_worker`), so vLLM may be installed for another Python: SAMI_VLLM_PYTHON names it. A step
that was killed finds its finished responses there and goes on.

Before anything is used, a few responses are scored by the trainer's engine as well: a policy that is sampled
by other probabilities than it is trained by would not learn from its own responses.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sami import processes
from sami.console import say
from sami.errors import InputError, one_line
from sami.files import replacing, write_json
from sami.generation import Completion, OnProgress, SamplingSettings
from sami.generation.endings import completion, end_tokens
from sami.models import loading, sources
from sami.recipe import VLLM, Generation, Model

PYTHON_VARIABLE = "SAMI_VLLM_PYTHON"


TESTED = ("0.32",)  # versions whose first numbers are these


# Nats per token. Two engines round differently: in bf16 by 0.03 on average (SmolLM2-135M on a CPU), in fp32 by 1e-5.
LARGEST_GAP = {torch.bfloat16: 0.1, torch.float32: 0.01}


_WORKER = Path(__file__).with_name("vllm_worker.py")


_PROBES = 3


_PROBED_TOKENS = 32  # of each probe: enough to see another model, few enough to score on a CPU


_PAUSE = 0.2  # seconds between looks at what the processes wrote


# A model, the (prompt ids, response ids) of some responses and the pad id to the log-probs of the responses' tokens.
Rescore = Callable[[PreTrainedModel, Sequence[tuple[list[int], list[int]]], int], list[list[float]]]


class VLLMEngine:
    """One process, or one for each copy of the weights, for each call of `generate`.

    Args:
        settings: the recipe's generation section.
        folder: where the processes' files go; empty again when a call has succeeded.
        rescore: log-probs by the trainer's engine.
    """

    def __init__(
        self,
        weights: loading.Weights,
        tokenizer: PreTrainedTokenizerBase,
        settings: Generation,
        folder: Path,
        rescore: Rescore,
    ) -> None:
        self._weights, self._tokenizer, self._settings = weights, tokenizer, settings
        self._folder, self._rescore = folder, rescore

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, on_progress: OnProgress | None = None
    ) -> list[Completion]:
        """One completion for each prompt.

        Raises:
            InputError: too few GPUs, a process that ended early, or log-probs unlike the trainer's.
        """
        if not prompts:
            return []
        eos_ids = end_tokens(_generation_config(self._weights.model), self._tokenizer)
        job = self._job(prompts, settings, sorted(eos_ids))
        name = hashlib.sha256(json.dumps([job, self._weights.identity, list(map(list, prompts))]).encode()).hexdigest()
        folder = self._folder / name[:16]
        if not folder.is_dir():
            with replacing(folder) as temporary:
                temporary.mkdir()
                (temporary / "prompts.jsonl").write_text("".join(f"{json.dumps(list(p))}\n" for p in prompts))
        write_json(folder / "job.json", job | {"engine": job["engine"] | self._engine_arguments()})
        rows = self._rows(folder, prompts, settings, on_progress)
        completions = [completion(rows[i], settings.stop, eos_ids, self._tokenizer) for i in range(len(prompts))]
        shutil.rmtree(folder)
        return completions

    def _job(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, eos_ids: list[int]) -> dict[str, Any]:
        """What decides the responses."""
        model, adapter = self._weights.model, self._weights.adapter
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        probes = [by_length[round(k * (len(prompts) - 1) / (_PROBES - 1))] for k in range(_PROBES)]
        return {
            "engine": {
                "model": sources.resolve_source(model),
                "revision": model.revision,
                "trust_remote_code": model.trust_remote_code,
                "dtype": str(self._weights.dtype).removeprefix("torch."),
                "max_model_len": max(map(len, prompts)) + settings.max_new_tokens,
            },
            "adapter": None if adapter is None else str(adapter),
            "adapter_rank": None if adapter is None else _rank(adapter),
            "sampling": {
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "max_tokens": settings.max_new_tokens,
                "stop": list(settings.stop),
                "stop_token_ids": eos_ids,
                "seed": settings.seed,
            },
            "max_num_seqs": self._settings.batch_size,
            "probes": sorted(set(probes)),  # the shortest prompt, the longest, and one between
        }

    def _engine_arguments(self) -> dict[str, Any]:
        """How the engine runs here, which the responses do not depend on."""
        vllm = self._settings.vllm
        arguments: dict[str, Any] = {
            "tensor_parallel_size": vllm.tensor_parallel,
            "gpu_memory_utilization": vllm.memory,
            "enforce_eager": vllm.eager,
        }
        return arguments | ({"distributed_executor_backend": "ray"} if vllm.ray else {})

    def _rows(
        self,
        folder: Path,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        on_progress: OnProgress | None,
    ) -> dict[int, list[int]]:
        """Run the processes to their end; the ids that each prompt got."""
        for name in ("probes.json", "error-*.json", "started-*.json"):
            for file in folder.glob(name):
                file.unlink()
        written = _Written(folder)
        if written.rows:
            say(f"vllm: {len(written.rows)} of {len(prompts)} responses stand there from before")
        replicas = self._start(folder)
        checked = False
        try:
            while True:
                running = [replica for replica in replicas if replica.process.poll() is None]
                written.read()
                if on_progress:
                    on_progress(len(written.rows) / len(prompts), written.tokens)
                if not checked and (folder / "probes.json").is_file():
                    self._check(folder, prompts)
                    checked = True
                for replica in replicas:
                    if replica.process.poll() not in (None, 0):
                        raise InputError(_ended(replica, folder, len(written.rows), len(prompts)))
                if not running:
                    break
                time.sleep(_PAUSE)
        finally:
            for replica in replicas:
                processes.stop(replica.process)
        assert len(written.rows) == len(prompts)
        return written.rows

    def _start(self, folder: Path) -> list["_Replica"]:
        vllm = self._settings.vllm
        devices = _devices(vllm)
        replicas = []
        for number in range(vllm.data_parallel):
            environment = os.environ | {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process fewer that could outlive this one
                "VLLM_NO_USAGE_STATS": "1",
            }
            if PYTHON_VARIABLE in os.environ:  # what is put before the packages of this Python is not meant for it
                environment.pop("PYTHONPATH", None)
            if devices:
                own = devices[number * vllm.tensor_parallel : (number + 1) * vllm.tensor_parallel]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            log = folder / f"worker-{number}.log"
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [interpreter(), str(_WORKER), str(folder), f"{number}/{vllm.data_parallel}"],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=processes.end_with_parent,
                )
            replicas.append(_Replica(number, process, log))
        return replicas

    def _check(self, folder: Path, prompts: Sequence[Sequence[int]]) -> None:
        """Report how far vLLM's log-probs are from the trainer's, and refuse what is too far."""
        probes = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
        started = json.loads((folder / "started-0.json").read_text(encoding="utf-8"))
        pairs = [(list(prompts[p["index"]]), p["token_ids"][:_PROBED_TOKENS]) for p in probes]
        # On the CPU: vLLM holds the GPU, and goes on generating meanwhile.
        model = self._weights.load(torch.device("cpu"))
        theirs = self._rescore(model, pairs, self._tokenizer.pad_token_id)
        gap = measure_gap([p["logprobs"][:_PROBED_TOKENS] for p in probes], theirs)
        say(
            f"vllm {started['vllm']}: {len(probes)} responses of {gap.tokens} tokens, scored again by the trainer's "
            f"engine, differ by {gap.mean:.2g} nats per token on average and {gap.largest:.2g} at most"
        )
        given = self._settings.vllm.largest_gap
        limit = LARGEST_GAP[self._weights.dtype] if given is None else given
        if not gap.mean <= limit:
            raise InputError(
                f"Log-probs of {len(probes)} responses by vLLM {started['vllm']} and by the trainer's engine differ by "
                f"{gap.mean:.3g} nats per token on average, and the limit is {limit:g} "
                f"(generation.vllm.largest_gap). The two compute this model differently, so it would be trained on "
                f"responses of another policy. Use generation.engine=transformers, or another version of vLLM."
            )


@dataclass(frozen=True)
class Gap:
    """Difference of two engines' log-probs, in nats per token."""

    mean: float
    largest: float
    tokens: int


def measure_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Gap:
    """How far the token log-probs of the same responses are apart; NaN counts as infinitely far."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    differences = [d if (d := abs(a - b)) == d else float("inf") for a, b in pairs]
    return Gap(sum(differences) / len(differences), max(differences), len(differences))


def installed_version() -> str | None:
    """The version of vLLM that generation would use.

    Raises:
        InputError: SAMI_VLLM_PYTHON names no Python.
    """
    try:
        done = subprocess.run([interpreter(), str(_WORKER), "--version"], capture_output=True, text=True, check=True)
        version: str | None = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{PYTHON_VARIABLE} is {interpreter()!r}, which cannot be run as Python: {one_line(error)}. "
            f"Set it to the interpreter of an environment that has vLLM."
        ) from None
    return version


def is_tested(version: str) -> bool:
    return any(version == tested or version.startswith(f"{tested}.") for tested in TESTED)


@dataclass(frozen=True)
class _Replica:
    number: int
    process: "subprocess.Popen[bytes]"
    log: Path


class _Written:
    """The responses that stand in a folder, read on as processes add to them."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[int, list[int]] = {}
        self.tokens = 0
        self._folder = folder
        self._read: dict[Path, int] = {}  # bytes
        self.read()
        for path, size in self._read.items():
            os.truncate(path, size)  # a line that a killed process left half

    def read(self) -> None:
        for path in self._folder.glob("responses-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole + newline)
            for line in whole.splitlines():
                response = json.loads(line)
                self.tokens += len(response["token_ids"])
                self.rows[response["index"]] = response["token_ids"]


def _ended(replica: _Replica, folder: Path, finished: int, wanted: int) -> str:
    """Why a process that should have gone on is gone, for a person."""
    told, code = folder / f"error-{replica.number}.json", replica.process.returncode
    if told.is_file():
        reason = " ".join(json.loads(told.read_text(encoding="utf-8"))["error"].split())[:600].rstrip(".")
    else:
        lines = replica.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason += f", after the line {lines[-1].strip()[:300]!r}" if lines else ""
    return (
        f"vLLM's process ended after {finished} of {wanted} responses: {reason}. Its output is in {replica.log}. What "
        f"is finished is kept: run the same command to go on, with a lower generation.batch_size or another "
        f"generation.vllm section if memory was short."
    )


def _devices(vllm: VLLM) -> list[str]:
    """The GPUs of this machine that the copies share out; none where Ray places them, or on CPU."""
    if vllm.ray or not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    wanted = vllm.tensor_parallel * vllm.data_parallel
    if wanted > len(devices):
        raise InputError(
            f"generation.vllm asks for {vllm.data_parallel} copies of the weights on {vllm.tensor_parallel} GPUs each, "
            f"and this machine has {len(devices)} GPUs. Lower data_parallel or tensor_parallel, or set ray for GPUs "
            f"of other machines."
        )
    return devices


def _generation_config(model: Model) -> GenerationConfig:
    """As transformers gives it to a loaded model: the file, or what the model's config says."""
    try:
        return GenerationConfig.from_pretrained(sources.resolve_source(model), revision=model.revision or "main")
    except OSError:
        return GenerationConfig.from_model_config(loading.load_config(model))


def _rank(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def interpreter() -> str:
    return os.path.expanduser(os.environ.get(PYTHON_VARIABLE) or sys.executable)


def tested_versions() -> str:
    return " or ".join(f"{version}.*" for version in TESTED)
