"""Shared by the measurements: options, model and contrasts, timing, and a separate process for each."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami.cli import PROCESS_SETTINGS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sami.contrasts import Contrast

DATA = Path(__file__).parents[2] / "shared" / "data" / "tldr"
GIB = 2**30

# Environment of the engine. The reference-style step gets only the setting for threads: without it, a core that is not
# always available would make the step far slower than it is.
ENGINE_SETTINGS = PROCESS_SETTINGS
REFERENCE_SETTINGS = {"OMP_WAIT_POLICY": PROCESS_SETTINGS["OMP_WAIT_POLICY"]}

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def options(description: str, contrasts: int) -> argparse.ArgumentParser:
    """A parser with the options of all measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--contrasts", type=int, default=contrasts, help=f"contrasts of each size ({contrasts})")
    parser.add_argument(
        "--data",
        type=_folder,
        default=_default_data(),
        help="folder of TL;DR posts, responses and constitutions (default: $SAMI_BENCH_DATA or ../shared/data/tldr, "
        "and random ids of the same lengths if that is absent)",
    )
    parser.add_argument("--model", help="hub id or folder; by default the model of the quickstart's recipe")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model in this process, to try the command")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # given to the process that measures
    return parser


def _folder(value: str) -> Path:
    if not (Path(value) / "posts.jsonl").is_file():
        raise argparse.ArgumentTypeError(f"posts.jsonl is missing in the folder {value}")
    return Path(value)


def _default_data() -> Path | str | None:
    # argparse passes a default that is text to `_folder`, so a wrong variable is an error like a wrong option.
    return os.environ.get("SAMI_BENCH_DATA") or (DATA if DATA.is_dir() else None)


@dataclass(frozen=True)
class Measurement:
    """One engine on several contrasts; lists have one entry per contrast."""

    seconds: list[float]
    tokens: list[int]  # that the engine computed
    needed_flops: list[int]
    matrix_rate: float  # bf16, FLOP/s: median of the rates measured between the contrasts
    peak_bytes: int  # of the whole process

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def share(self) -> float:
        """Needed FLOPs per second, divided by the matrix rate."""
        return sum(self.needed_flops) / sum(self.seconds) / self.matrix_rate


def measure(
    step: "Callable[[Contrast], int]",
    contrasts: "Sequence[Contrast]",
    needed: "Callable[[Contrast], int]",
    warm_up: "Sequence[Contrast]",
) -> Measurement:
    """Time a step on each contrast, after warming up on others."""
    import torch

    from sami.costs.estimate import matrix_rate

    for contrast in warm_up:
        step(contrast)
    seconds, tokens, rates = [], [], [matrix_rate(torch.bfloat16)]
    for contrast in contrasts:
        begin = time.perf_counter()
        tokens.append(step(contrast))
        seconds.append(time.perf_counter() - begin)
        rates.append(matrix_rate(torch.bfloat16))
    return Measurement(seconds, tokens, [needed(c) for c in contrasts], statistics.median(rates), peak_bytes())


def peak_bytes() -> int:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_own_process(module: str, arguments: Sequence[str], what: str, settings: dict[str, str]) -> Any:
    """The JSON that `python -m MODULE … --measure WHAT` prints last, with these settings in its environment."""
    print(f"measuring {what}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--measure", what],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"Measuring {what} ended with exit code {done.returncode}. Its messages are above.")
    return json.loads(done.stdout.splitlines()[-1])


def load(options: argparse.Namespace, dtype: "torch.dtype") -> "PreTrainedModel":
    """The model that is measured."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from sami.models import attention, loading

    disable_progress_bar()
    if not options.tiny:
        return loading.load_model(_recipe(options).model, dtype)
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**TINY), dtype=dtype)
    attention.install(model)
    return model


def tokenizer(options: argparse.Namespace) -> "PreTrainedTokenizerBase":
    from sami.models import loading

    return loading.load_tokenizer(_recipe(options).model)


def load_contrasts(options: argparse.Namespace, constitutions: int) -> "list[Contrast]":
    """The contrasts of one C. The posts are the same for every C."""
    from bench.data import made_contrasts, tldr_contrasts
    from sami.models.loading import load_config
    from sami.prompts import PromptBuilder

    if options.tiny:
        return made_contrasts(options.contrasts, constitutions, TINY["vocab_size"], scale=0.1)
    recipe = _recipe(options)
    if options.data is None:
        return made_contrasts(options.contrasts, constitutions, load_config(recipe.model).get_text_config().vocab_size)
    ours = tokenizer(options)
    prompts = PromptBuilder(ours, recipe.prompt)
    return tldr_contrasts(options.data, options.contrasts, constitutions, prompts, ours)


def machine(matrix_rates: Sequence[float], options: argparse.Namespace) -> dict[str, Any]:
    """Describes the machine and the contrasts, with the matrix rates that were measured between the timings."""
    import psutil
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "amx": any("amx_bf16" in line for line in lines),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "contrasts": _lengths(options),
        "matrix_tflops": [round(rate / 1e12, 2) for rate in matrix_rates],
    }


def sentence(machine: dict[str, Any]) -> str:
    """Data and machine, as a line under a table."""
    rates, amx = machine["matrix_tflops"], " with AMX" if machine["amx"] else ""
    return (
        f"{machine['contrasts']}; {machine['processor']}{amx}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"torch {machine['torch']}; bf16 matrix rate {min(rates)} to {max(rates)} TFLOP/s"
    )


def show(*parts: Any) -> None:
    """Print tables and sentences."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)
    for part in parts:
        console.print(part)


def _recipe(options: argparse.Namespace) -> Any:
    from sami.recipe import load_recipe

    return load_recipe("quickstart", [f"model.source={options.model}", "model.sha256="] if options.model else [])


def _lengths(options: argparse.Namespace) -> str:
    """Where the lengths of the contrasts come from."""
    if options.tiny:
        return "tiny random model on random ids: times are meaningless"
    return "random ids with lengths like those of TL;DR posts" if options.data is None else "lengths of TL;DR posts"
