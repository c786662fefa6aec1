"""Time and memory of a training pass: our engine compared with a reference-style step and plain rows.

    python -m bench.train_step [--json] [--contrasts N] [--data FOLDER] [--constitutions 2 4 8]

Every engine gets the same contrasts, one per pass, in a process of its own for each C. Its time is the median over
contrasts after a warmup, its memory is the peak of the process, and the bf16 matrix rate is measured between its
contrasts. *Low memory* is our engine with bf16 master weights and the gradient cache.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.measure import (
    ENGINE_SETTINGS,
    GIB,
    REFERENCE_SETTINGS,
    Measurement,
    in_own_process,
    load,
    load_contrasts,
    machine,
    measure,
    options,
    sentence,
    show,
)

ENGINES = {
    "engine": "sami",
    "low_memory": "sami, low memory",
    "reference": "reference-style",
    "plain": "plain rows",
}
LARGEST_COMPARED = 4  # constitutions; with more, the reference-style step takes minutes and tens of GB

Results = dict[tuple[str, int], Measurement]


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options("Our engine compared with a reference-style step and plain rows.", contrasts=2)
    parser.add_argument("--constitutions", type=int, nargs="+", default=[2, 4, 8], help="values of C (2 4 8)")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(asdict(_work(chosen, chosen.measure))))
        return
    results: Results = {}
    for c in chosen.constitutions:
        for engine in ENGINES if c <= LARGEST_COMPARED else ("engine",):
            results[engine, c] = _apart(chosen, arguments, engine, c)
    described = machine([result.matrix_rate for result in results.values()], chosen)
    if chosen.json:
        print(json.dumps(_as_json(results, chosen.constitutions, described), indent=1))
    else:
        _show(results, chosen.constitutions, described)


def _apart(chosen: argparse.Namespace, arguments: Sequence[str], engine: str, c: int) -> Measurement:
    what = f"{engine}:{c}"
    if chosen.tiny:
        return _work(chosen, what)
    settings = REFERENCE_SETTINGS if engine == "reference" else ENGINE_SETTINGS
    return Measurement(**in_own_process("bench.train_step", arguments, what, settings))


def _work(chosen: argparse.Namespace, what: str) -> Measurement:
    import torch

    from bench.data import shortened
    from bench.engine_step import EngineStep
    from bench.flops import model_sizes, needed_flops
    from bench.reference_step import ReferenceStep

    engine, c = what.split(":")
    contrasts = load_contrasts(chosen, int(c))
    model = load(chosen, torch.bfloat16 if engine in ("reference", "low_memory") else torch.float32)
    sizes, pad = model_sizes(model.config), model.config.pad_token_id or 0
    # A short contrast initializes libraries and compiler; a long one lets the engine's allocator grow.
    warm_up = [shortened(contrasts[0], 300, 16)]
    step: EngineStep | ReferenceStep
    if engine == "reference":
        step = ReferenceStep(model, pad)
    else:
        step = EngineStep(
            model,
            pad,
            share_prefix=engine != "plain",
            gradient_cache=engine == "low_memory",
            compiled=not chosen.tiny,
        )
        warm_up.append(max(contrasts, key=lambda contrast: needed_flops(contrast, sizes)))
    return measure(step, contrasts, lambda contrast: needed_flops(contrast, sizes), warm_up)


def _rows(results: Results, constitutions: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for c in constitutions:
        ours, reference = results["engine", c], results.get(("reference", c))
        rows.append(
            {
                "constitutions": c,
                "seconds": {name: results[name, c].median_seconds for name in ENGINES if (name, c) in results},
                "speed_ratio": reference and reference.median_seconds / ours.median_seconds,
                "memory_ratio": reference and ours.peak_bytes / reference.peak_bytes,
                "matrix_rate_share": ours.share,
            }
        )
    return rows


def _as_json(results: Results, constitutions: Sequence[int], described: dict[str, Any]) -> dict[str, Any]:
    from bench.flops import FORMULA

    measurements = [{"engine": name, "constitutions": c, **asdict(result)} for (name, c), result in results.items()]
    return {
        "rows": _rows(results, constitutions),
        "machine": described,
        "measurements": measurements,
        "formula": FORMULA,
    }


def _show(results: Results, constitutions: Sequence[int], described: dict[str, Any]) -> None:
    from rich.table import Table

    from bench.flops import FORMULA

    table = Table(title="A contrast, forward and backward", title_justify="left", box=None, pad_edge=False)
    for heading in (
        "C",
        "engine",
        "s",
        "speed",
        "tokens",
        "needed TFLOP",
        "TFLOP/s",
        "matrix rate",
        "share",
        "peak GiB",
        "memory",
    ):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for (name, c), result in results.items():
        reference = results.get(("reference", c))
        needed, count = sum(result.needed_flops), len(result.seconds)
        table.add_row(
            str(c),
            ENGINES[name],
            f"{result.median_seconds:.2f}",
            f"{reference.median_seconds / result.median_seconds:.1f} x" if reference else "–",
            f"{sum(result.tokens) / count:,.0f}",
            f"{needed / count / 1e12:.2f}",
            f"{needed / sum(result.seconds) / 1e12:.2f}",
            f"{result.matrix_rate / 1e12:.2f}",
            f"{result.share:.0%}",
            f"{result.peak_bytes / GIB:.1f}",
            f"{result.peak_bytes / reference.peak_bytes:.2f}" if reference else "–",
        )
    show(
        table,
        "s: median over contrasts; speed and memory: relative to the reference-style step; tokens computed and TFLOP "
        "needed: means; share: needed FLOPs per second over the matrix rate (TFLOP/s), which is measured between the "
        "contrasts.",
        FORMULA,
        sentence(described),
    )


if __name__ == "__main__":
    main()
