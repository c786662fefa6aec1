"""Tokens per second of the transformers engine, by batch size.

    python -m bench.generation [--json] [--contrasts N] [--data FOLDER] [--batch-sizes 4 8 16 32] [--new-tokens 48]

The prompts are those of `--contrasts` contrasts with two constitutions; decoding is greedy, in bf16. Every batch size
runs in a process of its own, after a short warmup.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.measure import (
    ENGINE_SETTINGS,
    GIB,
    in_own_process,
    load,
    load_contrasts,
    machine,
    options,
    peak_bytes,
    sentence,
    show,
    tokenizer,
)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = options("Tokens per second by batch size.", contrasts=16)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--new-tokens", type=int, default=48, help="most tokens per response (48)")
    chosen = parser.parse_args(arguments)
    if chosen.measure:
        print(json.dumps(_work(chosen, int(chosen.measure))))
        return
    rows = [
        _work(chosen, size)
        if chosen.tiny
        else in_own_process("bench.generation", arguments, str(size), ENGINE_SETTINGS)
        for size in chosen.batch_sizes
    ]
    described = machine([row["matrix_rate"] for row in rows], chosen)
    if chosen.json:
        print(json.dumps({"rows": rows, "machine": described}, indent=1))
    else:
        _show(rows, described)


def _work(chosen: argparse.Namespace, batch_size: int) -> dict[str, Any]:
    import torch

    from sami.costs.estimate import matrix_rate
    from sami.generation import SamplingSettings
    from sami.generation.transformers_engine import TransformersEngine

    prompts = [ids for contrast in load_contrasts(chosen, 2) for ids in contrast.prompt_ids]
    ours: Any = _NoText() if chosen.tiny else tokenizer(chosen)
    engine = TransformersEngine(load(chosen, torch.bfloat16).eval(), ours, batch_size)
    engine.generate(prompts[:batch_size], SamplingSettings(max_new_tokens=2))
    rate = matrix_rate(torch.bfloat16)
    begin = time.perf_counter()
    completions = engine.generate(prompts, SamplingSettings(max_new_tokens=chosen.new_tokens))
    seconds = time.perf_counter() - begin
    tokens = sum(len(completion.token_ids) for completion in completions)
    return {
        "engine": "transformers",
        "batch_size": batch_size,
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)) / len(prompts),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": peak_bytes(),
        "matrix_rate": rate,
    }


class _NoText:
    """In place of a tokenizer for the tiny model, which has no words."""

    eos_token_id = 1
    pad_token_id = 2
    bos_token_id = 0

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def _show(rows: list[dict[str, Any]], described: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="Generation", title_justify="left", box=None, pad_edge=False)
    for heading in ("engine", "batch size", "prompts", "of tokens", "tokens", "s", "tokens/s", "peak GiB"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for row in rows:
        table.add_row(
            row["engine"],
            str(row["batch_size"]),
            str(row["prompts"]),
            f"{row['prompt_tokens']:.0f}",
            f"{row['tokens']:,}",
            f"{row['seconds']:.1f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['peak_bytes'] / GIB:.1f}",
        )
    show(table, "s and tokens/s include the pass over the prompts.", sentence(described))


if __name__ == "__main__":
    main()
