"""Generation with vLLM in a process of its own that reads saved weights and ends with the step.

The weights are therefore exactly those that were saved, and all memory is released. The two processes exchange
files in a folder only (`vllm_worker`), so vLLM may be installed for another Python, named by SAMI_VLLM_PYTHON. A
step that was killed finds its finished responses in the folder and resumes.

Before any response is used, the trainer's engine scores a few of them as well: a policy that is sampled with other
probabilities than it is trained with would not learn from its own responses.
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
from typing import Any, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sami import processes
from sami.console import say
from sami.errors import InputError, one_line
from sami.files import replacing, write_json
from sami.generation import Completion, OnProgress, SamplingSettings
from sami.generation.endings import completion, end_tokens
from sami.models import generation_configs, loading, sources
from sami.recipe import VLLM, Generation

PYTHON_VARIABLE = "SAMI_VLLM_PYTHON"
TESTED = ("0.32",)  # prefixes of tested versions
# Nats per token. Two engines round differently: in bf16 by 0.03 on average (SmolLM2-135M on a CPU), in fp32 by 1e-5.
LARGEST_GAP = {torch.bfloat16: 0.1, torch.float32: 0.01}

_WORKER = Path(__file__).with_name("vllm_worker.py")
_PROBES = 3
_PROBED_TOKENS = 32  # of each probe: enough to notice another model, few enough to score on a CPU
_PAUSE = 0.2  # seconds between two reads of what the processes wrote

# Log-probs of response tokens by the trainer's engine, for a model, (prompt ids, response ids) pairs and a pad id.
Rescore = Callable[[PreTrainedModel, Sequence[tuple[list[int], list[int]]], int], list[list[float]]]


class VLLMEngine:
    """Starts one process for each copy of the weights in each call of `generate`.

    Args:
        settings: the recipe's generation section.
        folder: for the files of the processes; a call that succeeds leaves none there.
        rescore: log-probs by the trainer's engine.
    """

    @staticmethod
    def unavailable(settings: Generation) -> str | None:
        """Why vLLM cannot be used; None where it is installed in a tested or an accepted version."""
        found = installed_version()
        if found is None:
            return (
                f"{interpreter()} has no vLLM. Install vllm=={tested_versions()} into an environment of its own and "
                f"set {PYTHON_VARIABLE} to its Python, or use generation.engine=transformers"
            )
        if not settings.vllm.any_version and not is_tested(found):
            return (
                f"{interpreter()} has version {found}, which was not tested with this package. Install "
                f"vllm=={tested_versions()}, or set generation.vllm.any_version=true and watch the reported gap"
            )
        return None

    @staticmethod
    def fits_machine() -> bool:
        """On a CPU, vLLM takes 95 s to start, and transformers has finished most runs by then."""
        return torch.cuda.is_available()

    @classmethod
    def for_weights(
        cls,
        settings: Generation,
        weights: loading.Weights,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        rescore: Rescore,
    ) -> Self:
        return cls(weights, tokenizer, settings, folder, rescore)

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
            InputError: there are too few GPUs, a process ended early, or log-probs differ from the trainer's.
        """
        if not prompts:
            return []
        end_ids = end_tokens(
            generation_configs.load(sources.resolve_source(self._weights.model), self._weights.model.revision)[0],
            self._tokenizer,
        )
        job = self._job(prompts, settings, sorted(end_ids))
        name = hashlib.sha256(json.dumps([job, self._weights.identity, list(map(list, prompts))]).encode()).hexdigest()
        folder = self._folder / name[:16]
        if not folder.is_dir():
            with replacing(folder) as temporary:
                temporary.mkdir()
                (temporary / "prompts.jsonl").write_text("".join(f"{json.dumps(list(p))}\n" for p in prompts))
        write_json(folder / "job.json", job | {"engine": job["engine"] | self._engine_arguments()})
        rows = self._rows(folder, prompts, settings, on_progress)
        completions = [completion(rows[i], settings, end_ids, self._tokenizer) for i in range(len(prompts))]
        shutil.rmtree(folder)
        return completions

    def _job(self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, end_ids: list[int]) -> dict[str, Any]:
        """Everything that the responses depend on."""
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
                "stop_token_ids": end_ids,
                "seed": settings.seed,
            },
            "max_num_seqs": self._settings.batch_size,
            "probes": sorted(set(probes)),  # the shortest prompt, the longest, and one in between
        }

    def _engine_arguments(self) -> dict[str, Any]:
        """How the engine runs on this machine. The responses do not depend on it."""
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
        """Run the processes to their end; returns the generated ids by the number of the prompt."""
        for name in ("probes.json", "error-*.json", "started-*.json"):
            for file in folder.glob(name):
                file.unlink()
        written = _Written(folder)
        if written.rows:
            say(f"vllm: resuming, {len(written.rows)} of {len(prompts)} responses were already generated")
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
                _require_no_failure(replicas, folder, len(written.rows), len(prompts))
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
            if PYTHON_VARIABLE in os.environ:  # it names packages of this Python
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
        """Report the gap between the log-probs of vLLM and of the trainer, and refuse one that is too large."""
        probes = json.loads((folder / "probes.json").read_text(encoding="utf-8"))
        started = json.loads((folder / "started-0.json").read_text(encoding="utf-8"))
        pairs = [(list(prompts[p["index"]]), p["token_ids"][:_PROBED_TOKENS]) for p in probes]
        # On the CPU, because vLLM holds the GPU and keeps generating in the meantime.
        model = self._weights.load(torch.device("cpu"))
        theirs = self._rescore(model, pairs, self._tokenizer.pad_token_id)
        gap = measure_gap([p["logprobs"][:_PROBED_TOKENS] for p in probes], theirs)
        say(
            f"vllm {started['vllm']}: {len(probes)} responses of {gap.tokens} tokens, scored again by the trainer's "
            f"engine, differ by {gap.mean:.2g} nats per token on average and {gap.largest:.2g} at most"
        )
        given = self._settings.vllm.largest_gap
        limit = LARGEST_GAP[self._weights.dtype] if given is None else given
        if not gap.mean <= limit:  # true for NaN as well
            raise InputError(
                f"Log-probs of {len(probes)} responses by vLLM {started['vllm']} and by the trainer's engine differ by "
                f"{gap.mean:.3g} nats per token on average, and the limit is {limit:g} "
                f"(generation.vllm.largest_gap). The engines compute this model differently, so it would be trained on "
                f"responses of another policy. Use generation.engine=transformers, or another version of vLLM."
            )


