"""The settings in the tables of the page on the paper make recipes."""

import re
from pathlib import Path

import pytest

from sami.recipe import Recipe, load_recipe
from tests.support.places import DOCS

PAPER = (DOCS / "paper.md").read_text(encoding="utf-8")
ROWS = [line for line in PAPER.splitlines() if line.startswith("| ") and "`" in line]
SETTING = rf"`((?:{'|'.join(Recipe.model_fields)})[.a-z_]*=[^`]*)`"


@pytest.fixture
def recipe(tmp_path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text("model: some/model\nqueries: {path: some/queries}\nprinciples: p.yaml\n")
    return file


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_settings_of_a_row_make_a_recipe(recipe, row):
    for alternative in row.strip("| ").split(" | ")[-1].split(";"):
        load_recipe(recipe, re.findall(SETTING, alternative))


def test_there_are_settings_to_check():
    assert len(re.findall(SETTING, PAPER)) > 50


@pytest.mark.parametrize("claim", re.findall(rf"{SETTING} \(default\)", PAPER))
def test_a_setting_that_is_called_the_default_is_the_default(recipe, claim):
    assert load_recipe(recipe, [claim]) == load_recipe(recipe)
