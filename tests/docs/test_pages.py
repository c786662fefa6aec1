"""Commands, options, settings, files and links on the pages exist in this version."""

import re
import tomllib

import pytest
import typer
import yaml

from sami.cli import app
from sami.principles import Principle
from sami.recipe import Recipe, describe
from tests.support.documentation import PAGES, anchors, blocks, inline, links
from tests.support.places import DOCS, ROOT, SOURCE

COMMANDS = typer.main.get_command(app).commands
SHELL = [block for page in PAGES for block in blocks(page) if block.is_commands]
SAMI = [(block, words) for block in SHELL for words in block.commands if words[0] == "sami"]
SECTIONS = "|".join(name for name in Recipe.model_fields if name != "principles")
GENERATED = ("recipe.md", "principles-file.md", "commands.md")  # by the hooks of the site
FILES = (".gguf", ".py", ".jsonl", ".json", ".yaml", ".safetensors", ".md")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def assert_key(key: str) -> None:
    try:
        assert describe(key), f"{key} has no description"
    except KeyError:
        pytest.fail(f"{key} is not a key of a recipe")


@pytest.mark.parametrize(("block", "words"), SAMI, ids=[f"{b.where}-{' '.join(w)[:40]}" for b, w in SAMI])
def test_commands_of_blocks_exist_and_take_their_arguments(block, words):
    assert words[1] in COMMANDS, block.where
    arguments = words[2 : next((n for n, word in enumerate(words) if word in ("&", "|", ">")), None)]
    COMMANDS[words[1]].make_context(words[1], list(arguments))
    for key in re.findall(r"^([a-z_]+(?:\.[a-z_0-9]+)*)=", "\n".join(arguments), re.MULTILINE):
        if block.note != "may exit 2":
            assert_key(key)


@pages
def test_commands_and_options_in_prose_exist(page):
    for text in inline(page):
        words = text.replace("'", "").split()
        if words[:1] != ["sami"] or len(words) == 1 or not words[1][0].islower():
            continue
        assert words[1] in COMMANDS, text
        known = {name for one in COMMANDS[words[1]].params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, text


@pages
def test_settings_in_prose_exist(page):
    for text in inline(page):
        match = re.match(rf"^((?:{SECTIONS})(?:\.[a-z_0-9]+)+)(?:[=:].*)?$", text)
        if match and not match[1].endswith(FILES):
            assert_key(match[1])


@pages
def test_recipes_and_principles_in_blocks_are_valid(page):
    for block in blocks(page):
        if block.language not in ("yaml", "yml"):
            continue
        value = yaml.safe_load(block.text)
        if isinstance(value, dict) and set(value) <= set(Recipe.model_fields):
            Recipe.model_validate({"model": "m", "queries": {"path": "q"}, "principles": "p", **value})
        elif isinstance(value, list) and "…" not in block.text:
            for principle in value:
                Principle.model_validate(principle)


def test_make_targets_extras_and_benchmarks_in_blocks_exist():
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


@pages
def test_links_and_anchors_resolve(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.name not in GENERATED:
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pages
def test_files_of_the_repository_named_on_a_page_exist(page):
    if page == DOCS / "decisions.md":  # a record; names are those of its dates
        return
    named = re.findall(r"(?<![\w./])((?:tests|docs|bench|src)/[\w/.-]*\w)", page.read_text(encoding="utf-8"))
    missing = [file for file in named if not (ROOT / file).exists()]
    assert not missing


def test_files_named_on_the_page_on_the_architecture_exist():
    named = [text for text in inline(DOCS / "architecture.md") if re.fullmatch(r"[\w/]+(\.py|/)", text)]
    missing = [name for name in named if not ((SOURCE / name).exists() or (ROOT / name).exists())]
    assert len(named) > 30
    assert not missing