@dataclass(frozen=True)
class Gap:
    """Difference of two engines' log-probs, in nats per token."""

    mean: float
    largest: float
    tokens: int


def measure_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Gap:
    """The gap between two lists of token log-probs for the same responses; NaN counts as infinitely large."""
    pairs = [pair for a, b in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)]
    differences = [d if (d := abs(a - b)) == d else float("inf") for a, b in pairs]
    return Gap(sum(differences) / len(differences), max(differences), len(differences))


def installed_version() -> str | None:
    """The version of vLLM that generation would use.

    Raises:
        InputError: SAMI_VLLM_PYTHON does not name a Python interpreter.
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
    """The responses in a folder, read incrementally while processes append to them."""

    def __init__(self, folder: Path) -> None:
        self.rows: dict[int, list[int]] = {}
        self.tokens = 0
        self._folder = folder
        self._read: dict[Path, int] = {}  # bytes
        self.read()
        for path, size in self._read.items():
            os.truncate(path, size)  # drops a line that a killed process left incomplete

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


def _require_no_failure(replicas: Sequence[_Replica], folder: Path, finished: int, wanted: int) -> None:
    for replica in replicas:
        if replica.process.poll() not in (None, 0):
            raise InputError(_ended(replica, folder, finished, wanted))


def _ended(replica: _Replica, folder: Path, finished: int, wanted: int) -> str:
    """A message about a process that ended before its work was done."""
    told, code = folder / f"error-{replica.number}.json", replica.process.returncode
    if told.is_file():
        reason = " ".join(json.loads(told.read_text(encoding="utf-8"))["error"].split())[:600].rstrip(".")
    else:
        lines = replica.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason += f", after the line {lines[-1].strip()[:300]!r}" if lines else ""
    return (
        f"vLLM's process ended after {finished} of {wanted} responses: {reason}. Its output is in {replica.log}. "
        f"Finished responses are kept: run the same command to resume, with a lower generation.batch_size or other "
        f"generation.vllm settings if memory was short."
    )


def _devices(vllm: VLLM) -> list[str]:
    """The GPUs of this machine for all copies of the weights; none where Ray places them, or on CPU."""
    if vllm.ray or not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    wanted = vllm.tensor_parallel * vllm.data_parallel
    if wanted > len(devices):
        raise InputError(
            f"generation.vllm asks for {vllm.data_parallel} copies of the weights on {vllm.tensor_parallel} GPUs each, "
            f"and this machine has {len(devices)} GPUs. Lower data_parallel or tensor_parallel, or set ray=true to use "
            f"GPUs of other machines."
        )
    return devices


def _rank(adapter: Path) -> int:
    return int(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def interpreter() -> str:
    return os.path.expanduser(os.environ.get(PYTHON_VARIABLE) or sys.executable)


def tested_versions() -> str:
    return " or ".join(f"{version}.*" for version in TESTED)
