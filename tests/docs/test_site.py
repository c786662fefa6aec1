"""The site builds without warnings, and its pages make no network requests."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import typer

from sami.cli import app
from sami.recipe import Recipe
from tests.support.documentation import PAGES, ROOT


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install 'sami[docs]'")
def test_the_site_builds_and_makes_no_requests(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {file.name: file.read_text() for file in (tmp_path / "site").glob("*.html")}
    assert {f"{page.stem}.html" for page in PAGES[1:]} <= set(pages)
    for name, html in pages.items():
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="?https?:', html), name
        assert not re.findall(r'<link[^>]+rel="?(?:stylesheet|preload|icon)"?[^>]+href="?https?:', html), name
    for key in [*Recipe.model_fields, "max_new_tokens", "calibration_pairs", "key_variable", "first_contrasts"]:
        assert f'<code class="key">{key}</code>' in pages["recipe.html"]
    for name in typer.main.get_command(app).commands:
        assert f"sami {name}" in pages["commands.html"]
    assert "information_bound" in pages["api.html"]
    assert 'viewBox="0 0 760 300"' in pages["how-it-works.html"]
