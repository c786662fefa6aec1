"""The memory of training on each device, as pure functions of numbers.

The trainer, a run and `sami plan` all ask here, so that they decide alike. Weights, gradients and optimizer states are
exact. Activations are those that autograd keeps in our packed forward pass, measured within 15 % on tiny llama,
mistral, mixtral and qwen models (gemma's norms keep up to twice as much).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from sami.contrasts import Contrast

MASTER = 4  # bytes of an fp32 weight, gradient or optimizer state
# Optimizer states of a weight, each as wide as the weight itself; other optimizers are counted like adamw.
STATES = {"adamw": 2, "rmsprop": 1, "sgd": 0}


@dataclass(frozen=True)
class Sizes:
    """What is trained and how, in numbers of weights where the name does not say bytes."""

    trained: int
    masters: torch.dtype
    optimizer: str
    copied: int = 0
    """Weights of the copy in the compute dtype that passes go through."""
    compute: torch.dtype = torch.float32
    frozen_bytes: int = 0
    reference_bytes: int = 0
    processes: int = 1
    block: int = 0
    """Of the largest transformer block; counts in several processes only, like `outside_blocks`."""
    outside_blocks: int = 0
    """Of embedding, head and last norm."""


@dataclass(frozen=True)
class Held:
    """Bytes on each device from the first step to the last, part by part."""

    loaded: dict[str, int]
    """There before the first step."""
    added: dict[str, int]
    """Allocated by the first step."""

    @property
    def parts(self) -> dict[str, int]:
        return self.loaded | self.added

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


def held(sizes: Sizes) -> Held:
    """Weights, gradients, optimizer states, copies, and what FSDP2 gathers around the block at work."""
    shard, width = -(-sizes.trained // sizes.processes), sizes.masters.itemsize
    states = STATES.get(sizes.optimizer, STATES["adamw"])
    loaded = {
        f"{_name(sizes.masters)} weights": width * shard,
        "frozen base": sizes.frozen_bytes,
        "reference": sizes.reference_bytes,
    }
    added = {
        "gradients": width * shard,
        f"{sizes.optimizer} states": width * states * shard,
        f"{_name(sizes.compute)} copy": sizes.copied * sizes.compute.itemsize,
    }
    if sizes.processes > 1:
        # Embedding and head stay gathered through a pass; the next block is gathered while one is at work.
        added["gathered weights"] = sizes.compute.itemsize * (sizes.outside_blocks + 2 * sizes.block)
        largest = max(sizes.block, sizes.outside_blocks)
        added["gradients to reduce"] = (sizes.compute.itemsize + MASTER) * largest
    return Held(_present(loaded), _present(added))


def _present(parts: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in parts.items() if size}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Activations.


def constitution_tokens(prompt: int, responses: Sequence[int], *, shared: bool) -> int:
    """Tokens that a contrast computes for one constitution: responses behind one prompt, or each in its own row."""
    return prompt + sum(responses) if shared else len(responses) * (prompt + max(responses))


def longest_constitution(contrasts: Sequence[Contrast], *, shared: bool) -> int:
    """The most tokens that any of the contrasts computes for one constitution."""
    return max(
        constitution_tokens(max(map(len, one.prompt_ids)), list(map(len, one.response_ids)), shared=shared)
        for one in contrasts
    )


def activation_bytes(config: PreTrainedConfig, tokens: float, dtype: torch.dtype) -> int:
    """Approximate size of the activations of `tokens` tokens that a backward pass needs, without logits."""
    text = config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    experts = getattr(text, "num_experts_per_tok", None) or 1
    return int(tokens * text.num_hidden_layers * (10 * text.hidden_size + 4 * inner * experts) * dtype.itemsize)


def pass_bytes(config: PreTrainedConfig, tokens: float, dtype: torch.dtype) -> float:
    """Activations of one transformer block, which are all that a pass without gradient holds at a time."""
    return activation_bytes(config, tokens, dtype) / int(config.get_text_config().num_hidden_layers)


def kept_bytes(config: PreTrainedConfig, tokens: float, dtype: torch.dtype, *, checkpointing: bool) -> float:
    """Activations that a forward pass keeps: all of them, or with checkpointing each block's input and one block."""
    if not checkpointing:
        return activation_bytes(config, tokens, dtype)
    text = config.get_text_config()
    inputs = tokens * text.num_hidden_layers * text.hidden_size * dtype.itemsize
    return float(inputs + pass_bytes(config, tokens, dtype))


# Decisions.


def needs_gradient_cache(activations: float, left: float) -> bool:
    """Whether a micro-batch is scored one constitution at a time.

    Args:
        activations: of a whole micro-batch, from `kept_bytes`.
        left: bytes of a device beside everything that training holds (`held`). Half of them are kept for logits and
            for what an estimate misses.
    """
    return activations > left / 2


def bytes_for_each(device: torch.device, available: float, processes: int) -> float:
    """Memory of one process: a GPU's belongs to one, a CPU's is divided among the `processes` of the machine."""
    return available / processes if device.type == "cpu" else available
