"""The model that is trained and the reference that `beta` keeps it near, made ready from what a user passed."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, set_seed

from sami.errors import InputError
from sami.models import adapters, quantization
from sami.models.structure import causal_lm, vocabulary_size
from sami.scoring import divergence
from sami.training.config import SAMIConfig
from sami.training.precision import frozen_copy


def trainable(model: PreTrainedModel, args: SAMIConfig, peft_config: Any | None, frozen_dtype: torch.dtype) -> Any:
    """The model with its adapter, if it gets or carries one, and with every weight in the dtype that training needs.

    Args:
        frozen_dtype: dtype in which an adapter's frozen base is held.

    Raises:
        InputError: settings that do not fit the model, nothing to train, or trained weights of another dtype than
            the master weights'.
    """
    quantized = quantization.is_quantised(model)
    adapted = peft_config is not None or isinstance(model, PeftModel)
    if reason := args.setup(adapter=adapted, quantized=quantized).conflict():
        raise InputError(reason)
    if quantized:
        quantization.prepare(model, args.torch_compute_dtype)
    policy: Any = model
    if peft_config is not None:
        set_seed(args.seed)  # the adapter's first weights are random
        policy = adapters.attach(model, peft_config)
    if isinstance(policy, PeftModel):
        adapters.hold(policy, frozen_dtype)
    _require_master_weights(policy, args)
    return policy


def _require_master_weights(model: nn.Module, args: SAMIConfig) -> None:
    trained = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad}
    if not trained:
        raise InputError(
            "All weights of the model are frozen, so nothing would be trained. Call model.requires_grad_(True), or "
            "pass a peft_config."
        )
    wrong = next((name for name, dtype in trained.items() if dtype != args.torch_master_dtype), None)
    if wrong is not None:
        raise InputError(
            f"The weight {wrong} is {_name(trained[wrong])}, and master_weights is {args.master_weights}. Load the "
            f"model with dtype={args.torch_master_dtype}. (In bfloat16 most of SAMI's updates are smaller than half a "
            f"rounding step and are lost.)"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def make_reference(
    model: nn.Module, args: SAMIConfig, ref_model: PreTrainedModel | None
) -> divergence.Reference | None:
    """The reference of the KL divergence; None, at no cost, when beta is 0.

    Raises:
        InputError: a reference that would have no effect, is the trained model itself, or has another vocabulary.
    """
    if not args.beta:
        if ref_model is not None:
            raise InputError("You passed ref_model, which has no effect while beta is 0. Set beta, or leave it out.")
        return None
    if ref_model is not None:
        return _given_reference(model, args, ref_model)
    if isinstance(model, PeftModel):
        return divergence.adapter_off(model)
    return divergence.frozen(frozen_copy(model, args.torch_compute_dtype).to(args.device))


def _given_reference(model: nn.Module, args: SAMIConfig, ref_model: PreTrainedModel) -> divergence.Reference:
    if causal_lm(ref_model) is causal_lm(model):
        raise InputError("ref_model is the model that is trained. Load it a second time, or leave ref_model out.")
    if vocabulary_size(ref_model) != vocabulary_size(model):
        raise InputError(
            f"ref_model has a vocabulary of {vocabulary_size(ref_model)} tokens, and the model one of "
            f"{vocabulary_size(model)}. The divergence needs a reference with the same tokenizer: pass another one."
        )
    if quantization.is_quantised(ref_model):
        quantization.prepare(ref_model, args.torch_compute_dtype)
    ref_model.requires_grad_(False).eval()
    return divergence.frozen(ref_model.to(args.device))  # type: ignore[arg-type]
