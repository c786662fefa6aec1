"""What a run will cost, without running it: contrasts, tokens, steps, memory and a time estimate.

Tokens are counted with the run's own tokenizer and prompts; responses are taken at full length. Time comes
from the floating-point operations that are needed and the matrix rate measured here for half a second.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table

from sami import models
from sami.evaluation.win_rate import queries_needed
from sami.pipeline import Pipeline
from sami.recipe import Recipe, describe, flatten
from sami.sampling import Planned

# Shares of the measured matrix rate that were reached with a 135M model on two cores.
TRAINING_EFFICIENCY = 0.35
SCORING_EFFICIENCY = 0.45
GENERATION_EFFICIENCY = 0.2
# A step of this size is half a bf16 step for a weight of 0.01, a common size in these models.
VISIBLE_CHANGE = 2e-5
GIB = 2**30


@dataclass(frozen=True)
class Costs:
    """Expected cost of a run: counts, bytes and seconds."""

    recipe: Recipe
    parameters: int
    training_queries: int
    evaluation_queries: int
    win_rate_queries: int
    """Held-out queries that a win rate 5 points from 50 % needs at 80 % power."""
    contrasts: list[int]
    """Contrasts generated for each iteration, the surplus for filters included."""
    steps: list[int]
    prompt_tokens: float
    """Mean length of a training prompt."""
    generated_tokens: int
    trained_tokens: int
    scored_tokens: int
    training_bytes: int
    generation_bytes: int
    available_bytes: int
    matrix_flops: float
    seconds: dict[str, float]
    warnings: list[str]

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "recipe"}


def plan(recipe: Recipe) -> Costs:
    """Work out a recipe's costs; needs the model's config and tokenizer, not its weights in memory.

    Raises:
        InputError: whatever `sami run` would refuse about the recipe, its data or its model.
    """
    pipeline = Pipeline(recipe, "unused")
    pipeline.check_context()
    recipe, training = pipeline.recipe, pipeline.recipe.training
    c, response = recipe.sampling.constitutions, recipe.generation.max_new_tokens
    plans = [pipeline.training_plan(i) for i in range(1, training.iterations + 1)]
    evaluation = pipeline.evaluation_plan()
    policies = training.iterations + 1
    prompt = _mean_prompt(pipeline, [*plans[0][:100], *evaluation[:100]])
    row = prompt + c * response  # tokens of a shared row
    steps = [training.steps_of(i) for i in range(1, training.iterations + 1)]

    sequences = c * (sum(map(len, plans)) + policies * len(evaluation))
    generated = sequences * response
    trained = round(sum(steps) * training.batch_size * c * row)
    scored = round((2 * policies - 1) * len(evaluation) * c * row)

    inner, head = _parameters(pipeline)
    rate = matrix_rate(pipeline.dtype)
    logits = c * c * response  # logits of a contrast: every response under every constitution
    # Forward, and backward through activations and through weights; frozen ones have no part in the last.
    passes = (3 if recipe.adapter is None else 2) + (1 if training.beta else 0)
    forward = 2 * (c * row * inner + logits * head)
    seconds = {
        "generation": 2 * sequences * ((prompt + response) * inner + response * head) / rate / GENERATION_EFFICIENCY,
        "training": passes * forward * sum(steps) * training.batch_size / rate / TRAINING_EFFICIENCY,
        "scoring": forward * (2 * policies - 1) * len(evaluation) / rate / SCORING_EFFICIENCY,
    }
    total = inner + (0 if _tied(pipeline) else head) + head
    training_bytes, generation_bytes = _memory(pipeline, total, head, row)
    available = models.free_bytes()
    warnings = _rounding_warning(recipe)
    if max(training_bytes, generation_bytes) > available:
        warnings.append(
            f"About {max(training_bytes, generation_bytes) / GIB:.1f} GiB are needed and {available / GIB:.1f} GiB are "
            f"free: lower training.micro_batch_size and generation.batch_size, or take a smaller model."
        )
    return Costs(
        recipe=recipe,
        parameters=total,
        training_queries=sum(len(half) for half in pipeline.splits.train),
        evaluation_queries=len(pipeline.splits.evaluation),
        win_rate_queries=queries_needed(points=5, power=0.8),
        contrasts=[len(p) for p in plans],
        steps=steps,
        prompt_tokens=round(prompt, 1),
        generated_tokens=generated,
        trained_tokens=trained,
        scored_tokens=scored,
        training_bytes=training_bytes,
        generation_bytes=generation_bytes,
        available_bytes=available,
        matrix_flops=rate,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        warnings=warnings,
    )


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on the default device."""
    n = 1024 if models.default_device().type == "cpu" else 8192
    a = torch.randn(n, n, device=models.default_device()).to(dtype)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < 0.5:
        begin = time.perf_counter()
        a @ a
        if a.is_cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - begin))
    return best


