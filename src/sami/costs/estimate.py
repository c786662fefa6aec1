"""What a run will cost, without running it: contrasts, tokens, steps, memory on each device and an estimate of time.

Tokens are counted with the run's own tokenizer and prompts; responses are taken at full length. Time is that of the
floating-point operations that are needed, of moving the weights, and of starting each step.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from sami.costs.memory import GIB, USABLE, Devices, Needs, host_bytes, needs
from sami.costs.remedy import remedy
from sami.costs.workload import Workload, principles_before_writing, workload
from sami.errors import InputError
from sami.evaluation.judges import Given, make_judge
from sami.evaluation.win_rate import queries_needed
from sami.models import devices
from sami.objective import require_objective
from sami.recipe import Recipe

# Fitted to seven runs of a 135M model on two cores whose matrix rate was 1.5 TFLOP/s: shares of that rate, bytes
# moved for each weight and forward-backward pass (gradients to fp32, the optimizer's part) at 8 GB/s, and seconds to
# start a step and load its models.
TRAINING_EFFICIENCY = 0.45
SCORING_EFFICIENCY = 0.24
GENERATION_EFFICIENCY = 0.18
BYTES_PER_WEIGHT = 80
STEP_START = 3.0
# For a GPU that is described rather than present. These shares of its peak have not been measured.
GPU_TRAINING, GPU_SCORING, GPU_GENERATION = 0.35, 0.30, 0.10
GPU_BANDWIDTH = 1.5e12  # bytes/s
# A step of this size is half a bf16 step for a weight of 0.01, a common size in these models.
VISIBLE_CHANGE = 2e-5
MOST_GPUS_OF_A_NODE = 8
RMSPROP_DECAY = 0.99  # torch's default


@dataclass(frozen=True)
class Gpus:
    """GPUs to plan for, which need not be present."""

    count: int
    gib: float = 80.0
    """Memory of each."""
    tflops: float = 312.0
    """Peak matrix rate of each in bfloat16; that of an A100 by default."""


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
    """Contrasts generated for each iteration, including the surplus for filters."""
    steps: list[int]
    prompt_tokens: float
    """Mean length of a training prompt."""
    generated_tokens: int
    trained_tokens: int
    scored_tokens: int
    processes: int
    """That train, each on a device of its own."""
    memory: list[Needs]
    """What each phase holds on each device that it uses."""
    available_bytes: int
    """Of a device."""
    host_bytes: int
    """Memory that node 0 needs beside its devices when several processes train."""
    misfits: list[str]
    """What does not fit, and what to change; empty if everything fits."""
    matrix_flops: float
    seconds: dict[str, float]
    estimated: str | None
    """Why lengths are estimated from characters; None if they were counted."""
    warnings: list[str]

    @property
    def training_bytes(self) -> int:
        return self._bytes("training")

    @property
    def generation_bytes(self) -> int:
        return self._bytes("generation")

    def _bytes(self, phase: str) -> int:
        return next(one.bytes for one in self.memory if one.phase == phase)

    def as_json(self) -> dict[str, Any]:
        value = {key: value for key, value in asdict(self).items() if key != "recipe"}
        value["memory"] = [asdict(one) | {"bytes": one.bytes} for one in self.memory]
        return value | {
            "fits": not self.misfits,
            "training_bytes": self.training_bytes,
            "generation_bytes": self.generation_bytes,
        }


def plan(recipe: Recipe, gpus: Gpus | None = None, *, hub: bool = True) -> Costs:
    """Work out a recipe's costs. This needs the model's config and tokenizer; weights are not loaded.

    Args:
        gpus: to plan for; None plans for this machine.
        hub: whether a hub can be reached; without one, known models and data sets are planned for from what is known.

    Raises:
        InputError: whatever `sami run` would refuse about the recipe, its data or its model.
    """
    require_objective(recipe.training.contrast, recipe.training.estimator)
    bare = recipe.evaluation.model_copy(update={"judges": [], "baselines": []})  # they cost no memory or time here
    work = workload(recipe.model_copy(update={"evaluation": bare}), hub=hub)
    on = _devices(recipe, gpus)
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": str(on.dtype).removeprefix("torch.")}),
            "generation": work.generation,
        }
    )
    phases = needs(work.shape, recipe, work.longest, on, work.adapter_weights)
    rate = gpus.tflops * 1e12 if gpus else matrix_rate(on.dtype)
    training, c = recipe.training, recipe.sampling.constitutions
    row = work.mean_prompt + c * work.longest.response
    return Costs(
        recipe=recipe,
        parameters=work.shape.total,
        training_queries=work.training_queries,
        evaluation_queries=work.evaluation_queries,
        win_rate_queries=queries_needed(points=5, power=0.8),
        contrasts=work.contrasts,
        steps=_steps(recipe),
        prompt_tokens=round(work.mean_prompt, 1),
        generated_tokens=_sequences(recipe, work) * work.longest.response,
        trained_tokens=round(sum(_steps(recipe)) * training.batch_size * c * row),
        scored_tokens=round((2 * training.iterations + 1) * len(work.evaluation) * c * row),
        processes=on.processes,
        memory=phases,
        available_bytes=round(on.bytes),
        host_bytes=host_bytes(work.shape, recipe, on.processes),
        misfits=_misfits(phases, recipe, work, on),
        matrix_flops=rate,
        seconds=_seconds(recipe, work, on.processes, rate, gpus),
        estimated=work.estimated,
        warnings=_rounding_warning(recipe) + _refusals(recipe) + _launch_warning(recipe, on.processes, gpus),
    )


def _steps(recipe: Recipe) -> list[int]:
    return [recipe.training.steps_of(i) for i in range(1, recipe.training.iterations + 1)]


# Memory.


def _devices(recipe: Recipe, gpus: Gpus | None) -> Devices:
    """This machine, or GPUs that are described; there, as many processes as the recipe can be trained in."""
    if gpus is None:
        return Devices.here(recipe.launch, devices.resolve_dtype(recipe.model.dtype), devices.free_bytes())
    dtype = torch.bfloat16 if recipe.model.dtype == "auto" else devices.resolve_dtype(recipe.model.dtype)
    nodes = recipe.launch.nodes if recipe.launch.total == gpus.count else 1
    return Devices(
        bytes=gpus.gib * GIB * USABLE,
        dtype=dtype,
        processes=max(n for n in range(1, gpus.count + 1) if recipe.conflict(n) is None),
        gpus=min(gpus.count // nodes, MOST_GPUS_OF_A_NODE),
    )


def _misfits(phases: list[Needs], recipe: Recipe, work: Workload, on: Devices) -> list[str]:
    found = []
    for phase in (one for one in phases if one.bytes > on.bytes):

        def fits(candidate: Recipe, processes: int, name: str = phase.phase) -> bool:
            changed = replace(on, processes=processes)
            others = needs(work.shape, candidate, work.longest, changed, work.adapter_weights)
            return all(one.bytes <= on.bytes for one in others if one.phase == name)

        change = remedy(phase.phase, recipe, on.processes, fits)
        largest = max(phase.parts, key=lambda part: phase.parts[part])
        found.append(
            f"{phase.phase.capitalize()} needs {phase.bytes / GIB:.1f} GiB on each device, most of it {largest} "
            f"({phase.parts[largest] / GIB:.1f} GiB), and {on.bytes / GIB:.1f} GiB can be used. "
            + (f"Set {change}." if change else "No setting makes it fit. Use larger devices, or a smaller model.")
        )
    return found


# Time.


def _sequences(recipe: Recipe, work: Workload) -> int:
    """Responses that the run generates: for training, and by base and each policy on the held-out queries."""
    evaluated = recipe.training.iterations + 1
    return recipe.sampling.constitutions * (sum(work.contrasts) + evaluated * len(work.evaluation))


def _seconds(recipe: Recipe, work: Workload, processes: int, rate: float, gpus: Gpus | None) -> dict[str, float]:
    shape, training = work.shape, recipe.training
    response, policies = work.longest.response, training.iterations + 1
    generated = 2 * _sequences(recipe, work) * ((work.mean_prompt + response) * shape.active + response * shape.head)
    scored = _forward(recipe, work) * (2 * policies - 1) * len(work.evaluation)
    contrasts = sum(_steps(recipe)) * training.batch_size
    calls = contrasts / training.micro_batch(processes) / processes
    trained = shape.total if recipe.adapter is None else work.adapter_weights
    if gpus:
        shares = (GPU_TRAINING, GPU_GENERATION * min(_generators(recipe), gpus.count), GPU_SCORING)
        bandwidth, parallel = GPU_BANDWIDTH, processes
    else:
        shares = (TRAINING_EFFICIENCY, GENERATION_EFFICIENCY, SCORING_EFFICIENCY)
        bandwidth, parallel = memory_rate(), 1  # processes on one machine share its rate
    moved = BYTES_PER_WEIGHT * trained / parallel * calls / bandwidth
    passes = _passes(recipe) * _forward(recipe, work)
    seconds = {
        "generation": generated / (rate * shares[1]),
        "training": passes * contrasts / (rate * shares[0] * parallel) + moved,
        "scoring": scored / (rate * shares[2]),
        "starting": STEP_START * (2 * training.iterations + 2 * policies),
    }
    return {name: round(value, 1) for name, value in seconds.items()}


def _forward(recipe: Recipe, work: Workload) -> float:
    """Floating-point operations of a forward pass over one contrast."""
    c, response, shape = recipe.sampling.constitutions, work.longest.response, work.shape
    return 2 * (c * (work.mean_prompt + c * response) * shape.active + c * c * response * shape.head)


def _passes(recipe: Recipe) -> int:
    """Training's passes in units of a forward pass: itself, and backward through activations and trained weights."""
    training = recipe.training
    again = bool(training.beta) + training.gradient_checkpointing + bool(training.gradient_cache)
    return (3 if recipe.adapter is None else 2) + again


