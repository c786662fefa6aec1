"""`SAMIConfig`: the arguments of `SAMITrainer` on top of `transformers.TrainingArguments`."""

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from sami import objective
from sami.errors import InputError
from sami.recipe.compatibility import TrainingSetup

# Arguments of the parent that would have no effect or a misleading one here, and what to do instead.
_WITHOUT_EFFECT = {
    "bf16": "set compute_dtype, which decides the precision of every pass",
    "fp16": "set compute_dtype, which decides the precision of every pass",
    "torch_compile": "set compile_layers, which compiles the transformer blocks",
    "label_smoothing_factor": "leave it out: the loss compares whole responses and has no labels to smooth",
    "data_seed": "set seed, which decides the order of contrasts",
}


@dataclass
class SAMIConfig(TrainingArguments):
    """Arguments of `SAMITrainer` on top of `TrainingArguments`.

    Defaults that differ from the parent's: learning_rate 1.5e-5, lr_scheduler_type "constant", optim
    "adamw_torch_fused", per_device_train_batch_size 4 (contrasts), logging_steps 1, logging_nan_inf_filter False,
    save_strategy "no", remove_unused_columns False, dataloader_pin_memory only with a GPU, use_cpu without one, seed 0.

    Raises:
        InputError: arguments that contradict each other or would have no effect.
    """

    learning_rate: float = field(default=1.5e-5, metadata={"help": "Initial learning rate."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Learning-rate schedule."})
    optim: str = field(default="adamw_torch_fused", metadata={"help": "adamw_torch_fused or rmsprop, on fp32 weights."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Contrasts per forward pass."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A NaN loss is an error here."})
    save_strategy: str = field(default="no", metadata={"help": "When checkpoints are saved."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Contrasts have no columns."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches if there is a GPU to copy them to."}
    )
    use_cpu: bool = field(
        default_factory=lambda: not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        metadata={"help": "Train on the CPU; required for several CPU processes to train together."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of contrasts."})
    contrast: Literal["both", "columns", "rows"] = field(
        default="both", metadata={"help": "Direction in which the log-prob matrix is contrasted."}
    )
    estimator: str = field(default="infonce", metadata={"help": "Key of sami.objective.ESTIMATORS."})
    per_token: bool = field(default=True, metadata={"help": "Average log-probs over tokens; False sums them."})
    train_eos: bool = field(default=True, metadata={"help": "Train the EOS token of finished responses."})
    share_prefix: bool = field(default=True, metadata={"help": "Score the responses of a contrast in shared rows."})
    compute_dtype: Literal["bfloat16", "float32"] = field(
        default="bfloat16", metadata={"help": "Dtype of forward and backward passes."}
    )
    master_weights: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Dtype of the trained weights, their gradients and optimizer states."}
    )
    beta: float = field(
        default=0.0, metadata={"help": "Weight of the KL divergence from the reference in the loss, per token."}
    )
    explode_above: float = field(default=1e4, metadata={"help": "A gradient norm above this stops training."})
    gradient_cache: bool | None = field(
        default=None,
        metadata={"help": "Keep the activations of one constitution at a time; None: if memory is short."},
    )
    compile_layers: bool = field(default=False, metadata={"help": "Compile the transformer blocks."})

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = [name for name in _WITHOUT_EFFECT if getattr(self, name)]
        if unused:
            raise InputError(f"{unused[0]} has no effect in SAMITrainer. Instead, {_WITHOUT_EFFECT[unused[0]]}.")
        self._require_our_launch()
        objective.require_objective(self.contrast, self.estimator)
        if not self.beta >= 0:
            raise InputError(f"beta is {self.beta}, and the weight of a divergence cannot be negative. Raise it to 0.")
        if reason := self.setup().conflict():
            raise InputError(reason)
        self.mixed_precision = "no"  # passes are in the compute dtype already, and autocast would round again
        if self.n_gpu > 1:
            self._n_gpu = 1  # without a launcher Trainer would split one batch over GPUs; launch processes instead

    def _require_our_launch(self) -> None:
        if self.fsdp or self.deepspeed:
            raise InputError(
                "You passed fsdp or deepspeed. SAMITrainer shards weights, gradients and optimizer states itself "
                "(FSDP2) when several processes run it. Remove both, and keep the launcher."
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > self.world_size:
            raise InputError(
                f"{os.environ['WORLD_SIZE']} processes were launched, and each would train alone on this device. "
                f"Set use_cpu=True for CPU processes, or launch one process per GPU."
            )
        if self.mixed_precision not in ("no", "bf16" if self.compute_dtype == "bfloat16" else "no"):
            raise InputError(
                f"The launcher asks for mixed precision {self.mixed_precision}, and compute_dtype is "
                f"{self.compute_dtype}. Launch with --mixed_precision no: compute_dtype decides the precision."
            )

    def setup(self, *, adapter: bool = False, quantized: bool = False) -> TrainingSetup:
        """The settings that can exclude each other, with what is known of the model."""
        return TrainingSetup(
            processes=self.world_size,
            beta=self.beta,
            adapter=adapter,
            quantized=quantized,
            master_weights=self.master_weights,
            compute_dtype=self.compute_dtype,
        )

    @property
    def torch_compute_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.compute_dtype == "bfloat16" else torch.float32

    @property
    def torch_master_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.master_weights == "bfloat16" else torch.float32
