"""Devices: which one holds a model, the dtype it computes in, and the memory that is free."""

import ctypes
import gc
import platform
import sys

import psutil
import torch

# A model that takes more than this share of what a GPU has free is spread over all of a machine's GPUs: its
# activations need the rest.
SPREAD_ABOVE = 0.8


def resolve_dtype(dtype: str) -> torch.dtype:
    """The dtype that a recipe's model.dtype means on this machine."""
    if dtype != "auto":
        return torch.bfloat16 if dtype == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes(device: torch.device | None = None) -> int:
    """Memory that is free on a device, by default the one that models are loaded on."""
    if (device or default_device()).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def release_memory() -> None:
    """Give back what a phase held: objects in cycles, cached blocks, and the heap, whose holes would pile up."""
    gc.collect()  # a trainer and its model refer to each other
    torch.cuda.empty_cache()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
