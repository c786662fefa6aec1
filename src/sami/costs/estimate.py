"""What a run will cost, without running it: contrasts, tokens, steps, memory on each device and a time estimate.

Tokens are counted with the run's own tokenizer and prompts; responses are taken at full length. Time is that of the
floating-point operations that are needed, of moving the weights, and of starting each step.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sami.costs.memory import GIB, USABLE, Needs, host_bytes, micro_batch, needs, remedy
from sami.costs.workload import Workload, principles_before_writing, workload
from sami.errors import InputError
from sami.evaluation.judges import Given, make_judge
from sami.evaluation.win_rate import queries_needed
from sami.models import devices
from sami.recipe import Recipe

# Fitted to seven runs of a 135M model on two cores whose matrix rate was 1.5 TFLOP/s: shares of that rate, bytes
# moved for each weight and forward-backward pass (gradients to fp32, the optimiser's part) at 8 GB/s, and seconds to
# start a step and load its models.
TRAINING_EFFICIENCY = 0.45
SCORING_EFFICIENCY = 0.24
GENERATION_EFFICIENCY = 0.18
BYTES_PER_WEIGHT = 80
STEP_START = 3.0
# Of a GPU that is described rather than present. Its figures have not been measured; these are shares of its peak.
GPU_TRAINING, GPU_SCORING, GPU_GENERATION = 0.35, 0.30, 0.10
GPU_BANDWIDTH = 1.5e12  # bytes/s
# A step of this size is half a bf16 step for a weight of 0.01, a common size in these models.
VISIBLE_CHANGE = 2e-5
MOST_GPUS_OF_A_MACHINE = 8
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
    """Contrasts generated for each iteration, the surplus for filters included."""
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
    """Memory that machine 0 needs beside its devices where several processes train."""
    misfits: list[str]
    """What does not fit, and what to change; empty where everything does."""
    matrix_flops: float
    seconds: dict[str, float]
    estimated: str | None
    """Why lengths are estimated from characters."""
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
    """Work out a recipe's costs; needs the model's config and tokenizer, not its weights in memory.

    Args:
        gpus: to plan for; None plans for this machine.
        hub: whether a hub can be reached; without one, known models and data sets are planned for from what is known.

    Raises:
        InputError: whatever `sami run` would refuse about the recipe, its data or its model.
    """
    bare = recipe.evaluation.model_copy(update={"judges": [], "baselines": []})  # they cost no memory or time here
    dtype = torch.bfloat16 if gpus and recipe.model.dtype == "auto" else devices.resolve_dtype(recipe.model.dtype)
    work = workload(recipe.model_copy(update={"evaluation": bare}), hub=hub)
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": str(dtype).removeprefix("torch.")}),
            "generation": work.generation,
        }
    )
    training, policies = recipe.training, recipe.training.iterations + 1
    processes = _processes(recipe, gpus)
    available = _available(processes, gpus)

    def phases(candidate: Recipe, count: int) -> list[Needs]:
        return needs(
            work.shape,
            candidate,
            work.longest,
            processes=count,
            dtype=dtype,
            adapter_weights=work.adapter_weights,
            device_bytes=available,
            gpus=_gpus_of_a_machine(recipe, gpus),
        )

    memory = phases(recipe, processes)
    rate = gpus.tflops * 1e12 if gpus else matrix_rate(dtype)
    c, row = recipe.sampling.constitutions, work.mean_prompt + recipe.sampling.constitutions * work.longest.response
    steps = [training.steps_of(i) for i in range(1, training.iterations + 1)]
    return Costs(
        recipe=recipe,
        parameters=work.shape.total,
        training_queries=work.training_queries,
        evaluation_queries=work.evaluation_queries,
        win_rate_queries=queries_needed(points=5, power=0.8),
        contrasts=work.contrasts,
        steps=steps,
        prompt_tokens=round(work.mean_prompt, 1),
        generated_tokens=_sequences(recipe, work) * work.longest.response,
        trained_tokens=round(sum(steps) * training.batch_size * c * row),
        scored_tokens=round((2 * policies - 1) * len(work.evaluation) * c * row),
        processes=processes,
        memory=memory,
        available_bytes=round(available),
        host_bytes=host_bytes(work.shape, recipe, processes),
        misfits=_misfits(memory, available, recipe, processes, phases),
        matrix_flops=rate,
        seconds=_seconds(recipe, work, processes, rate, gpus),
        estimated=work.estimated,
        warnings=_rounding_warning(recipe) + _refusals(recipe) + _launch_warning(recipe, processes, gpus),
    )


# Memory.


def _processes(recipe: Recipe, gpus: Gpus | None) -> int:
    """That train: the recipe's, or as many as there are GPUs for where the recipe can be divided so."""
    total = recipe.launch.total
    if (
        gpus is None
        or recipe.adapter is not None
        or recipe.training.beta
        or recipe.training.master_weights != "float32"
    ):
        return total
    return max(n for n in range(1, gpus.count + 1) if recipe.training.batch_size % n == 0)


