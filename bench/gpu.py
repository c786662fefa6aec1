"""A model of mistral-7b's shape on a GPU: tokens per second, share of the matrix rate and memory of a training pass.

    python -m bench.gpu [--json] [--contrasts N] [--constitutions 2 4]

Our engine is compared with the reference-style step on the same contrasts, each in a process of its own for each C.
Contrasts are random ids with the lengths of TL;DR posts, one per pass. Weights are random and, like gradients, in bf16:
fp32 masters of 7 billion weights and their gradients would take another 58 GB. A pass is forward and backward, without
an optimizer. Only needed tokens are counted, however many an engine computes. `--tiny` tries the command with a tiny
model on the CPU.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from bench.measure import (
    ENGINE_SETTINGS,
    GIB,
    REFERENCE_SETTINGS,
    TINY,
    Measurement,
    in_own_process,
    measure,
    show,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sami.contrasts import Contrast

ENGINES = {"engine": "sami", "reference": "reference-style"}


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(description="A training pass of a model of mistral-7b's shape on a GPU.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--contrasts", type=int, default=4, help="contrasts of each size (4)")
    parser.add_argument("--constitutions", type=int, nargs="+", default=[2, 4], help="values of C (2 4)")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model on the CPU in this process, to try the command"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # given to the process that measures
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(_work(chosen, chosen.measure)))
        return
    if not chosen.tiny:
        _require_gpu(parser)
    rows = [_apart(chosen, arguments, engine, c) for c in chosen.constitutions for engine in ENGINES]
    for row in rows:
        beside = next(r for r in rows if r["engine"] == "reference" and r["constitutions"] == row["constitutions"])
        row["speed_ratio"] = beside["seconds"] / row["seconds"]
        row["memory_ratio"] = row["peak_bytes"] / beside["peak_bytes"]
    if chosen.json:
        from bench.flops import FORMULA

        print(json.dumps({"rows": rows, "formula": FORMULA}, indent=1))
    else:
        _show(rows)


def _require_gpu(parser: argparse.ArgumentParser) -> None:
    import torch

    if not torch.cuda.is_available():
        parser.exit(
            2,
            "This measurement needs a GPU with about 80 GB, and torch finds no GPU. Run it on a machine that has one, "
            "with a CUDA build of torch, or try the command with --tiny.\n",
        )


def _apart(chosen: argparse.Namespace, arguments: Sequence[str], engine: str, c: int) -> dict[str, Any]:
    what = f"{engine}:{c}"
    if chosen.tiny:
        return _work(chosen, what)
    settings = REFERENCE_SETTINGS if engine == "reference" else ENGINE_SETTINGS
    row: dict[str, Any] = in_own_process("bench.gpu", arguments, what, settings)
    return row


def _work(chosen: argparse.Namespace, what: str) -> dict[str, Any]:
    import torch

    from bench.data import made_contrasts, shortened
    from bench.engine_step import EngineStep
    from bench.flops import model_sizes, needed_flops, needed_tokens
    from bench.reference_step import ReferenceStep

    engine, c = what.split(":")
    on_gpu = not chosen.tiny
    model = _model(chosen.tiny)
    contrasts = made_contrasts(chosen.contrasts, int(c), model.config.vocab_size, scale=1.0 if on_gpu else 0.1)
    sizes = model_sizes(model.config)
    step: EngineStep | ReferenceStep
    step = ReferenceStep(model, 0) if engine == "reference" else EngineStep(model, 0, compiled=on_gpu)

    def finished(contrast: "Contrast") -> int:
        tokens = step(contrast)
        if on_gpu:
            torch.cuda.synchronize()
        return tokens

    # A short contrast initializes libraries and compiler; the largest lets the allocator grow.
    warm_up = [shortened(contrasts[0], 300, 16), max(contrasts, key=needed_tokens)]
    result = measure(finished, contrasts, lambda contrast: needed_flops(contrast, sizes), warm_up)
    if on_gpu:
        result = replace(result, peak_bytes=torch.cuda.max_memory_allocated())
    return {
        "engine": engine,
        "constitutions": int(c),
        "device": torch.cuda.get_device_name() if on_gpu else "CPU, a tiny model: times are meaningless",
        "torch": torch.__version__,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        **_figures(result, sum(map(needed_tokens, contrasts))),
    }


def _figures(result: Measurement, needed_tokens: int) -> dict[str, Any]:
    return {
        "seconds": result.median_seconds,
        "needed_tokens": needed_tokens,
        "tokens_per_second": needed_tokens / sum(result.seconds),
        "matrix_rate": result.matrix_rate,
        "matrix_rate_share": result.share,
        "peak_bytes": result.peak_bytes,
        "measurement": asdict(result),
    }


def _model(tiny: bool) -> "PreTrainedModel":
    """A model with random bf16 weights on its device. The default configuration is mistral-7b's."""
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    torch.manual_seed(0)
    with torch.device("cpu" if tiny else "cuda"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            MistralConfig(**TINY) if tiny else MistralConfig(), dtype=torch.bfloat16
        )
    return model


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from bench.flops import FORMULA

    table = Table(title="A contrast, forward and backward", title_justify="left", box=None, pad_edge=False)
    for heading in ("C", "engine", "s", "speed", "tokens/s", "matrix rate", "share", "peak GiB", "memory"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for row in rows:
        table.add_row(
            str(row["constitutions"]),
            ENGINES[row["engine"]],
            f"{row['seconds']:.3f}",
            f"{row['speed_ratio']:.1f} x",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['matrix_rate'] / 1e12:.1f}",
            f"{row['matrix_rate_share']:.0%}",
            f"{row['peak_bytes'] / GIB:.1f}",
            f"{row['memory_ratio']:.2f}",
        )
    first = rows[0]
    show(
        table,
        "s: median over contrasts; speed and memory: relative to the reference-style step; tokens/s: needed tokens; "
        "share: needed FLOPs per second over the matrix rate (TFLOP/s), which is measured between the contrasts.",
        FORMULA,
        f"{first['device']}, torch {first['torch']}; {first['parameters']:,} random bf16 weights, random ids with "
        f"the lengths of TL;DR posts",
    )


if __name__ == "__main__":
    main()
