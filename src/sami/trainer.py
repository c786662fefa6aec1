"""`SAMITrainer`, a `transformers.Trainer` for contrasts, and its configuration.

trainer = SAMITrainer(model="HuggingFaceTB/SmolLM2-135M-Instruct",
                      args=SAMIConfig(output_dir="out", max_steps=17, learning_rate=1.5e-5),
                      train_dataset=contrasts)
trainer.train()
"""

import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sami import objective
from sami.contrasts import Contrast, ContrastBatch, collate, row_tokens
from sami.errors import InputError
from sami.models import load_model, load_tokenizer
from sami.recipe import Model
from sami.scoring import ComputeIn, PackingCheck, check_packing, logprob_matrix

# Values of each weight tensor that are watched for change: enough for its share within 1 point.
WATCHED_VALUES = 1 << 14
# Below this share of watched weights changed after rounding, the saved model is the one that was loaded.
UNCHANGED_BELOW = 1e-3


@dataclass
class SAMIConfig(TrainingArguments):
    """Arguments of `SAMITrainer` on top of `TrainingArguments`.

    Defaults that differ from the parent's: learning_rate 1.5e-5, lr_scheduler_type "constant", optim
    "adamw_torch", per_device_train_batch_size 4 (contrasts), logging_steps 1, logging_nan_inf_filter False,
    save_strategy "no", remove_unused_columns False, dataloader_pin_memory only with a GPU, seed 0.
    """

    learning_rate: float = field(default=1.5e-5, metadata={"help": "Initial learning rate."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Course of the learning rate."})
    optim: str = field(default="adamw_torch", metadata={"help": "adamw_torch or rmsprop, on fp32 weights."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Contrasts per forward pass."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A NaN loss is an error here."})
    save_strategy: str = field(default="no", metadata={"help": "When checkpoints are made."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Contrasts are not columns."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pin batches, where there is a GPU to copy to."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of contrasts."})
    contrast: Literal["both", "columns", "rows"] = field(
        default="both", metadata={"help": "Which cross-entropies of the log-prob matrix are trained."}
    )
    per_token: bool = field(default=True, metadata={"help": "Average log-probs over tokens; False sums."})
    train_eos: bool = field(default=True, metadata={"help": "Train EOS of finished responses."})
    share_prefix: bool = field(default=True, metadata={"help": "Score responses in shared rows."})
    compute_dtype: Literal["bfloat16", "float32"] = field(
        default="bfloat16", metadata={"help": "Dtype of forward and backward; master weights stay fp32."}
    )
    explode_above: float = field(default=1e4, metadata={"help": "A gradient norm above this stops training."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compute_dtype == "bfloat16" and (self.gradient_checkpointing or self.fsdp or self.deepspeed):
            raise InputError(
                "compute_dtype bfloat16 casts fp32 master weights for each forward pass, which gradient "
                "checkpointing, FSDP and DeepSpeed undo. Use compute_dtype='float32' with them."
            )
        if self.n_gpu > 1:
            self._n_gpu = 1  # without a launcher Trainer would split one batch over GPUs; launch processes instead


class SAMITrainer(Trainer):
    """Trains a causal language model to tell constitutions apart by the responses they produced.

    Args:
        model: a model with fp32 weights, or a name or folder to load one from.
        args: a `SAMIConfig`.
        train_dataset: contrasts, all with the same C.
        processing_class: the tokenizer; by default loaded beside a model given by name.
        peft_config: a LoRA configuration of peft; only the adapter is then trained.

    Raises:
        InputError: master weights that are not fp32, no contrasts, or (while training) non-finite
            log-probs, an exploding gradient, or weights that do not change after rounding.
    """

    args: SAMIConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SAMIConfig,
        train_dataset: Sequence[Contrast],
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any | None = None,
        **trainer_arguments: Any,
    ) -> None:
        if isinstance(model, str):
            source = Model(source=model)
            processing_class = processing_class or load_tokenizer(source)
            model = load_model(source, torch.float32)
        if processing_class is None:
            raise InputError("A model given as a module needs its tokenizer as processing_class.")
        if len(train_dataset) == 0:
            raise InputError("There are no contrasts to train on.")
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
        assert isinstance(model, nn.Module)
        narrow = next((n for n, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32), None)
        if narrow is not None:
            raise InputError(
                f"The weight {narrow} is not fp32. SAMI's steps are smaller than half a bf16 step, so master "
                f"weights must be fp32: load the model with dtype=torch.float32."
            )
        pad = processing_class.pad_token_id
        self._pad_token_id: int = pad if pad is not None else processing_class.eos_token_id
        self._compute_dtype = torch.bfloat16 if args.compute_dtype == "bfloat16" else torch.float32
        self._sums: dict[str, list[float]] = defaultdict(list)
        self.packing: PackingCheck | None = None
        self.weight_change = _WeightChange(model, self._compute_dtype)
        self._share_prefix = args.share_prefix
        self._contrasts = train_dataset
        super().__init__(
            model=model,
            args=args,
            train_dataset=_Contrasts(train_dataset),
            processing_class=processing_class,
            data_collator=self._collate,
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False
        self.add_callback(self.weight_change)

    @property
    def trained_model(self) -> Any:
        """The model as it is saved, whatever wraps it for training."""
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self._share_prefix and self.packing is None:
            self._check_packing()
        result = super().train(*args, **kwargs)
        self.weight_change.check_rounded(self.args.learning_rate, self.state.global_step)
        return result

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of a micro-batch; micro-batches of one step have one size, so their mean is the step's."""
        batch = inputs["contrasts"].to(self.args.device)
        compute = model if self._compute_dtype == torch.float32 else ComputeIn(model, self._compute_dtype)
        logprobs = logprob_matrix(compute, batch, per_token=self.args.per_token)
        self._record(logprobs.detach())
        loss = objective.sami_loss(logprobs, self.args.contrast)
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums:
            means = torch.tensor([sum(v) / len(v) for v in self._sums.values()], device=self.args.device)
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= dict(zip(self._sums, means.tolist(), strict=True))
            logs |= self.weight_change.figures()
            self._sums.clear()
        super().log(logs, start_time)

    def _record(self, logprobs_BCR: Tensor) -> None:
        for name, figure in (
            ("bound", objective.information_bound),
            ("row_accuracy", objective.row_accuracy),
            ("column_accuracy", objective.column_accuracy),
        ):
            self._sums[name].append(figure(logprobs_BCR).mean().item())

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))
        if not norm <= self.args.explode_above:
            raise InputError(
                f"The gradient norm is {norm:.3g} at step {self.state.global_step + 1}, above the limit of "
                f"{self.args.explode_above:g}. Training stopped before this step changed the weights: lower "
                f"training.lr, or look at the contrasts for damaged responses."
            )
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return _StepSampler([row_tokens(c) for c in self._contrasts], step, self.args.seed)

    def _collate(self, contrasts: Sequence[Contrast]) -> dict[str, ContrastBatch]:
        batch = collate(contrasts, self._pad_token_id, share_prefix=self._share_prefix, train_eos=self.args.train_eos)
        return {"contrasts": batch}

    def _check_packing(self) -> None:
        """Compare shared rows with single sequences on the longest contrast; where they differ, share nothing.

        The longest, because a wrong mask or window can leave short responses untouched.
        """
        longest = max(self._contrasts, key=row_tokens)
        self.packing = check_packing(self.trained_model, longest, self._pad_token_id)
        if not self.packing.shared:
            self._share_prefix = False
            warnings.warn(
                f"Scores in shared rows differ by {self.packing.difference:.2g} nats from those of single sequences "
                f"on this model, so each response gets a row of its own: slower, and checked to be right.",
                stacklevel=2,
            )


class _Contrasts(Dataset[Contrast]):
    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts

    def __len__(self) -> int:
        return len(self.contrasts)

    def __getitem__(self, index: int) -> Contrast:
        return self.contrasts[index]


class _StepSampler(Sampler[int]):
    """A seeded order in whole optimiser steps, whose contrasts stand by length to save padding.

    Which contrasts share a step, and so every update, does not depend on the lengths. What does not fill a step
    is left to the next epoch's order; fewer contrasts than one step holds are repeated to fill it.
    """

    def __init__(self, lengths: Sequence[int], step: int, seed: int) -> None:
        self._lengths, self._step, self._seed, self._epoch = lengths, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self._lengths) // self._step) * self._step

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        order = list(itertools.islice(itertools.cycle(order), len(self)))
        for start in range(0, len(order), self._step):
            yield from sorted(order[start : start + self._step], key=lambda i: (-self._lengths[i], i))


class _WeightChange(TrainerCallback):
    """Watches a random sample of every weight tensor: how far a step moves it, and whether rounding hides that."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(0)
        self._watched = [
            torch.randint(p.numel(), (WATCHED_VALUES,), generator=generator)
            if p.numel() > WATCHED_VALUES
            else torch.arange(p.numel())
            for p in self._weights
        ]
        self._dtype = dtype
        self._start = self._sample()
        self._before: list[Tensor] = []
        self._relative = 0.0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._before = self._sample()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        after = self._sample()
        moved = self._over_all([(a - b).double().square().mean() for a, b in zip(after, self._before, strict=True)])
        size = self._over_all([b.double().square().mean() for b in self._before])
        self._relative = (moved / size) ** 0.5 if size else 0.0

    def figures(self) -> dict[str, float]:
        """Size of the last step relative to the weights, and the share of weights changed after rounding."""
        return {"relative_weight_change": self._relative, "weights_changed": self.share_changed()}

    def share_changed(self) -> float:
        """Share of weights that differ from the start after rounding to the dtype they are saved in."""
        return self._over_all(
            [
                (start.to(self._dtype) != now.to(self._dtype)).double().mean()
                for start, now in zip(self._start, self._sample(), strict=True)
            ]
        )

    def check_rounded(self, lr: float, steps: int) -> None:
        share = self.share_changed()
        if share < UNCHANGED_BELOW:
            raise InputError(
                f"After {steps} steps at learning rate {lr:g}, {share:.2%} of the weights differ from the start "
                f"once rounded to {str(self._dtype).removeprefix('torch.')}, so the saved model would be the one "
                f"that was loaded. Raise training.lr or training.steps, or set model.dtype=float32."
            )

    def _over_all(self, means: list[Tensor]) -> float:
        """Mean over all weights, from the means of each tensor's sample."""
        sizes = [p.numel() for p in self._weights]
        return sum(size * float(mean) for size, mean in zip(sizes, means, strict=True)) / sum(sizes)

    def _sample(self) -> list[Tensor]:
        return [
            weight.detach().flatten()[watched.to(weight.device)].cpu()
            for weight, watched in zip(self._weights, self._watched, strict=True)
        ]
