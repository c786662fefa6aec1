"""The recipe of a run: every setting with its default and meaning, read from YAML and `key=value` overrides.

    recipe = load_recipe("recipes/quickstart.yaml", ["training.lr=1e-5"])

Nothing here imports torch, so that `sami --help` and errors in a recipe appear at once.
"""

from sami.recipe.answering import VLLM, ChainOfThought, Generation, Prompt, Thinking
from sami.recipe.endpoint import Endpoint
from sami.recipe.judging import (
    Baseline,
    EndpointJudge,
    Evaluation,
    HumanJudge,
    Judge,
    LocalJudge,
    VerifierJudge,
)
from sami.recipe.loading import (
    PACKAGED_RECIPES,
    describe,
    dump_recipe,
    flatten,
    load_evaluation,
    load_recipe,
    load_writing,
)
from sami.recipe.recipe import Recipe
from sami.recipe.sections import Filters, Health, Model, Queries, Sampling, Section
from sami.recipe.training import Adapter, Launch, Training
from sami.recipe.writing import EndpointWriter, LocalWriter, ScriptedWriter, WrittenPrinciples

__all__ = [
    "PACKAGED_RECIPES",
    "VLLM",
    "Adapter",
    "Baseline",
    "ChainOfThought",
    "Endpoint",
    "EndpointJudge",
    "EndpointWriter",
    "Evaluation",
    "Filters",
    "Generation",
    "Health",
    "HumanJudge",
    "Judge",
    "Launch",
    "LocalJudge",
    "LocalWriter",
    "Model",
    "Prompt",
    "Queries",
    "Recipe",
    "Sampling",
    "ScriptedWriter",
    "Section",
    "Thinking",
    "Training",
    "VerifierJudge",
    "WrittenPrinciples",
    "describe",
    "dump_recipe",
    "flatten",
    "load_evaluation",
    "load_recipe",
    "load_writing",
]
