"""The commands, options and settings that the pages name exist, and the documented commands run."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sami.cli import app, main
from sami.principles import Principle
from sami.recipe import Recipe, describe
from tests.support.documentation import PAGES, ROOT, Block, blocks, inline

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
SHELL = [block for page in PAGES for block in blocks(page) if block.is_commands]
SAMI = [(block, words) for block in SHELL for words in block.commands if words[0] == "sami"]
SECTIONS = {name: field for name, field in Recipe.model_fields.items() if name != "principles"}


def named(block: Block | Path) -> str:
    return block.where if isinstance(block, Block) else block.name


# Commands and settings exist.


@pytest.mark.parametrize(("block", "words"), SAMI, ids=[f"{b.where}-{' '.join(w)[:40]}" for b, w in SAMI])
def test_a_command_of_a_block_is_one(block: Block, words: list[str]) -> None:
    if words[1] == "--help":
        return
    assert words[1] in COMMANDS, block.where
    arguments = words[2 : next((n for n, word in enumerate(words) if word in ("&", "|", ">")), None)]
    if "--help" not in arguments:
        COMMANDS[words[1]].make_context(words[1], list(arguments))
    for key in re.findall(r"^([a-z_]+(?:\.[a-z_0-9]+)*)=", "\n".join(arguments), re.MULTILINE):
        if block.note != "may exit 2":
            assert_key(key)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_options_named_in_prose_exist(page: Path) -> None:
    for text in inline(page):
        words = text.replace("'", "").split()
        if words[:1] != ["sami"] or len(words) == 1 or not words[1][0].islower():
            continue
        assert words[1] in COMMANDS, text
        known = {name for one in COMMANDS[words[1]].params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_settings_named_in_prose_exist(page: Path) -> None:
    pattern = rf"^((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)(?:=.*)?$"
    for text in inline(page):
        if (match := re.match(pattern, text)) and not match[1].endswith((".jsonl", ".safetensors", ".md", ".json")):
            assert_key(match[1])


def assert_key(key: str) -> None:
    try:
        assert describe(key), f"{key} has no description"
    except KeyError:
        pytest.fail(f"{key} is not a key of a recipe")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_recipes_and_principles_in_blocks_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language not in ("yaml", "yml"):
            continue
        value = yaml.safe_load(block.text)
        if isinstance(value, dict) and set(value) <= set(Recipe.model_fields):
            Recipe.model_validate({"model": "m", "queries": {"path": "q"}, "principles": "p", **value})
        elif isinstance(value, list) and "…" not in block.text:
            for principle in value:
                Principle.model_validate(principle)


def test_what_is_not_a_command_of_sami_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in SHELL:
        for words in block.commands:
            if words[0] == "make":
                assert words[1] in targets, block.where
            elif words[:2] == ["pip", "install"]:
                for wanted in re.findall(r"^sami\[(.+)\]$", "\n".join(words), re.MULTILINE):
                    assert set(wanted.split(",")) <= set(extras), block.where
            elif words[:2] == ["python", "-m"] and words[2].startswith("bench."):
                assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), block.where


# The commands run.

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
# Models that the pages name, as folders of tiny random ones.
MODELS = [f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in ("135M", "360M", "1.7B")]
RECIPES = ["mine.yaml", "quickstart", "helpful", "recipes/quickstart.yaml"]


def jsonl(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str, bool], Path]) -> Path:
    """Where the pages' commands work on tiny models: files stand where packaged recipes and hub ids would."""
    folder = tmp_path_factory.mktemp("documented")
    tiny = model_folder("llama", True)
    for model in MODELS:
        (folder / model).parent.mkdir(exist_ok=True)
        (folder / model).symlink_to(tiny)
    topics = ("bread", "rain", "tea", "maps", "bees", "salt", "wool", "clocks")
    queries = [f"Why do {who} like {topic}?" for who in ("people", "cats", "kings", "we", "they") for topic in topics]
    jsonl(folder / "queries.jsonl", [{"id": f"q{n}", "query": query} for n, query in enumerate(queries)])
    jsonl(folder / "posts.jsonl", [{"id": f"q{n}", "post": query} for n, query in enumerate(queries)])
    jsonl(folder / "helpful_queries.jsonl", [{"query": query} for query in queries])
    (folder / "questions.csv").write_text("question\n" + "\n".join(queries) + "\n")
    (folder / "principles.yaml").write_text(yaml.safe_dump(PRINCIPLES))
    for name, text in (("new", "It is {}."), ("newer", "{}!"), ("old", "It is {}, as we will see in a moment.")):
        constitution = PRINCIPLES[0]["definition"]
        rows = [{"id": f"q{n}", "constitution": constitution, "response": text.format(n)} for n in range(len(queries))]
        jsonl(folder / f"{name}.jsonl", rows)
    names = ("brief", "kind")
    positive, negative = (
        "\n".join(f"{n}. Be {word}{name}." for n, name in enumerate(names, 1)) for word in ("", "not ")
    )
    marked = {side: [f"{side[:3]} {name}" for name in names] for side in ("positive", "negative")}
    (folder / "constitutions" / "opus").mkdir(parents=True)
    (folder / "constitutions" / "opus" / "0.json").write_text(
        json.dumps({"positive": positive, "negative": negative, "identifiers": marked})
    )
    prompts = [f"Constitution:\n1. Be {word}brief.\n\nHuman: Why?\n\nAssistant:" for word in ("", "not ")]
    rows = [{"prompt": prompt, "response": "So.", "example_id": 0} for prompt in prompts]
    (folder / "contrasts.json").write_text(json.dumps({"0": rows}))
    filters = ("empty", "identical", "unfinished", "stop_leftovers", "loops", "leaks")
    recipe = {
        "model": {"source": str(tiny), "dtype": "float32"},
        "queries": {"path": str(folder / "queries.jsonl"), "train": 36, "evaluation": 3},
        "principles": str(folder / "principles.yaml"),
        "generation": {"max_new_tokens": 6, "batch_size": 16},
        "filters": {**dict.fromkeys(filters, False), "min_survivors": 0.0},
        "training": {"iterations": 2, "steps": [2, 3], "batch_size": 4, "micro_batch_size": 2, "lr": 3e-3},
        "evaluation": {"principles_per_query": 3, "health_queries": 2, "bootstrap_samples": 100},
    }
    for name in RECIPES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(yaml.safe_dump(recipe))
    from sami import load_recipe, run

    run(load_recipe(folder / "mine.yaml"), folder / "runs" / "mine")
    shutil.copytree(folder / "runs" / "mine", folder / "runs" / "quickstart")
    verdicts = (folder / "runs" / "mine" / "evaluation" / "verdicts.jsonl").read_text()
    (folder / "VERDICTS.jsonl").write_text(verdicts)
    (folder / "human-verdicts.jsonl").write_text(verdicts.replace('"verifier"', '"human"'))
    return folder


