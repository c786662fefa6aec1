"""Memory that a run needs on each device, in bytes, part by part.

Everything follows from the model's shape and the recipe; no weights are loaded. What training holds and how activations
are counted is decided in `sami.training.memory`, which the trainer asks as well.
"""

from dataclasses import dataclass

import psutil
import torch

from sami.costs.shape import Lengths, Shape
from sami.errors import InputError
from sami.models import devices, quantization
from sami.models.devices import SPREAD_ABOVE
from sami.models.loading import load_config
from sami.recipe import Launch, Recipe
from sami.scoring.logprobs import MOST_LOGITS
from sami.training import memory
from sami.training.memory import MASTER, STATES

GIB = 2**30
# Share of a device's memory that tensors can use, beside the device's context, communication buffers and fragments.
USABLE = 0.92


@dataclass(frozen=True)
class Devices:
    """What a run is executed on."""

    bytes: float
    """Memory of a device that one process can use."""
    dtype: torch.dtype
    """Of compute."""
    processes: int = 1
    """That train, each on a device of its own."""
    gpus: int = 1
    """Of one node; a model that one GPU cannot hold is spread over them."""

    @classmethod
    def here(cls, launch: Launch, dtype: torch.dtype, available: float) -> "Devices":
        """The devices of this machine.

        Args:
            available: bytes of the default device, which a GPU gives to one process and a CPU to all of them.
        """
        each = memory.bytes_for_each(devices.default_device(), available, launch.processes)
        return cls(each, dtype, launch.total, max(1, torch.cuda.device_count()))


@dataclass(frozen=True)
class Needs:
    """What one phase of a run holds at its peak on each device that it uses."""

    phase: str
    devices: int
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def needs(shape: Shape, recipe: Recipe, lengths: Lengths, on: Devices, adapter_weights: int = 0) -> list[Needs]:
    """The phases of a run: training, generation, scoring.

    Several processes start with less than training holds: the whole weights are in the first process's host memory
    (`host_bytes`), and each device receives its shards.

    Args:
        adapter_weights: the weights that are trained if the recipe has an adapter.
    """
    held = held_in_training(shape, recipe, on, adapter_weights).parts
    row = lengths.row(recipe.sampling.constitutions, shared=recipe.training.share_prefix)
    cached = caches_gradients(shape, recipe, on, adapter_weights, row)
    activations = _activations(shape, recipe, lengths, on, row, cached=cached)
    return [
        Needs("training", on.processes, held | activations),
        _generation(shape, recipe, lengths, on),
        _scoring(shape, recipe, on, row),
    ]


def host_bytes(shape: Shape, recipe: Recipe, processes: int) -> int:
    """Host memory of node 0 that the first of several processes holds at the start and to save.

    It reads and writes whole float32 weights, and for checkpoints whole optimizer states after them.
    """
    if processes == 1:
        return 0
    states = STATES[recipe.training.optimizer] if recipe.training.checkpoint_steps else 0
    return MASTER * shape.total * max(1, states)


# Training.


def held_in_training(shape: Shape, recipe: Recipe, on: Devices, adapter_weights: int) -> memory.Held:
    """What a recipe's training holds from the first step to the last."""
    adapter, training = recipe.adapter, recipe.training
    masters = torch.bfloat16 if training.master_weights == "bfloat16" else torch.float32
    frozen = 0
    if adapter is not None:
        frozen = quantization.held_bytes(shape.total, shape.narrow if adapter.quantize else 0, on.dtype)
    copied = adapter is None and on.processes == 1 and masters != on.dtype
    sizes = memory.Sizes(
        trained=shape.total if adapter is None else adapter_weights,
        masters=masters,
        optimizer=training.optimizer,
        copied=shape.total if copied else 0,
        compute=on.dtype,
        frozen_bytes=frozen,
        reference_bytes=(frozen or shape.total * on.dtype.itemsize) if _has_reference_weights(recipe) else 0,
        processes=on.processes,
        block=shape.layer,
        outside_blocks=shape.outside_blocks,
    )
    return memory.held(sizes)


def _has_reference_weights(recipe: Recipe) -> bool:
    """Whether the reference has weights of its own: an adapter's is its base, until the adapter is merged into it."""
    goes_on = recipe.training.restart_from == "previous" and recipe.training.iterations > 1
    adapter = recipe.adapter
    return bool(recipe.training.beta) and (adapter is None or (adapter.merge and goes_on))


def caches_gradients(shape: Shape, recipe: Recipe, on: Devices, adapter_weights: int, row: int) -> bool:
    """Whether training scores one constitution at a time: the recipe decides, or else the memory of a device.

    `sami plan` asks with the lengths it expects, a run with those of its contrasts.

    Args:
        row: tokens that the longest contrast computes for one constitution.
    """
    if recipe.training.gradient_cache is not None:
        return recipe.training.gradient_cache
    tokens = recipe.training.micro_batch(on.processes) * recipe.sampling.constitutions * row
    left = on.bytes - held_in_training(shape, recipe, on, adapter_weights).bytes
    return memory.needs_gradient_cache(_kept_bytes(shape, recipe, tokens, on), left)


