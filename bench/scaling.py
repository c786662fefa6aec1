"""Cost of a training pass of our engine by number of constitutions, prompt length and response length.

    python -m bench.scaling [--json] [--contrasts N] [--data FOLDER] [--constitutions 2 4 8] [--cache 8]

Each time is compared with what tokens and needed FLOPs predict from the first size of its axis: at 1.0 of the
prediction from FLOPs, size costs nothing extra. All times come from one process. `--cache` takes the values of C at
which peak memory is measured with and without the gradient cache, each in a process of its own; what would not fit is
skipped.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.measure import (
    ENGINE_SETTINGS,
    GIB,
    Measurement,
    in_own_process,
    load,
    load_contrasts,
    machine,
    measure,
    options,
    peak_bytes,
    sentence,
    show,
)

PROMPTS = (128, 256, 512, 1024)
RESPONSES = (32, 64, 128, 256)
TYPICAL_PROMPT, TYPICAL_RESPONSE = 445, 114


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options("Cost by number of constitutions, prompt length and response length.", contrasts=1)
    parser.add_argument("--constitutions", type=int, nargs="+", default=[2, 4, 8], help="values of C (2 4 8)")
    parser.add_argument("--cache", type=int, nargs="*", default=[8], help="values of C for the gradient cache (8)")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(_work(chosen, chosen.measure)))
        return

    def apart(what: str) -> Any:
        return _work(chosen, what) if chosen.tiny else in_own_process("bench.scaling", arguments, what, ENGINE_SETTINGS)

    points = apart("times")
    cache = [
        {"constitutions": c, "gradient_cache": on, **apart(f"cache:{c}:{on}")}
        for c in chosen.cache
        for on in ("off", "on")
    ]
    rows = _rows(points)
    described = machine([point["matrix_rate"] for point in points], chosen)
    if chosen.json:
        print(json.dumps({"rows": rows, "gradient_cache": cache, "machine": described}, indent=1))
    else:
        _show(rows, cache, described)


def _work(chosen: argparse.Namespace, what: str) -> Any:
    if what == "times":
        return _times(chosen)
    _, c, on = what.split(":")
    return _memory(chosen, int(c), on == "on")


def _times(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A measurement of each size: axis, size, and what `Measurement` holds."""
    import torch

    from bench.data import contrast_of_lengths, shortened
    from bench.engine_step import EngineStep
    from bench.flops import model_sizes, needed_flops, needed_tokens

    model = load(chosen, torch.float32)
    sizes, vocabulary = model_sizes(model.config), model.config.get_text_config().vocab_size
    scale = 10 if chosen.tiny else 1

    def of_lengths(prompt: int, response: int) -> list[Any]:
        prompts, responses = [prompt // scale] * 2, [response // scale] * 2
        return [contrast_of_lengths(prompts, responses, vocabulary, seed) for seed in range(chosen.contrasts)]

    points = [("constitutions", c, load_contrasts(chosen, c)) for c in chosen.constitutions]
    points += [("prompt tokens", p, of_lengths(p, TYPICAL_RESPONSE)) for p in PROMPTS]
    points += [("response tokens", r, of_lengths(TYPICAL_PROMPT, r)) for r in RESPONSES]
    step = EngineStep(model, model.config.pad_token_id or 0, compiled=not chosen.tiny)
    warm_up = [shortened(points[0][2][0], 300, 16), max((p[2][-1] for p in points), key=needed_tokens)]
    measured = []
    for axis, size, contrasts in points:
        result: Measurement = measure(step, contrasts, lambda contrast: needed_flops(contrast, sizes), warm_up)
        measured.append({"axis": axis, "size": size, **asdict(result)})
        warm_up = []
    return measured


def _memory(chosen: argparse.Namespace, c: int, cached: bool) -> dict[str, Any]:
    """Peak memory and time of one pass over one contrast, or how much memory it would take where it does not fit."""
    import torch

    from bench.data import shortened
    from bench.engine_step import EngineStep
    from bench.flops import needed_tokens
    from sami.models.devices import free_bytes
    from sami.training.memory import activation_bytes

    contrast = load_contrasts(chosen, c)[0]
    model = load(chosen, torch.float32)
    tokens = needed_tokens(contrast)
    expected = activation_bytes(model.config, tokens / c if cached else tokens, torch.bfloat16)
    if expected > 0.8 * free_bytes():
        return {"seconds": None, "peak_bytes": None, "expected_activation_bytes": expected}
    step = EngineStep(model, model.config.pad_token_id or 0, gradient_cache=cached, compiled=not chosen.tiny)
    step(shortened(contrast, 300, 16))
    begin = time.perf_counter()
    step(contrast)
    return {
        "seconds": time.perf_counter() - begin,
        "peak_bytes": peak_bytes(),
        "expected_activation_bytes": expected,
    }


def _rows(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Costs, and what the first size of the same axis predicts."""
    first: dict[str, dict[str, Any]] = {}
    rows = []
    for point in points:
        base = first.setdefault(point["axis"], point)
        ratio = {key: sum(point[key]) / sum(base[key]) for key in ("seconds", "tokens", "needed_flops")}
        rows.append(
            {
                "axis": point["axis"],
                "size": point["size"],
                "seconds": sum(point["seconds"]) / len(point["seconds"]),
                "tokens": sum(point["tokens"]) / len(point["tokens"]),
                "needed_flops": sum(point["needed_flops"]) / len(point["needed_flops"]),
                "cost_ratio": ratio["seconds"],
                "token_ratio": ratio["tokens"],
                "flops_ratio": ratio["needed_flops"],
                "cost_over_predicted": ratio["seconds"] / ratio["needed_flops"],
                "matrix_rate_share": sum(point["needed_flops"]) / sum(point["seconds"]) / point["matrix_rate"],
            }
        )
    return rows


def _show(rows: list[dict[str, Any]], cache: list[dict[str, Any]], described: dict[str, Any]) -> None:
    from rich.table import Table

    from bench.flops import FORMULA

    table = Table(title="Cost of a contrast", title_justify="left", box=None, pad_edge=False)
    for heading in ("axis", "size", "s", "tokens", "needed TFLOP", "cost", "by tokens", "by FLOPs", "cost / FLOPs"):
        table.add_column(heading, justify="left" if heading == "axis" else "right")
    table.add_column("share", justify="right")
    for row in rows:
        table.add_row(
            row["axis"],
            str(row["size"]),
            f"{row['seconds']:.2f}",
            f"{row['tokens']:,.0f}",
            f"{row['needed_flops'] / 1e12:.2f}",
            *(f"{row[key]:.2f}" for key in ("cost_ratio", "token_ratio", "flops_ratio", "cost_over_predicted")),
            f"{row['matrix_rate_share']:.0%}",
        )
    memory = Table(title="Gradient cache", title_justify="left", box=None, pad_edge=False)
    for heading in ("C", "cache", "s", "peak GiB", "activations expected, GiB"):
        memory.add_column(heading, justify="left" if heading == "cache" else "right")
    for row in cache:
        memory.add_row(
            str(row["constitutions"]),
            row["gradient_cache"],
            "–" if row["seconds"] is None else f"{row['seconds']:.1f}",
            "does not fit" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:.1f}",
            f"{row['expected_activation_bytes'] / GIB:.1f}",
        )
    show(
        table,
        "cost, by tokens, by FLOPs: time, tokens and needed FLOPs as multiples of the first size of the axis.",
        memory,
        FORMULA,
        sentence(described),
    )


if __name__ == "__main__":
    main()
