"""Recipes of two short iterations on a tiny model, and summaries without what differs between runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PRINCIPLES = [
    {
        "id": "brief",
        "definition": "Answer in a few words.",
        "antithesis": "Answer at great length.",
        "verifier": {"check": "word_count", "max": 2},
    },
    {
        "id": "loud",
        "definition": "Write capital letters.",
        "antithesis": "Write small letters.",
        "verifier": {"check": "case", "case": "upper", "min_share": 0.5},
    },
    {"id": "kind", "definition": "Be kind to the reader.", "antithesis": "Be stern with the reader."},
    {
        "id": "asking",
        "definition": "End with a question.",
        "antithesis": "End with a full stop.",
        "verifier": {"check": "ends_with", "suffix": "question"},
        "held_out": True,
    },
]


TOPICS = ["bread", "rain", "planets", "trains", "tea", "maps", "bees", "glass", "salt", "wool", "rivers", "clocks"]


TIMES = {"timings"}


def write_recipe(folder: Path, model: Path | str, **changes: Any) -> Path:
    """A recipe of two short iterations with its queries and principles; `section__key=value` changes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"query": f"Why do people like {topic}?"}) + "\n" for topic in TOPICS)
    (folder / "principles.yaml").write_text(yaml.safe_dump({"principles": PRINCIPLES}, sort_keys=False))
    filters = ("empty", "identical", "unfinished", "stop_leftovers", "loops", "leaks")
    recipe: dict[str, Any] = {
        "model": {"source": str(model), "dtype": "float32"},
        "queries": {"path": "queries.jsonl", "train": 8, "evaluation": 3},
        "principles": "principles.yaml",
        "generation": {"max_new_tokens": 6, "batch_size": 16},
        "filters": dict.fromkeys(filters, False),
        "training": {"iterations": 2, "steps": [2, 3], "batch_size": 4, "micro_batch_size": 2, "lr": 3e-3},
        "evaluation": {"principles_per_query": 4, "health_queries": 2, "bootstrap_samples": 100},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        recipe.setdefault(section, {})[name] = value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "tiny.yaml"


Folder = Callable[[str, bool], Path]


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in TIMES}