def recipe_table(recipe: Recipe) -> Table:
    """Every resolved value with what it means."""
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
    """The expected costs, one a line."""
    table = Table(title="Expected cost", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    total = sum(costs.seconds.values())
    for name, value in (
        ("model", f"{costs.parameters / 1e6:,.0f} M parameters"),
        ("queries", f"{costs.training_queries} to train on, {costs.evaluation_queries} held out"),
        ("win rate", f"{costs.win_rate_queries} held-out queries to see 5 points from 50 % at 80 % power, at most"),
        ("contrasts", ", ".join(f"{n} in iteration {i}" for i, n in enumerate(costs.contrasts, start=1))),
        ("optimiser steps", ", ".join(map(str, costs.steps))),
        (
            "tokens",
            f"{costs.generated_tokens:,} generated at most, {costs.trained_tokens:,} trained on, "
            f"{costs.scored_tokens:,} scored; prompts of {costs.prompt_tokens:g} on average",
        ),
        (
            "memory",
            f"{costs.training_bytes / GIB:.1f} GiB in training, {costs.generation_bytes / GIB:.1f} GiB in "
            f"generation, {costs.available_bytes / GIB:.1f} GiB free",
        ),
        (
            "time",
            f"about {_duration(total)}: "
            + ", ".join(f"{k} {_duration(v)}" for k, v in costs.seconds.items())
            + f" (measured matrix rate {costs.matrix_flops / 1e12:.2f} TFLOP/s)",
        ),
    ):
        table.add_row(name, value)
    return table


def _mean_prompt(pipeline: Pipeline, planned: list[Planned]) -> float:
    lengths = [
        len(pipeline.prompts.training_prompt(p.query, c.texts, c.text)) for p in planned for c in p.constitutions
    ]
    return sum(lengths) / len(lengths)


def _parameters(pipeline: Pipeline) -> tuple[int, int]:
    """Parameters that every token passes, and those of the output head."""
    model: Any = models.empty_model(pipeline.recipe.model)
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight.numel()
    total = sum(p.numel() for p in model.parameters())
    return total - embeddings - (0 if _tied(pipeline) else head), head


def _tied(pipeline: Pipeline) -> bool:
    return bool(models.load_config(pipeline.recipe.model).get_text_config().tie_word_embeddings)


def _memory(pipeline: Pipeline, total: int, head: int, row: float) -> tuple[int, int]:
    """Bytes in training and in generation: weights, optimiser, and the activations that dominate."""
    config = models.load_config(pipeline.recipe.model).get_text_config()
    recipe = pipeline.recipe
    width = pipeline.dtype.itemsize
    states = {"adamw": 2, "rmsprop": 1}[recipe.training.optimizer]
    rows = recipe.training.micro_batch_size * recipe.sampling.constitutions
    layers, hidden = config.num_hidden_layers, config.hidden_size
    activations = models.activation_bytes(config, rows * row, pipeline.dtype)
    logits = rows * recipe.sampling.constitutions * recipe.generation.max_new_tokens * (head // hidden) * 2 * width
    narrow = recipe.training.master_weights == "bfloat16"
    trained = (2 if narrow else 4) * (2 + states)  # weight, gradient and optimiser states
    # Beside the trained weights, all weights once in the dtype of compute.
    copy = 0 if narrow else total * width
    held = copy + (total if recipe.adapter is None else pipeline.adapter_weights()) * trained
    again = recipe.training.restart_from == "previous" and recipe.training.iterations > 1
    if recipe.training.beta and (recipe.adapter is None or (recipe.adapter.merge and again)):
        held += total * width  # the reference
    training = held + activations + logits
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    cache = recipe.generation.batch_size * row * layers * 2 * kv_heads * head_size * width
    return int(training), int(total * width + 2 * cache)


def _rounding_warning(recipe: Recipe) -> list[str]:
    """Whether the largest possible change of a weight is lost when it is rounded; adapters are saved in fp32."""
    training = recipe.training
    if training.master_weights == "bfloat16" and max(training.lr) < VISIBLE_CHANGE:
        return [
            f"The learning rate is at most {max(training.lr):.1e} and training.master_weights bfloat16: most steps are "
            f"lost one by one. Set training.master_weights=float32, or raise training.lr."
        ]
    largest = max(training.lr_of(i) * training.steps_of(i) for i in range(1, training.iterations + 1))
    if recipe.adapter is not None or recipe.model.dtype != "bfloat16" or largest >= VISIBLE_CHANGE:
        return []
    return [
        f"learning rate x steps is at most {largest:.1e}: most weights will not change once rounded to bfloat16. "
        f"Raise training.lr or training.steps, or set model.dtype=float32."
    ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