def _kept_bytes(shape: Shape, recipe: Recipe, tokens: int, on: Devices) -> float:
    return memory.kept_bytes(shape.config, tokens, on.dtype, checkpointing=recipe.training.gradient_checkpointing)


def _activations(
    shape: Shape, recipe: Recipe, lengths: Lengths, on: Devices, row: int, *, cached: bool
) -> dict[str, int]:
    c = recipe.sampling.constitutions
    rows = recipe.training.micro_batch(on.processes) * (1 if cached else c)
    logits = min(rows * c * lengths.response * shape.vocabulary, max(MOST_LOGITS, shape.vocabulary))
    return {
        "activations": round(_kept_bytes(shape, recipe, rows * row, on)),
        "logits": 2 * logits * on.dtype.itemsize,  # and their gradient
    }


# Generation and scoring.


def _generation(shape: Shape, recipe: Recipe, lengths: Lengths, on: Devices) -> Needs:
    batch, width = recipe.generation.batch_size, on.dtype.itemsize
    longest = lengths.generation_prompt + lengths.response
    if recipe.generation.engine == "vllm":
        vllm = recipe.generation.vllm
        parts = {
            "weights": width * shape.total // vllm.tensor_parallel,
            # At least one sequence must fit; vLLM gives the cache whatever its share of the device leaves.
            "keys and values of one sequence": round(shape.cache_bytes(longest, on.dtype) / vllm.tensor_parallel),
            "kept from vLLM": round((1 - vllm.memory) * on.bytes),
        }
        return Needs("generation", vllm.tensor_parallel * vllm.data_parallel, parts)
    weights = _placed(width * shape.total, on.bytes, on.gpus)
    prompts = memory.pass_bytes(shape.config, batch * lengths.generation_prompt, on.dtype)
    parts = {
        "weights": weights,
        "keys and values": round(2 * shape.cache_bytes(batch * longest, on.dtype)),  # a cache that grows is copied
        "activations": round(prompts / 2),
    }
    return Needs("generation", 1 if weights == width * shape.total else on.gpus, parts)


def _scoring(shape: Shape, recipe: Recipe, on: Devices, row: int) -> Needs:
    """Policy and base score side by side. Before that, base scores one contrast in fp32 to check packed rows."""
    tokens = 2 * recipe.training.micro_batch_size * recipe.sampling.constitutions * row
    size = on.dtype.itemsize * shape.total
    base = _placed(size, on.bytes, on.gpus)
    models = base + _placed(size, on.bytes - base, on.gpus)
    whole = 2 * size
    if recipe.adapter is None:
        wide = MASTER * shape.total
        models, whole = max(models, _placed(wide, on.bytes, on.gpus)), max(whole, wide)
    parts = {
        "policy and base": models,
        "activations": round(memory.pass_bytes(shape.config, tokens, on.dtype)),
        "logits": MOST_LOGITS * on.dtype.itemsize,
    }
    return Needs("scoring", 1 if models == whole else on.gpus, parts)


def _placed(size: int, free: float, gpus: int) -> int:
    """What a model takes of one GPU that has `free` bytes: all of it, or its part if it is spread over the node's."""
    return size if size <= SPREAD_ABOVE * free else -(-size // gpus)


# A run that cannot fit.


def require_possible(recipe: Recipe, dtype: torch.dtype, adapter_weights: int) -> None:
    """Refuse a run whose weights, gradients and optimizer states alone exceed this machine's memory.

    Whether activations fit beside them is left to the run, because they are estimates.

    Raises:
        InputError: a phase that cannot fit, and what could be changed.
    """
    on_gpu, host = devices.default_device().type == "cuda", psutil.virtual_memory().total
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else host
    on = Devices.here(recipe.launch, dtype, total)
    shape = Shape.of(load_config(recipe.model), recipe.model.trust_remote_code)
    held = host_bytes(shape, recipe, on.processes)
    if on_gpu and held > host:
        raise InputError(
            f"The model cannot fit. The first of several processes holds the whole float32 weights in host memory, "
            f"{held / GIB:.1f} GiB, and this machine has {host / GIB:.1f} GiB. Use a machine with more memory, or a "
            f"smaller model."
        )
    for phase in needs(shape, recipe, Lengths(1, 1, 1), on, adapter_weights):
        if phase.bytes > on.bytes:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in phase.parts.items())
            raise InputError(
                f"The model cannot fit. {phase.phase.capitalize()} needs at least {phase.bytes / GIB:.1f} GiB on each "
                f"device ({parts}), and this machine has {on.bytes / GIB:.1f} GiB for each. Use other devices "
                f"(`sami plan RECIPE --gpus N --gpu-memory GIB` shows which suffice) or a smaller model, or add the "
                f"section `adapter` to the recipe."
            )
