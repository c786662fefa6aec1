"""`SAMITrainer`, a `transformers.Trainer` for contrasts.

trainer = SAMITrainer(model="HuggingFaceTB/SmolLM2-135M-Instruct",
                      args=SAMIConfig(output_dir="out", max_steps=17, learning_rate=1.5e-5),
                      train_dataset=contrasts)
trainer.train()
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from sami import objective
from sami.contrasts import Contrast, ContrastBatch, collate, require_scorable, row_tokens
from sami.errors import InputError
from sami.models import attention
from sami.models.devices import free_bytes
from sami.models.loading import load_tokenizer
from sami.models.structure import causal_lm, context_length, decoder_layers
from sami.recipe import Model
from sami.scoring import divergence
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from sami.scoring.packing_check import PackingCheck, check_packing
from sami.training import memory, sharding
from sami.training.compilation import compile_layers
from sami.training.config import SAMIConfig
from sami.training.one_process import OneProcess
from sami.training.order import ContrastDataset, EpochCallback, StepSampler
from sami.training.policy import make_reference, trainable
from sami.training.precision import count_step
from sami.training.sharding import Sharded
from sami.training.weight_change import WeightChange, require_changed


class SAMITrainer(Trainer):
    """Trains a causal language model to distinguish constitutions by the responses they produced.

    Args:
        model: a model with fp32 weights (bf16 if `master_weights` is bfloat16), or a name or folder to load one from.
        args: a `SAMIConfig`.
        train_dataset: contrasts, all with the same C.
        processing_class: the tokenizer; by default loaded beside a model given by name.
        peft_config: a LoRA configuration of peft. Only the adapter is then trained, in fp32, and the base weights
            are held in the compute dtype, or in 4 bits if the model was loaded so (`BitsAndBytesConfig`). A model
            that already carries a trainable adapter needs none.
        ref_model: the reference of the KL divergence that `beta` weighs; it is frozen. By default the adapter's base,
            or, if all weights are trained, a frozen copy of the model as it was given.

    Raises:
        InputError: trained weights of another dtype than the master weights', no contrasts, an adapter for modules
            that do not exist, a quantized model that cannot be trained on, a reference that cannot be used, or (while
            training) non-finite log-probs, an exploding gradient, or weights that do not change after rounding.
    """

    args: SAMIConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SAMIConfig,
        train_dataset: Sequence[Contrast],
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: Any | None = None,
        ref_model: PreTrainedModel | None = None,
        **trainer_arguments: Any,
    ) -> None:
        if trainer_arguments.get("eval_dataset") is not None:
            raise InputError(
                "You passed eval_dataset, and SAMITrainer does not evaluate while it trains. Leave it out, and use "
                "sami.evaluation."
            )
        self._strategy = OneProcess(args) if args.world_size == 1 else Sharded(args)
        if isinstance(model, str):
            source = Model(source=model)
            processing_class = processing_class or load_tokenizer(source)
            model = self._strategy.load(source, adapted=peft_config is not None)
        if processing_class is None:
            raise InputError("You passed a model as a module without its tokenizer. Pass it as processing_class.")
        _require_contrasts(train_dataset, model, args)
        policy = trainable(model, args, peft_config, self._strategy.frozen_dtype)
        attention.install(causal_lm(policy))
        self._reference = make_reference(policy, args, ref_model)
        adapted = isinstance(policy, PeftModel)
        self.weight_change = WeightChange(torch.float32 if adapted else args.torch_compute_dtype)
        self.packing: PackingCheck | None = None
        self.gradient_cache = args.gradient_cache
        """None until training starts, if it is left to the trainer."""
        pad = processing_class.pad_token_id
        self._pad_token_id: int = pad if pad is not None else processing_class.eos_token_id
        self._share_prefix = args.share_prefix
        self._contrasts = train_dataset
        self._compiled = False
        self._sums: dict[str, list[float]] = defaultdict(list)
        super().__init__(
            model=policy,
            args=args,
            train_dataset=ContrastDataset(train_dataset),
            processing_class=processing_class,
            data_collator=self._collate,
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False
        self.add_callback(self.weight_change)

    @property
    def trained_model(self) -> Any:
        """The model as it is saved, without what wraps it for training."""
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer.train` does, and check that training changed the weights."""
        if self.packing is None:
            self._strategy.start(self.trained_model)
            self.weight_change.watch(self.trained_model)
            self._check_packing()
            self._decide_on_the_gradient_cache()
        result = super().train(*args, **kwargs)
        share = self._over_processes(self.weight_change.share_changed())
        require_changed(share, self.state.global_step, self.args.learning_rate, self.weight_change.dtype)
        return result

    # Decisions before the first step. All processes must decide alike: they must make the same number of passes.

    def _check_packing(self) -> None:
        """Compare rows with single sequences on the longest contrast; where shared rows differ, share nothing.

        The longest, because a wrong mask or window can leave short responses unaffected.
        """
        longest = max(self._contrasts, key=row_tokens)
        found = self._strategy.without_gradient(
            self.trained_model, lambda model: check_packing(model, longest, self._pad_token_id, self._share_prefix)
        )
        shared = self._over_processes(found.shared) == 1.0
        self.packing = PackingCheck(shared, self._over_processes(found.difference))
        if self._share_prefix and not shared:
            self._share_prefix = False
            warnings.warn(
                f"Scores in shared rows differ by {self.packing.difference:.2g} nats from those of single sequences "
                f"on this model, so each response gets a row of its own. This is slower and was checked to be right.",
                stacklevel=2,
            )

    def _decide_on_the_gradient_cache(self) -> None:
        if self.gradient_cache is not None:
            return
        config, dtype = causal_lm(self.trained_model).config, self.args.torch_compute_dtype
        longest = memory.longest_constitution(self._contrasts, shared=self._share_prefix)
        tokens = self.args.train_batch_size * len(self._contrasts[0].prompt_ids) * longest
        activations = memory.kept_bytes(config, tokens, dtype, checkpointing=self.args.gradient_checkpointing)
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        free = memory.bytes_for_each(self.args.device, free_bytes(self.args.device), processes)
        left = free - sum(memory.held(self._sizes()).added.values())  # the weights are loaded already
        self.gradient_cache = self._over_processes(memory.needs_gradient_cache(activations, left)) > 0

    def _sizes(self) -> memory.Sizes:
        model, args = self.trained_model, self.args
        total = sum(weight.numel() for weight in model.parameters())
        blocks = [sum(weight.numel() for weight in layer.parameters()) for layer in decoder_layers(model)]
        copied = args.world_size == 1 and not isinstance(model, PeftModel) and args.master_weights != args.compute_dtype
        return memory.Sizes(
            trained=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            masters=args.torch_master_dtype,
            optimizer=args.optim.partition("_")[0],
            copied=total if copied else 0,
            compute=args.torch_compute_dtype,
            processes=args.world_size,
            block=max(blocks),
            outside_blocks=total - sum(blocks),
        )

    def _over_processes(self, value: float) -> float:
        """Mean of a figure over the processes, the same on all of them."""
        figure = torch.tensor(float(value), device=self.args.device)
        return float(self.accelerator.reduce(figure, reduction="mean"))

    # The loss.

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of a micro-batch. The micro-batches of a step have one size, so their mean is the step's loss."""
        batches = [batch.to(self.args.device) for batch in inputs["contrasts"]]
        logprobs = self._score(model, batches)
        kl = None
        if self._reference is not None:
            logprobs, kl = logprobs[..., :-1], logprobs[..., -1].mean()
        self._record(logprobs.detach())
        loss = objective.sami_loss(logprobs, self.args.contrast, estimator=self.args.estimator)
        if kl is not None:
            loss = loss + self.args.beta * kl
            self._sums["kl"].append(kl.item())
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    def _score(self, model: nn.Module, batches: list[ContrastBatch]) -> Tensor:
        """The log-prob matrices of a micro-batch: one batch, or with the gradient cache one per constitution.

        With a reference, a last column holds the divergence from it.
        """
        module = self._strategy.module(self.trained_model, model.training)
        if self.args.compile_layers and not self._compiled:
            compile_layers(module)
            self._compiled = True

        def score(batch: ContrastBatch) -> Tensor:
            return self._strategy.forward(module, lambda scorer: self._matrix(scorer, batch))

        return score(batches[0]) if len(batches) == 1 else cached_logprob_matrix(score, batches)

    def _matrix(self, model: nn.Module, batch: ContrastBatch) -> Tensor:
        if self._reference is None:
            return logprob_matrix(model, batch, per_token=self.args.per_token)
        return divergence.scored_with_divergence(model, batch, self._reference, per_token=self.args.per_token)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_post_hook(count_step)
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return sharding.whole(super()._clip_grad_norm(model))

    # What differs between one process and several.

    def whole_model(self) -> Any:
        """The trained model with all of its weights; with several processes, in the first one only.

        Every process must call it.

        Raises:
            InputError: several processes trained an adapter, which `save_model` saves.
        """
        return self._strategy.whole_model(self.trained_model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        self._strategy.save_model(self, output_dir, _internal_call)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        self._strategy.move(self, model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return self._strategy.wrap(self, model, training, dataloader)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._strategy.load_weights(self, Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._strategy.save_optimizer(self, Path(output_dir))

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            self._strategy.load_optimizer(self, Path(folder))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what is saved next marks the checkpoint as complete

    # Figures.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums:
            means = {name: sum(v) / len(v) for name, v in self._sums.items()} | self.weight_change.figures()
            values = torch.tensor(list(means.values()), device=self.args.device)
            logs |= dict(zip(means, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))
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
                f"{self.args.explode_above:g}. Training stopped before this step changed the weights. Lower "
                f"training.lr, or look for damaged responses among the contrasts."
            )
        return norm

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        sampler = StepSampler([row_tokens(c) for c in self._contrasts], step, self.args.seed)
        self.add_callback(EpochCallback(sampler))
        return sampler

    def _collate(self, contrasts: Sequence[Contrast]) -> dict[str, list[ContrastBatch]]:
        rows = [[c] for c in range(len(contrasts[0].prompt_ids))] if self.gradient_cache else [None]
        return {
            "contrasts": [
                collate(contrasts, self._pad_token_id, self._share_prefix, self.args.train_eos, constitutions)
                for constitutions in rows
            ]
        }


def _require_contrasts(contrasts: Sequence[Contrast], model: nn.Module, args: SAMIConfig) -> None:
    if len(contrasts) == 0:
        raise InputError("There are no contrasts to train on. Pass at least one as train_dataset.")
    if len(contrasts) < args.world_size:
        raise InputError(
            f"{args.world_size} processes train and there are {len(contrasts)} contrasts, so some processes would have "
            f"none of their own. Launch fewer processes, or generate more contrasts."
        )
    config = causal_lm(model).config
    require_scorable(contrasts, context_length(config), config.get_text_config().vocab_size)