def _generators(recipe: Recipe) -> int:
    """GPUs that generate."""
    vllm = recipe.generation.vllm
    return vllm.tensor_parallel * vllm.data_parallel if recipe.generation.engine == "vllm" else 1


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product on the default device."""
    n = 1024 if devices.default_device().type == "cpu" else 8192
    a = torch.randn(n, n, device=devices.default_device()).to(dtype)
    return 2 * n**3 / _fastest(lambda: a @ a, seconds=0.5)


def memory_rate() -> float:
    """Bytes per second that copying a large tensor reads and writes on the default device."""
    a = torch.empty(2**25, device=devices.default_device())
    b = torch.empty_like(a)
    return 2 * a.numel() * a.element_size() / _fastest(lambda: b.copy_(a), seconds=0.2)


def _fastest(work: Any, seconds: float) -> float:
    """Seconds of the fastest of several calls."""
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < seconds:
        begin = time.perf_counter()
        if work().is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


# Warnings.


def _rounding_warning(recipe: Recipe) -> list[str]:
    """Warns if rounding loses the largest possible change of a weight; adapters are saved in fp32."""
    training = recipe.training
    if training.master_weights == "bfloat16" and max(training.lr) < VISIBLE_CHANGE:
        return [
            f"The learning rate is at most {max(training.lr):.1e}, and training.master_weights is bfloat16, whose "
            f"rounding loses most steps of that size. Set training.master_weights=float32, or raise training.lr."
        ]
    largest = max(_largest_change(recipe, i) for i in range(1, training.iterations + 1))
    if recipe.adapter is not None or recipe.model.dtype != "bfloat16" or largest >= VISIBLE_CHANGE:
        return []
    return [
        f"An iteration changes a weight by at most {largest:.1e}, so most weights will not change once rounded to "
        f"bfloat16. Raise training.lr or training.steps, or set model.dtype=float32."
    ]


def _largest_change(recipe: Recipe, iteration: int) -> float:
    """Change of a weight whose gradient is the same in every step.

    AdamW then moves it by the learning rate. RMSprop divides by an average that starts from 0, so its first steps are
    larger.
    """
    training = recipe.training
    steps, lr = training.steps_of(iteration), training.lr_of(iteration)
    if training.optimizer == "rmsprop":
        return lr * sum((1 - RMSPROP_DECAY**step) ** -0.5 for step in range(1, steps + 1))
    return lr * steps


def _refusals(recipe: Recipe) -> list[str]:
    """Warns of judges that a run would refuse; they cost nothing that is planned here."""
    principles, found = principles_before_writing(recipe), []
    for judge in recipe.evaluation.judges:
        try:
            make_judge(judge, Given(principles))
        except InputError as error:
            found.append(f"sami run will refuse this: {error}")
    return found


def _launch_warning(recipe: Recipe, processes: int, gpus: Gpus | None) -> list[str]:
    note = recipe.launch.without_effect
    found = [] if note is None else [note]
    if gpus is None or processes == recipe.launch.total:
        return found
    return [
        *found,
        f"The recipe launches {recipe.launch.total} processes, and this plan is for {processes}. Run it with "
        f"launch.processes={processes} launch.nodes=1, or divide {processes} processes over several nodes.",
    ]
