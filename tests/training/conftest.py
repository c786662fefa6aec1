"""`make`, by which trainers are made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from sami.contrasts import Contrast
from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.tiny import tiny_model
from tests.support.training import Make


@pytest.fixture
def make(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> Make:
    """`make(contrasts, steps, …)`: a trainer of the tiny llama in fp32, at a rate that moves it."""

    def trainer(
        contrasts: Sequence[Contrast],
        steps: int = 2,
        *,
        model: PreTrainedModel | str | None = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **arguments: Any,
    ) -> SAMITrainer:
        settings = {
            "output_dir": str(tmp_path / "trainer"),
            "max_steps": steps,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "compute_dtype": "float32",
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }
        return SAMITrainer(
            model=model if model is not None else tiny_model("llama"),
            args=SAMIConfig(**{**settings, **arguments}),
            train_dataset=contrasts,
            processing_class=None if isinstance(model, str) else plain_tokenizer,
            peft_config=peft_config,
            callbacks=callbacks,
        )

    return trainer
