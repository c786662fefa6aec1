"""A plan as tables for a terminal."""

from rich.table import Table

from sami.costs.estimate import Costs
from sami.costs.memory import GIB
from sami.recipe import Recipe, describe, flatten


def recipe_table(recipe: Recipe) -> Table:
    """Every resolved value with its meaning."""
    table = Table(title="Recipe", title_justify="left", box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=40)
    table.add_column("meaning", style="dim")
    for key, value in flatten(recipe.model_dump()):
        table.add_row(
            key, "–" if value is None else repr(value) if isinstance(value, str) else str(value), describe(key)
        )
    return table


def cost_table(costs: Costs) -> Table:
    """The expected costs, one per line."""
    table = Table(title="Expected cost", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    total = sum(costs.seconds.values())
    for name, value in (
        ("model", f"{costs.parameters / 1e6:,.0f} M parameters"),
        ("queries", f"{costs.training_queries} to train on, {costs.evaluation_queries} held out"),
        ("win rate", f"at most {costs.win_rate_queries} held-out queries to detect 5 points from 50 % at 80 % power"),
        ("contrasts", ", ".join(f"{n} in iteration {i}" for i, n in enumerate(costs.contrasts, start=1))),
        ("optimizer steps", ", ".join(map(str, costs.steps))),
        (
            "tokens",
            f"at most {costs.generated_tokens:,} generated, {costs.trained_tokens:,} trained on, "
            f"{costs.scored_tokens:,} scored; prompts of {costs.prompt_tokens:g} on average",
        ),
        (
            "time",
            f"about {_duration(total)}: "
            + ", ".join(f"{k} {_duration(v)}" for k, v in costs.seconds.items())
            + f" (matrix rate {costs.matrix_flops / 1e12:.2f} TFLOP/s)",
        ),
    ):
        table.add_row(name, value)
    if costs.host_bytes:
        table.add_row(
            "host memory",
            f"{costs.host_bytes / GIB:.1f} GiB on node 0, whose first process reads and saves the whole weights",
        )
    return table


def memory_table(costs: Costs) -> Table:
    """What each phase holds on each device that it uses, and whether it fits."""
    table = Table(title="Memory on each device, GiB", title_justify="left", box=None, pad_edge=False)
    table.add_column("phase", no_wrap=True)
    table.add_column("devices", justify="right")
    table.add_column("needed", justify="right")
    table.add_column("can be used", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("of which", overflow="fold")
    for phase in costs.memory:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in phase.parts.items())
        table.add_row(
            phase.phase,
            str(phase.devices),
            f"{phase.bytes / GIB:.1f}",
            f"{costs.available_bytes / GIB:.1f}",
            "fits" if phase.bytes <= costs.available_bytes else "does not fit",
            parts,
        )
    return table


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
