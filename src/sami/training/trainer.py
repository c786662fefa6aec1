"""`SAMITrainer`, a `transformers.Trainer` for contrasts, and its configuration.

trainer = SAMITrainer(model="HuggingFaceTB/SmolLM2-135M-Instruct",
                      args=SAMIConfig(output_dir="out", max_steps=17, learning_rate=1.5e-5),
                      train_dataset=contrasts)
trainer.train()
"""

import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from sami import objective
from sami.contrasts import Contrast, ContrastBatch, collate, require_scorable, row_tokens
from sami.errors import InputError
from sami.models import adapters, attention, quantization
from sami.models.devices import activation_bytes, free_bytes
from sami.models.loading import load_for_shards, load_model, load_tokenizer
from sami.models.structure import causal_lm, context_length, vocabulary_size
from sami.recipe import Model
from sami.scoring import divergence
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from sami.scoring.packing_check import PackingCheck, check_packing
from sami.training import checkpoint, sharding
from sami.training.compilation import compile_layers
from sami.training.config import SAMIConfig
from sami.training.order import ContrastDataset, EpochCallback, StepSampler
from sami.training.precision import ComputeCopy, count_step, frozen_copy
from sami.training.weight_change import WeightChange, require_changed


class SAMITrainer(Trainer):
    """Trains a causal language model to tell constitutions apart by the responses they produced.

    Args:
        model: a model with fp32 weights (bf16 where `master_weights` says so), or a name or folder to load one from.
        args: a `SAMIConfig`.
        train_dataset: contrasts, all with the same C.
        processing_class: the tokenizer; by default loaded beside a model given by name.
        peft_config: a LoRA configuration of peft; only the adapter is then trained, in fp32, and the base weights
            are held in the compute dtype, or in 4 bits where the model was loaded so (`BitsAndBytesConfig`). A model
            that carries a trainable adapter already needs none.
        ref_model: what `beta` keeps the policy near; it is frozen. By default the adapter's base, or where all
            weights are trained a frozen copy of the model as it was given.

    Raises:
        InputError: trained weights of another dtype than the master weights', no contrasts, an adapter for modules
            that do not exist, a quantised model that cannot be trained on, a reference that cannot be used, or (while
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
        if isinstance(model, str):
            source = Model(source=model)
            processing_class = processing_class or load_tokenizer(source)
            if args.world_size > 1:
                model = load_for_shards(source, torch.float32, args.process_index)
            else:
                # Frozen weights are loaded in the dtype that they are held in.
                narrow_base = peft_config is not None and args.compute_dtype == "bfloat16"
                narrow = narrow_base or args.master_weights == "bfloat16"
                model = load_model(source, torch.bfloat16 if narrow else torch.float32, args.device)
        if processing_class is None:
            raise InputError("A model given as a module needs its tokenizer as processing_class.")
        if len(train_dataset) == 0:
            raise InputError("There are no contrasts to train on.")
        if len(train_dataset) < args.world_size:
            raise InputError(
                f"{args.world_size} processes train and there are {len(train_dataset)} contrasts, so some would have "
                f"none of their own. Launch fewer processes, or generate more contrasts."
            )
        config = causal_lm(model).config
        require_scorable(train_dataset, context_length(config), config.get_text_config().vocab_size)
        self._compute_dtype = torch.bfloat16 if args.compute_dtype == "bfloat16" else torch.float32
        if quantization.is_quantised(model):
            if peft_config is None and not isinstance(model, PeftModel):
                raise InputError(
                    "The model is quantised, and such weights cannot be trained. Give a peft_config, so that an "
                    "adapter is trained on them, or load the model without quantization_config."
                )
            if args.world_size > 1:
                raise InputError(
                    f"The model is quantised and {args.world_size} processes train, which divide fp32 weights between "
                    f"them. Launch one process, or load the model without quantization_config."
                )
            quantization.prepare(model, self._compute_dtype)
        if peft_config is not None:
            set_seed(args.seed)  # the adapter's first weights are random
            model = adapters.attach(model, peft_config)  # type: ignore[assignment]
        assert isinstance(model, nn.Module)
        self._adapted = isinstance(model, PeftModel)
        if isinstance(model, PeftModel):
            # Shards of one group have one dtype, so in several processes FSDP narrows the weights instead.
            adapters.hold(model, self._compute_dtype if args.world_size == 1 else torch.float32)
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError("All weights of the model are frozen, so nothing would be trained.")
        masters = torch.bfloat16 if args.master_weights == "bfloat16" and not self._adapted else torch.float32
        wrong = next((n for n, p in model.named_parameters() if p.requires_grad and p.dtype != masters), None)
        if wrong is not None:
            raise InputError(
                f"The weight {wrong} is not {args.master_weights}, as the master weights must be: load the model with "
                f"dtype={masters}. In bfloat16 most of SAMI's steps are below half a step of rounding and are lost."
            )
        pad = processing_class.pad_token_id
        self._pad_token_id: int = pad if pad is not None else processing_class.eos_token_id
        self._sums: dict[str, list[float]] = defaultdict(list)
        self.packing: PackingCheck | None = None
        self.weight_change = WeightChange(torch.float32 if self._adapted else self._compute_dtype)
        if args.world_size == 1:
            self.weight_change.watch(model)
        self._share_prefix = args.share_prefix
        self._contrasts = train_dataset
        self._compute: ComputeCopy | None = None
        self._sharded: sharding.ShardedScorer | None = None
        self._compiled = False
        attention.install(causal_lm(model))
        self._reference = self._make_reference(model, args, ref_model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=ContrastDataset(train_dataset),
            processing_class=processing_class,
            data_collator=self._collate,
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False
        if self.eval_dataset is not None:
            raise InputError(
                "SAMITrainer evaluates nothing while it trains; leave eval_dataset out, use sami.evaluation."
            )
        # One decision for all processes: they must make the same number of passes.
        self.gradient_cache = (
            self._over_processes(
                needs_gradient_cache(
                    causal_lm(model).config,
                    train_dataset,
                    args.train_batch_size,
                    self._compute_dtype,
                    free_bytes(args.device),
                )
            )
            > 0
            if args.gradient_cache is None
            else args.gradient_cache
        )
        self.add_callback(self.weight_change)

    @property
    def trained_model(self) -> Any:
        """The model as it is saved, whatever wraps it for training."""
        return self.accelerator.unwrap_model(self.model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.args.world_size > 1 and self._sharded is None:
            self._sharded = sharding.ShardedScorer(self.trained_model, self._compute_dtype, self.args.device)
            self.weight_change.watch(self.trained_model)
        if self.packing is None:
            self._check_packing()
        result = super().train(*args, **kwargs)
        share = self._over_processes(self.weight_change.share_changed())
        require_changed(share, self.state.global_step, self.args.learning_rate, self.weight_change.dtype)
        return result

    def _over_processes(self, value: float) -> float:
        """Mean of a figure over the processes, alike on all of them."""
        figure = torch.tensor(float(value), device=self.args.device)
        return float(self.accelerator.reduce(figure, reduction="mean"))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of a micro-batch; micro-batches of one step have one size, so their mean is the step's."""
        batches = [batch.to(self.args.device) for batch in inputs["contrasts"]]
        logprobs = self._score(model, batches)
        kl = None
        if self._reference is not None:
            logprobs, kl = logprobs[..., :-1], logprobs[..., -1].mean()
        self._record(logprobs.detach())
        loss = objective.sami_loss(logprobs, self.args.contrast)
        if kl is not None:
            loss = loss + self.args.beta * kl
            self._sums["kl"].append(kl.item())
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    def _score(self, model: nn.Module, batches: list[ContrastBatch]) -> Tensor:
        """The log-prob matrices of a micro-batch: one batch, or under the gradient cache one a constitution.

        With a reference, a last column holds the divergence from it.
        """
        if self._sharded is None and not self._adapted and self.args.master_weights != self.args.compute_dtype:
            if self._compute is None:
                self._compute = ComputeCopy(self.trained_model, self._compute_dtype)
            self._compute.refresh()
            model = self._compute.model.train(model.training)
        if self.args.compile_layers and not self._compiled:
            compile_layers(model if self._sharded is None else self._sharded.module)
            self._compiled = True

        def score(batch: ContrastBatch) -> Tensor:
            if self._sharded is not None:
                scored: Tensor = self._sharded(lambda m: logprob_matrix(m, batch, per_token=self.args.per_token))
                return scored
            if self._reference is not None:
                return divergence.scored_with_divergence(model, batch, self._reference, per_token=self.args.per_token)
            return logprob_matrix(model, batch, per_token=self.args.per_token)

        return score(batches[0]) if len(batches) == 1 else cached_logprob_matrix(score, batches)

    def _make_reference(
        self, model: nn.Module, args: SAMIConfig, ref_model: PreTrainedModel | None
    ) -> divergence.Reference | None:
        """What `beta` holds the policy near; None, and no cost, at beta 0."""
        if not args.beta:
            if ref_model is not None:
                raise InputError("ref_model has no effect while beta is 0. Set beta, or leave ref_model out.")
            return None
        if args.world_size > 1:
            raise InputError(
                f"beta is {args.beta:g} and {args.world_size} processes train. The divergence from a reference is "
                f"computed in one process only: launch one, or set beta to 0."
            )
        if ref_model is None:
            if isinstance(model, PeftModel):
                return divergence.adapter_off(model)
            return divergence.frozen(frozen_copy(model, self._compute_dtype).to(args.device))
        if causal_lm(ref_model) is causal_lm(model):
            raise InputError("ref_model is the model that is trained. Load it a second time, or leave ref_model out.")
        if vocabulary_size(ref_model) != vocabulary_size(model):
            raise InputError(
                f"ref_model has a vocabulary of {vocabulary_size(ref_model)} tokens and the model one of "
                f"{vocabulary_size(model)}. The reference must be a model with the same tokenizer."
            )
        if quantization.is_quantised(ref_model):
            quantization.prepare(ref_model, self._compute_dtype)
        ref_model.requires_grad_(False).eval()
        return divergence.frozen(ref_model.to(args.device))  # type: ignore[arg-type]

    # Several processes.

    def whole_model(self) -> Any:
        """The trained model with all of its weights; on the first process only where there are several.

        Every process must call it.
        """
        if self._sharded is None:
            return self.trained_model
        if self._adapted:
            raise InputError("An adapter that several processes trained is saved by save_model, alone.")
        weights = sharding.whole_weights(self.trained_model)
        return sharding.assembled(self.trained_model, weights) if self.is_world_process_zero() else None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.register_step_post_hook(count_step)
        return optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if self.args.world_size == 1:
            super()._move_model_to_device(model, device)  # shards are on their device already

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        return super()._wrap_model(model, training, dataloader) if self._sharded is None else self._sharded

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return sharding.whole(super()._clip_grad_norm(model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._sharded is None:
            super().save_model(output_dir, _internal_call)
            return
        weights = sharding.whole_weights(self.trained_model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self._sharded is not None:
            weights = checkpoint.trained_weights(self.trained_model, folder) if self.is_world_process_zero() else {}
            sharding.spread_weights(self.trained_model, weights, strict=False)  # it holds only what is trained
        elif self._adapted:
            checkpoint.require_adapter(self.trained_model, folder)
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.trained_model.load_state_dict(checkpoint.trained_weights(self.trained_model, folder))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer, scheduler = self._states()
        states = sharding.whole_optimizer(self.trained_model, optimizer.optimizer)
        if self.args.should_save:
            torch.save(states, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # what comes next says that the checkpoint is whole

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if self._sharded is None or folder is None:
            super()._load_optimizer_and_scheduler(folder)
            return
        optimizer, scheduler = self._states()
        states = {}
        if self.is_world_process_zero():
            states = torch.load(Path(folder) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        sharding.restore_optimizer(self.trained_model, optimizer.optimizer, states)
        scheduler.load_state_dict(torch.load(Path(folder) / SCHEDULER_NAME, weights_only=True))

    def _states(self) -> tuple[Any, Any]:
        return self.optimizer, self.lr_scheduler

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
                f"{self.args.explode_above:g}. Training stopped before this step changed the weights: lower "
                f"training.lr, or look at the contrasts for damaged responses."
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

    def _check_packing(self) -> None:
        """Compare rows with single sequences on the longest contrast; where shared ones differ, share nothing.

        The longest, because a wrong mask or window can leave short responses untouched.
        """
        longest = max(self._contrasts, key=row_tokens)

        def check(model: nn.Module) -> PackingCheck:
            return check_packing(model, longest, self._pad_token_id, self._share_prefix)

        if self._sharded is None:
            self.packing = check(self.trained_model)
        else:  # on shards, in the dtype of compute, and together: with one that refuses, all do
            found = self._sharded.without_gradient(check)
            shared = self._over_processes(found.shared) == 1.0
            self.packing = PackingCheck(shared, self._over_processes(found.difference))
        if self._share_prefix and not self.packing.shared:
            self._share_prefix = False
            warnings.warn(
                f"Scores in shared rows differ by {self.packing.difference:.2g} nats from those of single sequences "
                f"on this model, so each response gets a row of its own: slower, and checked to be right.",
                stacklevel=2,
            )


def needs_gradient_cache(
    config: PreTrainedConfig, contrasts: Sequence[Contrast], batch_size: int, dtype: torch.dtype, free: int
) -> bool:
    """Whether the activations of the largest micro-batch would take more than half of `free` bytes."""
    longest = max(contrasts, key=row_tokens)
    tokens = batch_size * len(longest.prompt_ids) * row_tokens(longest)
    return activation_bytes(config, tokens, dtype) > free / 2
