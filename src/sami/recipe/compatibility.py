"""Which settings of training work together. Recipes, `SAMITrainer` and `sami plan` all ask here, so that they agree."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSetup:
    """The settings that can exclude each other."""

    processes: int = 1
    """Processes that train, on all machines together."""
    launched: str = ""
    """How a message states their number; by default as "2 processes train"."""
    beta: float = 0.0
    adapter: bool = False
    quantized: bool = False
    """The model's weights are held in 4 bits."""
    master_weights: str = "float32"
    compute_dtype: str = "auto"
    """auto: not known yet, because the machine decides."""

    def conflict(self) -> str | None:
        """Why training cannot work with these settings, in whole sentences; None where it can."""
        return next(self._conflicts(), None)

    def _conflicts(self) -> Iterator[str]:
        launched = self.launched or f"{self.processes} processes train"
        if self.processes > 1:
            yield from self._conflicts_of_several(launched)
        if self.quantized and not self.adapter:
            yield (
                "The model is quantized, and quantized weights cannot be trained. Pass a peft_config, so that an "
                "adapter is trained on them, or load the model without quantization_config."
            )
        if self.master_weights == "bfloat16" and self.adapter:
            yield (
                "master_weights is bfloat16, and an adapter always trains in float32 on a base in the compute dtype. "
                "Remove master_weights."
            )
        if self.master_weights == "bfloat16" and self.compute_dtype == "float32":
            yield (
                "master_weights is bfloat16, and the model computes in float32, more precisely than its weights are "
                "kept. Set both to bfloat16 (model.dtype in a recipe, compute_dtype in SAMIConfig), or leave out "
                "master_weights."
            )

    def _conflicts_of_several(self, launched: str) -> Iterator[str]:
        if self.beta:
            yield (
                f"beta is {self.beta:g}, and {launched}. The KL divergence from a reference is computed in one "
                f"process only. Launch one process, or set beta to 0."
            )
        if self.quantized:
            yield (
                f"The model is quantized, and {launched}. Several processes shard float32 weights, which a quantized "
                f"model does not have. Launch one process, or load the model without quantization_config."
            )
        if self.master_weights == "bfloat16":
            yield (
                f"master_weights is bfloat16, and {launched}. Several processes shard float32 weights. Launch one "
                f"process, or set master_weights to float32."
            )
