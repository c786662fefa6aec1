"""Memory that a run needs on each device, in bytes, part by part; and which setting to change where it does not fit.

Everything follows from the model's shape and the recipe, and nothing is loaded. Weights, gradients and optimiser
states are exact; activations are those that autograd keeps in our packed forward pass, measured within 15 % on tiny
llama, mistral, mixtral and qwen models (gemma's norms keep up to twice as much).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from sami.errors import InputError
from sami.models import quantization
from sami.models.devices import SPREAD_ABOVE, activation_bytes, default_device
from sami.models.loading import empty_of, load_config
from sami.models.structure import decoder_layers
from sami.recipe import Recipe
from sami.scoring.logprobs import MOST_LOGITS

GIB = 2**30
MASTER = 4  # bytes of an fp32 weight, gradient or optimiser state
STATES = {"adamw": 2, "rmsprop": 1}
# What a process holds beside its tensors: the device's context, communication buffers, fragments.
USABLE = 0.92
MOST_PROCESSES = 512


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, in weights."""

    config: PreTrainedConfig
    total: int
    head: int
    """Of the output head, which a tied model shares with its embedding."""
    layer: int
    """Of the largest block."""
    active: int
    """That a token passes on its way through all blocks: of a mixture of experts, those it is sent to."""
    narrow: int
    """That a base in 4 bits holds in 4 bits."""

    @classmethod
    def of(cls, config: PreTrainedConfig, trust_remote_code: bool = False) -> "Shape":
        model: Any = empty_of(config, trust_remote_code)
        text = config.get_text_config()
        experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None)
        share = (text.num_experts_per_tok / experts) if experts else 1.0
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        outside = {id(head), id(embedding)}
        active = sum(
            weight.numel() * (share if ".experts." in name else 1.0)
            for name, weight in model.named_parameters()
            if id(weight) not in outside
        )
        return cls(
            config=text,
            total=sum(weight.numel() for weight in model.parameters()),
            head=head.numel(),
            layer=max(sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)),
            active=round(active),
            narrow=quantization.weights_in_4_bits(model),
        )

    @cached_property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @cached_property
    def hidden(self) -> int:
        return int(self.config.hidden_size)

    @cached_property
    def outside_blocks(self) -> int:
        """Weights of embedding, head and last norm."""
        return self.total - self.layers * self.layer

    def cache_bytes(self, tokens: float, dtype: torch.dtype) -> float:
        """Keys and values of so many tokens."""
        config = self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or self.hidden // config.num_attention_heads
        return tokens * self.layers * 2 * heads * size * dtype.itemsize

    def pass_bytes(self, tokens: float, dtype: torch.dtype) -> float:
        """Activations of one block, which a pass without gradient holds at a time."""
        return activation_bytes(self.config, tokens, dtype) / self.layers


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest sequences that a run is expected to meet."""

    prompt: int
    """Of a training prompt."""
    generation_prompt: int
    response: int

    def row(self, constitutions: int) -> int:
        """A prompt with the responses that share it."""
        return self.prompt + constitutions * self.response


@dataclass(frozen=True)
class Needs:
    """What one phase of a run holds at its peak on each device that it uses."""

    phase: str
    devices: int
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def needs(
    shape: Shape,
    recipe: Recipe,
    lengths: Lengths,
    *,
    processes: int,
    dtype: torch.dtype,
    adapter_weights: int = 0,
    device_bytes: float,
    gpus: int = 1,
) -> list[Needs]:
    """The phases of a run: training, generation, scoring.

    Several processes begin with less than training holds: the whole weights are on the host of the first process
    (`host_bytes`), and each device gets its shards.

    Args:
        processes: that train, each on a device of its own.
        dtype: of compute.
        adapter_weights: those that are trained where the recipe has an adapter.
        device_bytes: memory of a device, which decides about the gradient cache where the recipe does not.
        gpus: of one machine, over which a model that one of them cannot hold is spread.
    """
    training = (
        _alone(shape, recipe, dtype, adapter_weights) if processes == 1 else _sharded(shape, recipe, dtype, processes)
    )
    cached = _caches_gradients(shape, recipe, lengths, processes, dtype, device_bytes)
    training |= _activations(shape, recipe, lengths, processes, dtype, cached=cached)
    return [
        Needs("training", processes, training),
        _generation(shape, recipe, lengths, dtype, device_bytes, gpus),
        _scoring(shape, recipe, lengths, dtype, device_bytes, gpus),
    ]


def host_bytes(shape: Shape, recipe: Recipe, processes: int) -> int:
    """Memory of machine 0 beside its devices: what the first of several processes holds at the start and to save.

    It reads and writes whole float32 weights, and with checkpoints whole optimiser states after them.
    """
    if processes == 1:
        return 0
    states = STATES[recipe.training.optimizer] if recipe.training.checkpoint_steps else 0
    return MASTER * shape.total * max(1, states)


def _alone(shape: Shape, recipe: Recipe, dtype: torch.dtype, adapter_weights: int) -> dict[str, int]:
    """What one process holds from the first step to the last."""
    adapter, training, width = recipe.adapter, recipe.training, dtype.itemsize
    trained = shape.total if adapter is None else adapter_weights
    master = 2 if training.master_weights == "bfloat16" else MASTER
    parts = {
        f"{training.master_weights} weights": master * trained,
        "gradients": master * trained,
        f"{training.optimizer} states": master * STATES[training.optimizer] * trained,
    }
    if adapter is not None:
        narrow = shape.narrow if adapter.quantize else 0
        parts["frozen base"] = quantization.held_bytes(shape.total, narrow, dtype)
    elif width < master:
        parts[f"{str(dtype).removeprefix('torch.')} copy"] = shape.total * width
    goes_on = training.restart_from == "previous" and training.iterations > 1
    if training.beta and (adapter is None or (adapter.merge and goes_on)):
        parts["reference"] = parts.get("frozen base", shape.total * width)
    return parts


def _sharded(shape: Shape, recipe: Recipe, dtype: torch.dtype, processes: int) -> dict[str, int]:
    """What each of several processes holds: its shards, and what FSDP2 gathers around the block at work."""
    shard, width = -(-shape.total // processes), dtype.itemsize
    optimizer = recipe.training.optimizer
    largest = max(shape.layer, shape.outside_blocks)
    return {
        "float32 weights": MASTER * shard,
        "gradients": MASTER * shard,
        f"{optimizer} states": MASTER * STATES[optimizer] * shard,
        # Embedding and head stay gathered through a pass, the next block is gathered while one is at work.
        "gathered weights": width * (shape.outside_blocks + 2 * shape.layer),
        "gradients to reduce": (width + MASTER) * largest,
    }


def _activations(
    shape: Shape, recipe: Recipe, lengths: Lengths, processes: int, dtype: torch.dtype, *, cached: bool
) -> dict[str, int]:
    training, c = recipe.training, recipe.sampling.constitutions
    rows = micro_batch(recipe, processes) * (1 if cached else c)
    tokens = rows * lengths.row(c) if training.share_prefix else rows * c * (lengths.prompt + lengths.response)
    if training.gradient_checkpointing:
        kept = tokens * shape.layers * shape.hidden * dtype.itemsize + shape.pass_bytes(tokens, dtype)
    else:
        kept = activation_bytes(shape.config, tokens, dtype)
    vocabulary = shape.head // shape.hidden
    logits = min(rows * c * lengths.response * vocabulary, max(MOST_LOGITS, vocabulary))
    return {
        "activations": round(kept),
        "logits": 2 * logits * dtype.itemsize,  # and their gradient
    }


def _caches_gradients(
    shape: Shape, recipe: Recipe, lengths: Lengths, processes: int, dtype: torch.dtype, device_bytes: float
) -> bool:
    """Whether rows will go one by one: as the recipe says, or else as the trainer decides before it starts."""
    if recipe.training.gradient_cache is not None:
        return recipe.training.gradient_cache
    c = recipe.sampling.constitutions
    tokens = micro_batch(recipe, processes) * c * lengths.row(c)
    narrow = recipe.adapter is not None or recipe.training.master_weights == "bfloat16"
    held = (dtype.itemsize if narrow else MASTER) * shape.total
    return activation_bytes(shape.config, tokens, dtype) > (device_bytes - held) / 2


def _generation(
    shape: Shape, recipe: Recipe, lengths: Lengths, dtype: torch.dtype, device_bytes: float, gpus: int
) -> Needs:
    batch, width = recipe.generation.batch_size, dtype.itemsize
    longest = lengths.generation_prompt + lengths.response
    if recipe.generation.engine == "vllm":
        vllm = recipe.generation.vllm
        parts = {
            "weights": width * shape.total // vllm.tensor_parallel,
            # At least one sequence must fit; vLLM gives the cache whatever its share of the device leaves.
            "keys and values of one sequence": round(shape.cache_bytes(longest, dtype) / vllm.tensor_parallel),
            "kept from vLLM": round((1 - vllm.memory) * device_bytes),
        }
        return Needs("generation", vllm.tensor_parallel * vllm.data_parallel, parts)
    weights = _placed(width * shape.total, device_bytes, gpus)
    parts = {
        "weights": weights,
        "keys and values": round(2 * shape.cache_bytes(batch * longest, dtype)),  # a cache that grows is copied
        "activations": round(shape.pass_bytes(batch * lengths.generation_prompt, dtype) / 2),
    }
    return Needs("generation", 1 if weights == width * shape.total else gpus, parts)


def _scoring(
    shape: Shape, recipe: Recipe, lengths: Lengths, dtype: torch.dtype, device_bytes: float, gpus: int
) -> Needs:
    """Policy and base score side by side; before, one contrast is scored by the base in fp32 to check packed rows."""
    c = recipe.sampling.constitutions
    tokens = 2 * recipe.training.micro_batch_size * c * lengths.row(c)
    size = dtype.itemsize * shape.total
    base = _placed(size, device_bytes, gpus)
    models = base + _placed(size, device_bytes - base, gpus)
    whole = 2 * size
    if recipe.adapter is None:
        models, whole = max(models, _placed(MASTER * shape.total, device_bytes, gpus)), max(whole, MASTER * shape.total)
    parts = {
        "policy and base": models,
        "activations": round(shape.pass_bytes(tokens, dtype)),
        "logits": MOST_LOGITS * dtype.itemsize,
    }
    return Needs("scoring", 1 if models == whole else gpus, parts)


def _placed(size: int, free: float, gpus: int) -> int:
    """What a model takes of a GPU with so much free: all of it, or its part where it is spread over the machine's."""
    return size if size <= SPREAD_ABOVE * free else -(-size // gpus)


def micro_batch(recipe: Recipe, processes: int) -> int:
    """Contrasts of one forward pass: as many as the recipe allows that divide a process's share of a step."""
    share = recipe.training.batch_size // processes
    return max(n for n in range(1, recipe.training.micro_batch_size + 1) if share % n == 0)


def require_possible(recipe: Recipe, dtype: torch.dtype, adapter_weights: int) -> None:
    """Refuse a run whose weights alone, with gradients and optimiser states, are more than this machine has.

    Whether activations fit beside them is left to the run: they are estimates.

    Raises:
        InputError: a phase that cannot fit, and what could be changed.
    """
    on_gpu = default_device().type == "cuda"
    total = torch.cuda.get_device_properties(0).total_memory if on_gpu else psutil.virtual_memory().total
    device = total if on_gpu else total / recipe.launch.processes
    shape = Shape.of(load_config(recipe.model), recipe.model.trust_remote_code)

    def phases(candidate: Recipe, processes: int) -> list[Needs]:
        return needs(
            shape,
            candidate,
            Lengths(1, 1, 1),
            processes=processes,
            dtype=dtype,
            adapter_weights=adapter_weights,
            device_bytes=device,
            gpus=torch.cuda.device_count() if on_gpu else 1,
        )

    host, held = psutil.virtual_memory().total, host_bytes(shape, recipe, recipe.launch.total)
    if on_gpu and held > host:
        raise InputError(
            f"The model cannot fit: the first of several processes holds its whole float32 weights, {held / GIB:.1f} "
            f"GiB, in the machine's own memory, and this machine has {host / GIB:.1f}. Take one with more, or a "
            f"smaller model."
        )
    for phase in phases(recipe, recipe.launch.total):
        if phase.bytes > device:
            parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in phase.parts.items() if size > GIB)
            raise InputError(
                f"The model cannot fit: {phase.phase} needs at least {phase.bytes / GIB:.1f} GiB on each device "
                f"({parts}), and this machine has {device / GIB:.1f} for each. `sami plan RECIPE --gpus N --gpu-memory "
                f"GIB` says what it would take: take other devices, a smaller model, or add the section `adapter`."
            )


