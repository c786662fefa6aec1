"""What the documentation says of settings is true of this version."""

import re
from pathlib import Path
from typing import get_args

import pytest

from sami.recipe import Generation, describe, load_recipe
from tests.support.places import DOCS

SECTIONS = "model|queries|prompt|sampling|generation|filters|training|adapter|evaluation|health|launch"
ROWS = [line for line in (DOCS / "paper.md").read_text().splitlines() if line.startswith("| ") and "`" in line]


def settings(text: str) -> list[str]:
    """Overrides in backticks: section.key=value."""
    return re.findall(rf"`((?:{SECTIONS})[.a-z_]*=[^`]*)`", text)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text("model: some/model\nqueries: {path: some/queries}\nprinciples: p.yaml\n")
    return file


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_settings_of_a_row_make_a_recipe(recipe: Path, row: str) -> None:
    cell = row.strip("| ").split(" | ")[-1]
    for alternative in cell.split(";"):
        load_recipe(recipe, settings(alternative))


def test_there_are_settings_to_check() -> None:
    assert len([setting for row in ROWS for setting in settings(row)]) > 50


@pytest.mark.parametrize("page", ["paper.md", "data.md"])
def test_keys_that_are_named_exist(page: str) -> None:
    named = set(re.findall(rf"`((?:{SECTIONS})\.[a-z_.]+)", (DOCS / page).read_text()))
    assert named
    for key in named - {"queries.jsonl", "model.safetensors"}:
        assert describe(key), key


def test_a_default_that_is_called_one_is_one(recipe: Path) -> None:
    claims = re.findall(rf"`((?:{SECTIONS})[.a-z_]*=[^`]*)` \(default\)", (DOCS / "paper.md").read_text())
    assert len(claims) > 8
    for claim in claims:
        assert load_recipe(recipe, [claim]) == load_recipe(recipe), claim


def test_the_papers_engine_is_named_once_this_version_has_it(recipe: Path) -> None:
    known = "vllm" in get_args(Generation.model_fields["engine"].annotation)
    assert ("`generation.engine=vllm`" in (DOCS / "paper.md").read_text()) is known