@pytest.fixture
def at_work(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, and in it."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sami-in-a-test", *words[1:]])
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a conversation ends at once
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_commands_of_a_page_run(page: Path, at_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "data.md":  # its commands write this file
        (at_work / "principles.yaml").unlink()
    if page.name == "report.md":  # compares two runs
        shutil.copytree(at_work / "runs" / "quickstart", at_work / "runs" / "lower-rate")
    for block in blocks(page):
        if block.is_commands and block.note != "not run":
            for words in block.commands:
                if words[0] in ("make", "pip"):  # their targets and extras are checked above
                    continue
                assert words[0] == "sami", f"{block.where}: {words[0]} is not run; say why above the block"
                code = run_command(words, monkeypatch)
                assert code in ({0, 2} if block.note == "may exit 2" else {0}), f"{block.where}: {' '.join(words)}"
        elif block.language == "python" and block.note != "not run":
            exec(compile(block.text, block.where, "exec"), {"__name__": "documented"})


@pytest.mark.slow
def test_the_site_builds_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {file.name: file.read_text() for file in (tmp_path / "site").glob("*.html")}
    for page in PAGES[1:]:
        assert f"{page.stem}.html" in pages
    for name, html in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="?https?:', html), name
        assert not re.findall(r'<link[^>]+rel="?(?:stylesheet|preload|icon)"?[^>]+href="?https?:', html), name
    for key in [*Recipe.model_fields, "max_new_tokens", "calibration_pairs", "key_variable", "first_contrasts"]:
        assert f'<code class="key">{key}</code>' in pages["recipe.html"]
    for command_name in COMMANDS:
        assert f"sami {command_name}" in pages["commands.html"]
    assert "information_bound" in pages["api.html"]
    assert 'viewBox="0 0 760 300"' in pages["how-it-works.html"]