# What to change.

Fits = Callable[[Recipe, int], bool]


def remedy(phase: str, recipe: Recipe, processes: int, fits: Fits) -> str | None:
    """The settings that make a phase fit, tried out and cheapest first; None where no setting does.

    Args:
        phase: of `needs`.
        fits: whether that phase of a recipe fits with so many processes.
    """
    if phase == "training":
        return _leaner_training(recipe, processes, fits)
    if phase == "generation":
        return _leaner_generation(recipe, processes, fits)
    return None


def _leaner_training(recipe: Recipe, processes: int, fits: Fits) -> str | None:
    lean, told = recipe, []
    for key, value in (("micro_batch_size", 1), ("gradient_cache", True), ("gradient_checkpointing", True)):
        if getattr(lean.training, key) != value:
            lean = _changed(lean, "training", **{key: value})
            told.append(f"training.{key}={str(value).lower()}")
            if fits(lean, processes):
                return " ".join(told)
    if recipe.adapter is None and not recipe.training.beta:
        for candidate, settings in ((recipe, []), (lean, told)):
            more = next((n for n in _process_counts(recipe, processes) if fits(candidate, n)), None)
            if more is not None:
                return " ".join([f"launch.processes={more} (one for each GPU of as many)", *settings])
    return None


def _process_counts(recipe: Recipe, processes: int) -> Iterator[int]:
    """Larger numbers of processes between which a step's contrasts can be divided."""
    count = 2 * processes
    while count <= min(MOST_PROCESSES, recipe.training.batch_size):
        if recipe.training.batch_size % count == 0:
            yield count
        count *= 2


def _leaner_generation(recipe: Recipe, processes: int, fits: Fits) -> str | None:
    batch = recipe.generation.batch_size
    while recipe.generation.engine != "vllm" and (batch := batch // 2):
        if fits(_changed(recipe, "generation", batch_size=batch), processes):
            return f"generation.batch_size={batch}"
    for gpus in (2, 4, 8, 16):
        vllm = recipe.generation.vllm.model_copy(update={"tensor_parallel": gpus, "data_parallel": 1})
        if fits(_changed(recipe, "generation", engine="vllm", vllm=vllm), processes):
            return f"generation.engine=vllm generation.vllm.tensor_parallel={gpus}"
    return None


def _changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
