"""Compiled transformer blocks: one compilation serves all layers and any number of tokens."""

import torch
from torch import nn
from transformers import AttentionInterface

from sami.models import attention, structure
from sami.scoring import logprobs


def compile_layers(model: nn.Module) -> None:
    """Compile each block for its forward and backward pass. Attention is not compiled; it separates two compiled parts.

    The first pass takes 15 to 25 s longer. On CPU this needs a C++ compiler.
    """
    AttentionInterface.register(attention.NAME, torch.compiler.disable(attention.attend))
    attention.fuse_softmax_gradient()
    logprobs.fuse_softmax()
    for layer in structure.decoder_layers(model):
        layer.compile(dynamic=True)
