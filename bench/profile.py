"""Where a training pass of our engine spends its time, by torch.profiler.

    python -m bench.profile [--json] [--constitutions 4] [--data FOLDER]

It profiles one contrast of median length, after a warmup. A compiled region is one entry with its fused elementwise
work; matrix products and attention are listed by their own names.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bench.measure import ENGINE_SETTINGS, in_own_process, load, load_contrasts, machine, options, sentence, show

LISTED = 15


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options("Where a training pass spends its time.", contrasts=1)
    parser.add_argument("--constitutions", type=int, default=4, help="C (4)")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(_work(chosen)))
        return
    result = _work(chosen) if chosen.tiny else in_own_process("bench.profile", arguments, "profile", ENGINE_SETTINGS)
    described = machine([result["matrix_rate"]], chosen)
    if chosen.json:
        print(json.dumps({**result, "machine": described}, indent=1))
    else:
        _show(result, described)


def _work(chosen: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from bench.data import shortened
    from bench.engine_step import EngineStep
    from sami.costs.estimate import matrix_rate

    contrast = load_contrasts(chosen, chosen.constitutions)[0]
    model = load(chosen, torch.float32)
    step = EngineStep(model, model.config.pad_token_id or 0, compiled=not chosen.tiny)
    for first in (shortened(contrast, 300, 16), contrast):
        step(first)
    rate = matrix_rate(torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step(contrast)
    entries = sorted(profiled.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
    total = sum(entry.self_cpu_time_total for entry in entries)
    return {
        "constitutions": chosen.constitutions,
        "matrix_rate": rate,
        "seconds": total / 1e6,
        "entries": [
            {
                "name": entry.key,
                "calls": entry.count,
                "seconds": entry.self_cpu_time_total / 1e6,
                "share": entry.self_cpu_time_total / total,
            }
            for entry in entries[:LISTED]
        ],
    }


def _show(result: dict[str, Any], described: dict[str, Any]) -> None:
    from rich.table import Table

    title = f"A contrast of C = {result['constitutions']}, forward and backward, {result['seconds']:.2f} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("entry", "calls", "own s", "share"):
        table.add_column(heading, justify="left" if heading == "entry" else "right")
    for entry in result["entries"]:
        table.add_row(entry["name"][:70], str(entry["calls"]), f"{entry['seconds']:.3f}", f"{entry['share']:.1%}")
    show(table, sentence(described))


if __name__ == "__main__":
    main()
