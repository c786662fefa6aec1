"""`SAMITrainer`, a `transformers.Trainer` for contrasts, and `SAMIConfig`, its arguments."""

from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer

__all__ = ["SAMIConfig", "SAMITrainer"]
