"""The commands and Python code on the pages run, on tiny models that stand in for those of the hub."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami import load_recipe, run
from sami.cli import main
from tests.support.documentation import PAGES, blocks
from tests.support.garbage import freeze_libraries
from tests.support.recipes import write_recipe

PRINCIPLES = [
    {
        "id": "brief",
        "definition": "Answer in a few words.",
        "antithesis": "Answer at great length.",
        "verifier": {"check": "word_count", "max": 2},
    },
    {"id": "pirate", "definition": "Talk like a pirate.", "antithesis": "Talk like a professor."},
    {
        "id": "story",
        "definition": "End with a question.",
        "antithesis": "End with a full stop.",
        "verifier": {"check": "ends_with", "suffix": "question"},
        "held_out": True,
    },
]
MODELS = [f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in ("135M", "360M", "1.7B")]
RECIPES = ["mine.yaml", "quickstart", "helpful", "recipes/quickstart.yaml"]
TOPICS = ("bread", "rain", "tea", "maps", "bees", "salt", "wool", "clocks")
QUERIES = [f"Why do {who} like {topic}?" for who in ("people", "cats", "kings", "we", "they") for topic in TOPICS]


def jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_data(folder: Path) -> None:
    """The query, response and reference files that the pages name."""
    for name, field in (("queries", "query"), ("posts", "post"), ("helpful_queries", "query")):
        jsonl(folder / f"{name}.jsonl", [{"id": f"q{n}", field: query} for n, query in enumerate(QUERIES)])
    (folder / "questions.csv").write_text("question\n" + "\n".join(QUERIES) + "\n")
    for name, text in (("new", "It is {}."), ("newer", "{}!"), ("old", "It is {}, as we will see in a moment.")):
        constitution = PRINCIPLES[0]["definition"]
        rows = [{"id": f"q{n}", "constitution": constitution, "response": text.format(n)} for n in range(len(QUERIES))]
        jsonl(folder / f"{name}.jsonl", rows)
    constitutions = {
        "positive": "1. Be brief.\n2. Be kind.",
        "negative": "1. Be not brief.\n2. Be not kind.",
        "identifiers": {"positive": ["pos brief", "pos kind"], "negative": ["neg brief", "neg kind"]},
    }
    (folder / "constitutions" / "opus").mkdir(parents=True)
    (folder / "constitutions" / "opus" / "0.json").write_text(json.dumps(constitutions))
    prompts = [f"Constitution:\n1. Be {word}brief.\n\nHuman: Why?\n\nAssistant:" for word in ("", "not ")]
    rows = [{"prompt": prompt, "response": "So.", "example_id": 0} for prompt in prompts]
    (folder / "contrasts.json").write_text(json.dumps({"0": rows}))


def write_recipes(folder: Path, tiny: Path) -> None:
    """The recipes that the pages name, on a tiny model; files take the place of packaged recipes and hub ids."""
    for model in MODELS:
        (folder / model).parent.mkdir(exist_ok=True)
        (folder / model).symlink_to(tiny)
    recipe = write_recipe(folder, tiny, queries__train=36, evaluation__principles_per_query=3, filters__min_survivors=0)
    text = recipe.read_text().replace("queries.jsonl", str(folder / "queries.jsonl"))
    text = text.replace("principles.yaml", str(folder / "principles.yaml"))
    for name in RECIPES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "principles.yaml").write_text(yaml.safe_dump(PRINCIPLES))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, model_folder) -> Path:
    """A folder with everything that the pages' commands use, among it two finished runs."""
    folder = tmp_path_factory.mktemp("documented")
    write_recipes(folder, model_folder("llama", True))
    write_data(folder)
    run(load_recipe(folder / "mine.yaml"), folder / "runs" / "mine")
    freeze_libraries()  # which this first run imported
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "quickstart")
    verdicts = (folder / "runs" / "mine" / "evaluation" / "verdicts.jsonl").read_text()
    (folder / "VERDICTS.jsonl").write_text(verdicts)
    (folder / "human-verdicts.jsonl").write_text(verdicts.replace('"verifier"', '"human"'))
    return folder


@pytest.fixture(scope="module")
def done() -> dict[tuple[str, ...], int]:
    """The exit code of each command that ran; a command that several pages show runs once."""
    return {}


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sami-in-a-test", *words[1:]])
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a conversation ends at once
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, workplace, done, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    if page.name == "data.md":  # its commands write principles.yaml, which other pages read
        monkeypatch.chdir(shutil.copytree(workplace, tmp_path / "work", symlinks=True))
        Path("principles.yaml").unlink()
    if page.name == "report.md" and not Path("runs/lower-rate").exists():  # a run of another page
        shutil.copytree("runs/quickstart", "runs/lower-rate")
    for block in blocks(page):
        if block.is_commands and block.note != "not run":
            for words in block.commands:
                if words[0] in ("make", "pip"):  # their targets and extras are checked with the pages
                    continue
                assert words[0] == "sami", f"{block.where}: {words[0]} is not run; say why above the block"
                if tuple(words) not in done:
                    done[tuple(words)] = run_command(words, monkeypatch)
                accepted = {0, 2} if block.note == "may exit 2" else {0}
                assert done[tuple(words)] in accepted, f"{block.where}: {' '.join(words)}"
        elif block.language == "python" and block.note != "not run":
            exec(compile(block.text, block.where, "exec"), {"__name__": "documented"})
