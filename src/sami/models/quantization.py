"""A frozen base in 4 bits, on which an adapter trains (QLoRA), through bitsandbytes.

NF4 in blocks of 64 weights, whose scales are quantised once more: Dettmers et al. 2023 (arXiv 2305.14314). The
output head, the embeddings, norms and biases stay in the dtype of compute.
"""

import importlib.metadata
from typing import Any

import torch
from packaging.version import Version
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from sami.errors import InputError
from sami.models.structure import causal_lm

OLDEST_BITSANDBYTES = "0.50"
# A weight, its share of a scale in 8 bits, and that one's share of a scale in fp32.
BITS = 4 + 8 / 64 + 32 / (64 * 256)


def require_bitsandbytes() -> None:
    """Raises InputError unless a bitsandbytes is installed that this was written for."""
    try:
        found = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if not found or Version(found) < Version(OLDEST_BITSANDBYTES):
        raise InputError(
            f"Training on a base in 4 bits (adapter.quantize) needs bitsandbytes {OLDEST_BITSANDBYTES} or newer, and "
            f"{f'version {found}' if found else 'none'} is installed. Install the extra `qlora`: "
            f"pip install 'sami[qlora]', or train on a base that is not quantised (adapter.quantize=null)."
        )


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """What `from_pretrained` takes to load a model in 4 bits that computes in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def weights_in_4_bits(model: nn.Module) -> int:
    """How many weights of a model will be held in 4 bits, from the model without weights."""
    head: Any = causal_lm(model).get_output_embeddings()
    # Those that transformers replaces; experts held as one tensor are not.
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head)


def held_bytes(total: int, narrow: int, dtype: torch.dtype) -> int:
    """What `total` weights take of which `narrow` are held in 4 bits and the others in `dtype`."""
    return int(narrow * BITS / 8 + (total - narrow) * dtype.itemsize)


def is_packed(weight: torch.Tensor) -> bool:
    """Whether a weight holds 4-bit codes, whatever dtype they are stored as."""
    return getattr(weight, "quant_state", None) is not None


def is_quantised(model: nn.Module) -> bool:
    return bool(getattr(causal_lm(model), "is_quantized", False))


def prepare(model: nn.Module, dtype: torch.dtype) -> None:
    """Make the 4-bit layers of a model compute in `dtype`, and never change what they hold.

    In evaluation on a CPU bitsandbytes would repack weights into another layout, in place and with scales rounded
    to bf16: a base that is not the one the adapter trains on, has no gradient, and cannot be made of narrow layers.

    Raises:
        InputError: the model is quantised in another way or by an old bitsandbytes, or its weights are repacked.
    """
    lm = causal_lm(model)
    if not getattr(lm, "is_loaded_in_4bit", False):
        raise InputError(
            f"The model is quantised by {getattr(lm, 'quantization_method', 'a method of its own')}, and adapters "
            f"train on a base in 4 bits by bitsandbytes, or on one that is not quantised. Load it with "
            f"quantization_config=BitsAndBytesConfig(load_in_4bit=True), or without."
        )
    require_bitsandbytes()
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]  # every Linear4bit
    for layer in layers:
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise InputError(
                "The model was run in evaluation mode on a CPU, where bitsandbytes repacks weights in 4 bits for "
                "inference only. Load it again, and give it to SAMITrainer before it is run."
            )
        layer.support_avx512bf16_for_cpu = False
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