def _gpus_of_a_machine(recipe: Recipe, gpus: Gpus | None) -> int:
    """Over which a model can be spread that one of them cannot hold."""
    if gpus is None:
        return max(1, torch.cuda.device_count())
    machines = recipe.launch.nodes if recipe.launch.total == gpus.count else 1
    return min(gpus.count // machines, MOST_GPUS_OF_A_MACHINE)


def _available(processes: int, gpus: Gpus | None) -> float:
    """Bytes of a device that a run can use; processes on one CPU share its memory."""
    if gpus is not None:
        return gpus.gib * GIB * USABLE
    free = devices.free_bytes()
    return free / processes if devices.default_device().type == "cpu" else free


def _misfits(memory: list[Needs], available: float, recipe: Recipe, processes: int, phases: Any) -> list[str]:
    found = []
    for phase in (one for one in memory if one.bytes > available):
        name = phase.phase

        def fits(candidate: Recipe, count: int, name: str = name) -> bool:
            return all(one.bytes <= available for one in phases(candidate, count) if one.phase == name)

        change = remedy(name, recipe, processes, fits)
        largest = max(phase.parts, key=lambda part: phase.parts[part])
        found.append(
            f"{name[0].upper()}{name[1:]} needs {phase.bytes / GIB:.1f} GiB on each device, most of it {largest} "
            f"({phase.parts[largest] / GIB:.1f} GiB), and {available / GIB:.1f} GiB can be used. "
            + (
                f"Set {change}."
                if change
                else "No setting makes it fit: take devices with more memory, or a smaller model."
            )
        )
    return found


# Time.


def _sequences(recipe: Recipe, work: Workload) -> int:
    """Responses that the run generates: for training, and by base, each policy and each model among the baselines."""
    evaluated = recipe.training.iterations + 1
    return recipe.sampling.constitutions * (sum(work.contrasts) + evaluated * len(work.evaluation))


def _seconds(recipe: Recipe, work: Workload, processes: int, rate: float, gpus: Gpus | None) -> dict[str, float]:
    shape, training, c = work.shape, recipe.training, recipe.sampling.constitutions
    response, policies = work.longest.response, recipe.training.iterations + 1
    steps = sum(training.steps_of(i) for i in range(1, training.iterations + 1))
    forward = 2 * (c * (work.mean_prompt + c * response) * shape.active + c * c * response * shape.head)
    # Forward, and backward through activations and through weights; frozen ones have no part in the last.
    passes = (3 if recipe.adapter is None else 2) + (1 if training.beta else 0)
    passes += (1 if training.gradient_checkpointing else 0) + (1 if training.gradient_cache else 0)
    contrasts = steps * training.batch_size
    calls = contrasts / micro_batch(recipe, processes) / processes
    trained = shape.total if recipe.adapter is None else work.adapter_weights
    generated = 2 * _sequences(recipe, work) * ((work.mean_prompt + response) * shape.active + response * shape.head)
    scored = forward * (2 * policies - 1) * len(work.evaluation)
    if gpus:
        sharing = recipe.generation.vllm
        generators = sharing.tensor_parallel * sharing.data_parallel if recipe.generation.engine == "vllm" else 1
        shares = (GPU_TRAINING, GPU_GENERATION * min(generators, gpus.count), GPU_SCORING)
        bandwidth, parallel = GPU_BANDWIDTH, processes
    else:
        shares = (TRAINING_EFFICIENCY, GENERATION_EFFICIENCY, SCORING_EFFICIENCY)
        bandwidth, parallel = memory_rate(), 1  # processes on one machine share its rate
    moved = BYTES_PER_WEIGHT * trained / parallel * calls / bandwidth
    seconds = {
        "generation": generated / (rate * shares[1]),
        "training": passes * forward * contrasts / (rate * shares[0] * parallel) + moved,
        "scoring": scored / (rate * shares[2]),
        "starting": STEP_START * (2 * training.iterations + 2 * policies),
    }
    return {name: round(value, 1) for name, value in seconds.items()}


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on the default device."""
    n = 1024 if devices.default_device().type == "cpu" else 8192
    a = torch.randn(n, n, device=devices.default_device()).to(dtype)
    return 2 * n**3 / _fastest(lambda: a @ a, seconds=0.5)


def memory_rate() -> float:
    """Bytes a second that copying a large tensor reads and writes on the default device."""
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
    """Whether the largest possible change of a weight is lost when it is rounded; adapters are saved in fp32."""
    training = recipe.training
    if training.master_weights == "bfloat16" and max(training.lr) < VISIBLE_CHANGE:
        return [
            f"The learning rate is at most {max(training.lr):.1e} and training.master_weights bfloat16: most steps are "
            f"lost one by one. Set training.master_weights=float32, or raise training.lr."
        ]
    largest = max(_largest_change(recipe, i) for i in range(1, training.iterations + 1))
    if recipe.adapter is not None or recipe.model.dtype != "bfloat16" or largest >= VISIBLE_CHANGE:
        return []
    return [
        f"An iteration changes a weight by at most {largest:.1e}: most weights will not change once rounded to "
        f"bfloat16. Raise training.lr or training.steps, or set model.dtype=float32."
    ]


def _largest_change(recipe: Recipe, iteration: int) -> float:
    """Of a weight whose gradient is the same in every step.

    AdamW then moves by its rate. RMSprop divides by an average that starts from 0, so its first steps are larger.
    """
    training = recipe.training
    steps, lr = training.steps_of(iteration), training.lr_of(iteration)
    if training.optimizer == "rmsprop":
        return lr * sum((1 - RMSPROP_DECAY**step) ** -0.5 for step in range(1, steps + 1))
    return lr * steps


def _refusals(recipe: Recipe) -> list[str]:
    """What a run would refuse about its judges, which cost nothing that is planned here."""
    principles, found = principles_before_writing(recipe), []
    for judge in recipe.evaluation.judges:
        try:
            make_judge(judge, Given(principles))
        except InputError as error:
            found.append(f"sami run will refuse this: {error}")
    return found


def _launch_warning(recipe: Recipe, processes: int, gpus: Gpus | None) -> list[str]:
    if gpus is None or processes == recipe.launch.total:
        return []
    return [
        f"The recipe launches {recipe.launch.total} processes, and this plan is for {processes}: run it with "
        f"launch.processes={processes} launch.nodes=1, or divided over as many machines."
    ]
