"""A run folder with known figures, written without any model, for tests of what reads finished runs."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sami.contrasts import Contrast, write_contrasts
from sami.evaluation import health
from sami.evaluation.comparison import every_pair, judge_all
from sami.evaluation.pairs import from_contrasts
from sami.evaluation.score import verdicts
from sami.files import write_json
from sami.loop.directory import RunDirectory, policy_name
from sami.loop.summary import summarize
from sami.principles import Principle, load_principles
from sami.recipe import Recipe, dump_recipe

PRINCIPLES = [
    {
        "id": "brief",
        "definition": "Answer in a few words.",
        "antithesis": "Answer at length.",
        "verifier": {"check": "word_count", "max": 8},
    },
    {
        "id": "pirate",
        "definition": "Talk like a pirate.",
        "antithesis": "Talk like a professor.",
        "verifier": {"check": "lexicon", "words": ["arr", "matey"], "min_count": 1},
    },
    {"id": "calm", "definition": "Be calm.", "antithesis": "Be excited.", "held_out": True},
]

Write = Callable[[str, int, str, bool], str]
"""Maps (query, iteration, principle, is it the definition) to an answer."""


def plainly(query: str, iteration: int, principle: str, positive: bool) -> str:
    """Answers of different lengths; later iterations follow their principle more often."""
    draw = random.Random(f"{query} {iteration} {principle} {positive}")
    words = ["yes", "and", "no", "as", "one", "may", "well", "say"]
    text = " ".join(draw.choice(words) for _ in range(draw.randint(3, 14)))
    follows = draw.random() < 0.4 + 0.25 * iteration
    if principle == "pirate" and follows == positive:
        text += " arr"
    if principle == "brief" and follows:
        text = " ".join(text.split()[:6]) if positive else text + " and so on for a good while yet"
    return text.capitalize() + "."


def make_run(
    folder: Path,
    *,
    queries: int = 12,
    iterations: int = 2,
    write: Write = plainly,
    settings: dict[str, Any] | None = None,
    gain: float = 0.15,
) -> Path:
    """Write every file of a finished run.

    Args:
        settings: sections of the recipe that replace the defaults.
        gain: how much less likely, in nats, each iteration makes a response under the other constitution.
    """
    folder.mkdir(parents=True)
    directory = RunDirectory(folder)
    (folder / "principles.yaml").write_text(yaml.safe_dump(PRINCIPLES), encoding="utf-8")
    recipe = Recipe.model_validate(
        {
            "model": "tiny",
            "queries": {"path": "queries.jsonl", "evaluation": queries},
            "principles": str(folder / "principles.yaml"),
            "training": {"iterations": iterations, "steps": [3], "batch_size": 4},
            "evaluation": {"bootstrap_samples": 100},
            **(settings or {}),
        }
    )
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    principles = load_principles(folder / "principles.yaml")
    names = [policy_name(i) for i in range(iterations + 1)]
    policies = []
    for iteration, name in enumerate(names):
        contrasts = _contrasts(queries, iteration, write)
        write_contrasts(directory.responses(name), contrasts)
        write_json(directory.scores(name), _scores(contrasts, principles, iteration, gain))
        policies.append(from_contrasts(name, contrasts, {f"Query {n}?": f"q{n}" for n in range(queries)}, ["calm"]))
        if iteration:
            _train(directory, iteration, contrasts)
    pairs = every_pair(policies[1:], policies[:1])
    judged = judge_all(recipe.evaluation, pairs, policies[0], principles, directory.evaluation)
    write_json(directory.summary, summarize(directory, recipe, principles, names, judged=judged).as_json())
    return folder


def _contrasts(queries: int, iteration: int, write: Write) -> list[Contrast]:
    found = []
    for n in range(queries):
        for principle in PRINCIPLES:
            name = str(principle["id"])
            texts = [write(f"Query {n}?", iteration, name, positive) for positive in (True, False)]
            found.append(
                Contrast(
                    id=f"q{n}-{name}",
                    query=f"Query {n}?",
                    constitutions=[str(principle["definition"]), str(principle["antithesis"])],
                    prompt_ids=[[1], [2]],
                    response_ids=[list(range(1 + min(40, len(text.split())))) for text in texts],
                    responses=texts,
                    finish_reasons=["stop", "length" if n == 0 else "stop"],
                    principles=[[(name, True)], [(name, False)]],
                )
            )
    return found


def _scores(contrasts: list[Contrast], principles: list[Principle], iteration: int, gain: float) -> dict[str, Any]:
    draw = random.Random(iteration)

    def matrices(off: float) -> list[dict[str, Any]]:
        found = []
        for c in contrasts:
            learned = not c.id.endswith("calm")
            other = -1.3 - (off if learned else off / 10) - 0.02 * draw.random()
            matrix = [[-1.0, other], [other, -1.0]]
            name = c.id.split("-")[1]
            found.append(
                {
                    "id": c.id,
                    "query": c.query,
                    "learned": learned,
                    "principles": [name],
                    "matrix": matrix,
                    "masked": matrix,
                }
            )
        return found

    flagged = [health.flags(contrast) for contrast in contrasts]
    figures = health.text_figures(contrasts, flagged) | {
        "base_logprob": -1.0 - 0.1 * iteration,
        "relevance": 1.2 - 0.05 * iteration,
        "forgetting": 0.01 * iteration,
    }
    return {
        "policy": matrices(3 * gain * iteration),
        "base": matrices(gain * iteration),
        "verdicts": list(verdicts(contrasts, principles)),
        "flags": {contrast.id: found for contrast, found in zip(contrasts, flagged, strict=True)},
        "health": figures,
    }


def _train(directory: RunDirectory, iteration: int, contrasts: list[Contrast]) -> None:
    write_contrasts(directory.contrasts(iteration), contrasts)
    steps = [
        {
            "step": n,
            "loss": 0.6 - 0.05 * n,
            "grad_norm": 1.0 + 0.1 * n,
            "learning_rate": 1e-5,
            "bound": 0.1 * n,
            "row_accuracy": 0.9,
            "column_accuracy": 0.95,
            "weights_changed": 0.05 * n,
        }
        for n in (1, 2, 3)
    ]
    directory.metrics(iteration).write_text("".join(json.dumps(s) + "\n" for s in steps), encoding="utf-8")
    records = {
        f"generate-{iteration}": {"generated": 20, "kept": 18, "used": 12, "dropped": {"loops": 2, "identical": 0}},
        f"train-{iteration}": {"steps": 3, "weights_changed": 0.15},
    }
    for name, result in records.items():
        write_json(directory.folder / ".steps" / f"{name}.json", {"inputs": {}, "seconds": 12.3, "result": result})
