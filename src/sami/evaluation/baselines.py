"""Baselines trained with TRL on the same contrasts as a policy: supervised finetuning and DPO.

Both start from the base weights and take the same number of steps over the same responses, at the same learning rate.
They get the stored token ids, so prompts and responses are exactly those of the policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from sami.contrasts import Contrast
from sami.errors import InputError
from sami.recipe import Training

try:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
except ImportError as error:
    raise InputError(
        "Training a baseline needs the package of the extra `baselines`: pip install 'sami[baselines]'."
    ) from error


@dataclass(frozen=True)
class Schedule:
    """How an iteration was trained."""

    training: Training
    iteration: int
    bf16: bool
    """Compute in bfloat16 with fp32 weights."""


def train_sft(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrasts: Sequence[Contrast],
    schedule: Schedule,
    output: Path,
) -> None:
    """Finetune a model in place on each response under the constitution that it was sampled under.

    Args:
        model: the base model in fp32.
        output: folder for the trainer's own files.
    """
    rows = [
        {"input_ids": prompt + response, "completion_mask": [0] * len(prompt) + [1] * len(response)}
        for c in contrasts
        for prompt, response in zip(c.prompt_ids, c.response_ids, strict=True)
    ]
    arguments = SFTConfig(
        **_arguments(schedule, len(contrasts[0].responses), output), completion_only_loss=True, max_length=None
    )
    _train(SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer))


def train_dpo(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrasts: Sequence[Contrast],
    schedule: Schedule,
    output: Path,
) -> None:
    """Train a model in place to prefer a constitution's response to the response of the contrast's next constitution.

    Args:
        model, reference: two copies of the base model in fp32.
        output: folder for the trainer's own files.
    """
    rows = [
        {
            "prompt_ids": prompt,
            "chosen_ids": c.response_ids[number],
            "rejected_ids": c.response_ids[(number + 1) % len(c.response_ids)],
        }
        for c in contrasts
        for number, prompt in enumerate(c.prompt_ids)
    ]
    arguments = DPOConfig(**_arguments(schedule, len(contrasts[0].responses), output), max_length=None)
    dataset = Dataset.from_list(rows)
    _train(_IdsDPO(model, reference, args=arguments, train_dataset=dataset, processing_class=tokenizer))


class _IdsDPO(DPOTrainer):
    """DPO on rows that are already tokenized."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def _arguments(schedule: Schedule, responses: int, output: Path) -> dict[str, Any]:
    """The arguments that both configs share: `batch_size` contrasts are `batch_size` x C rows."""
    t, iteration = schedule.training, schedule.iteration
    micro = t.micro_batch(processes=1)
    return {
        "output_dir": str(output),
        "max_steps": t.steps_of(iteration),
        "per_device_train_batch_size": micro * responses,
        "gradient_accumulation_steps": t.batch_size // micro,
        "learning_rate": t.lr_of(iteration),
        "lr_scheduler_type": "constant_with_warmup" if t.lr_scheduler == "constant" else t.lr_scheduler,
        "warmup_steps": t.warmup_steps,
        "optim": {"adamw": "adamw_torch", "rmsprop": "rmsprop"}[t.optimizer],
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "bf16": schedule.bf16,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": t.seed,
    }


def _train(trainer: Any) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.train()
