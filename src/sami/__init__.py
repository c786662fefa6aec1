"""SAMI: finetune a language model to follow written principles, without preference labels.

import sami
summary = sami.run(sami.load_recipe("quickstart"), "runs/quickstart")

Every name in `__all__` is public and documented in docs/api.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sami.contrasts import Contrast, collate, read_contrasts
    from sami.errors import InputError
    from sami.evaluation.win_rate import queries_needed, win_rates
    from sami.objective import information_bound, sami_loss
    from sami.pipeline import Pipeline, run
    from sami.principles import Constitution, Principle, load_principles
    from sami.recipe import Recipe, load_recipe
    from sami.scoring import logprob_matrix
    from sami.training import SAMIConfig, SAMITrainer

# Names are looked up on first use, so that `import sami` does not import torch.
_HOMES = {
    "contrasts": ("Contrast", "collate", "read_contrasts"),
    "errors": ("InputError",),
    "evaluation.win_rate": ("queries_needed", "win_rates"),
    "objective": ("information_bound", "sami_loss"),
    "pipeline": ("Pipeline", "run"),
    "principles": ("Constitution", "Principle", "load_principles"),
    "recipe": ("Recipe", "load_recipe"),
    "scoring": ("logprob_matrix",),
    "training": ("SAMIConfig", "SAMITrainer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Constitution",
    "Contrast",
    "InputError",
    "Pipeline",
    "Principle",
    "Recipe",
    "SAMIConfig",
    "SAMITrainer",
    "collate",
    "information_bound",
    "load_principles",
    "load_recipe",
    "logprob_matrix",
    "queries_needed",
    "read_contrasts",
    "run",
    "sami_loss",
    "win_rates",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sami' has no attribute {name!r}")
    return getattr(import_module(f"sami.{_HOME_OF[name]}"), name)
