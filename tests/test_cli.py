"""The command line: what it prints where, and that bad input is a message and exit code 2."""

import html
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import process, refused
from tests.support.recipes import timeless, write_recipe

COMMANDS = ("run", "plan", "generate", "train", "evaluate", "judge", "winrate", "probe", "write-principles")
COMMANDS += ("import-principles", "try", "inspect", "push", "report")


@pytest.fixture
def recipe(tmp_path, model_folder) -> Path:
    return write_recipe(tmp_path / "recipe", model_folder("llama", True))


# Help.


def test_help_has_an_example_for_each_command_and_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from sami.cli import main\n"
        "for arguments in (['--help'], *([command, '--help'] for command in sys.argv[1:])):\n"
        "    sys.argv = ['sami', *arguments]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "set()")
    listed, *pages = done.stdout.split("Usage: ")[1:]
    for command, page in zip(COMMANDS, pages, strict=True):
        assert f" {command} " in listed
        assert f"Example: sami {command} " in page


def test_a_wrong_recipe_is_refused_without_torch(recipe):
    code = "import sys; from sami.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(recipe), "training.rate=1"],
        capture_output=True,
        text=True,
        check=False,
        cwd=recipe.parent,
    )
    refused((done.returncode, done.stdout, done.stderr), "training.rate")
    assert {p.name for p in recipe.parent.iterdir()} == {"tiny.yaml", "queries.jsonl", "principles.yaml"}


# Bad input.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.step=3", ["training.step", "'steps'"]),
        ("queries.train=900", ["900 training", "12"]),
        ("queries.field=question", ["'question'", "'query'"]),
        ("queries.path=nowhere.jsonl", ["nowhere.jsonl"]),
        ("principles=nowhere.yaml", ["nowhere.yaml", "principles"]),
        ("sampling.principles_per_constitution=4", ["principles_per_constitution is 4", "3 principles"]),
        ("model.source=/nowhere/model", ["/nowhere/model", "config.json"]),
    ],
)
def test_an_impossible_setting_is_refused(sami, recipe, tmp_path, override, words):
    output = tmp_path / "out"
    refused(sami("run", recipe, override, "--output", output), *words)
    assert not output.exists()


@pytest.mark.parametrize("key", ["", "queries.path=", "principles=", "model.source="])
def test_a_name_that_no_file_can_have_is_refused(sami, recipe, key):
    name = key + "a" * 300
    refused(sami("plan", recipe, name) if key else sami("plan", name), "name too long", "aaaa", "Correct it.")


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_written(sami, recipe, tmp_path):
    with (recipe.parent / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"query": f"{n} " + "Why? " * 400}) + "\n" for n in range(12))
    refused(sami("run", recipe, "--output", tmp_path / "out"), "tokens", "is 1024 tokens", "queries.max_chars")
    assert not (tmp_path / "out").exists()


def test_filters_that_leave_too_little_are_refused_with_counts(sami, recipe, tmp_path):
    arguments = ["run", recipe, "filters.unfinished=true", "--output", tmp_path / "out"]
    refused(sami(*arguments), "unfinished 9", "of 9 contrasts", "generation.max_new_tokens")


def test_a_usage_error_has_exit_code_2(sami):
    code, out, err = sami("generate", "quickstart", "--iteration", "0")
    assert (code, out) == (2, "")
    assert "iteration" in err


# The output folder.


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk that holds responses and contrasts, and no model."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None or os.geteuid() != 0, reason="a small tmpfs needs root")
def test_a_full_disk_is_an_error_after_which_the_run_continues(sami, recipe, small_disk):
    arguments = ["run", recipe, "training.iterations=1", "training.steps=1", "--output", small_disk / "out", "--json"]
    code, out, err = sami(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "disk is full" in err
    assert "run the same command" in err
    assert not [p for p in (small_disk / "out").rglob("*") if p.name.endswith(".tmp")]
    finished = (small_disk / "out" / ".steps" / "generate-1.json").stat().st_mtime_ns
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    code, out, err = sami(*arguments)
    assert code == 0, err
    assert [p["name"] for p in json.loads(out)["policies"]] == ["base", "iteration-1"]
    assert (small_disk / "out" / ".steps" / "generate-1.json").stat().st_mtime_ns == finished


# From end to end.


@pytest.fixture(scope="module")
def complete(tmp_path_factory, model_folder) -> tuple[Path, Path, dict[str, Any]]:
    """Recipe, folder and summary of a run by the installed command, with `--json`."""
    place = tmp_path_factory.mktemp("cli")
    recipe = write_recipe(place, model_folder("llama", True))
    done = process("run", recipe, "--output", place / "run", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "iteration 1" in done.stderr  # progress is there, and on stdout nothing but JSON
    return recipe, place / "run", json.loads(done.stdout)


def test_run_prints_the_summary_as_json(complete):
    _, folder, printed = complete
    assert printed == json.loads((folder / "summary.json").read_text())
    assert [p["name"] for p in printed["policies"]] == ["base", "iteration-1", "iteration-2"]


def test_run_again_prints_the_table_and_the_verdict(sami, complete, monkeypatch):
    recipe, folder, summary = complete
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = sami("run", recipe, "--output", folder)
    assert code == 0
    base = summary["policies"][0]["information"]
    for expected in (
        "iteration-2",
        "under frozen base",
        f"{base['bound']:.3f} [{base['low']:.3f}, {base['high']:.3f}]",
        "learned principles, iteration-2 against base: bound",
        "held-out principles, iteration-2 against base: bound",
        summary["verdict"],
        str(folder / "summary.json"),
        str(folder / "report.html"),
    ):
        assert expected in out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert summary["verdict"] in html.unescape(page)


def test_an_output_of_a_different_recipe_is_refused(sami, complete):
    recipe, folder, _ = complete
    before = (folder / "recipe.yaml").read_text()
    for command in ("run", "generate", "train", "evaluate"):
        refused(
            sami(command, recipe, "training.lr=1e-5", "--output", folder),
            "training.lr: [0.003] there, [1e-05] now",
            "--output",
        )
    assert (folder / "recipe.yaml").read_text() == before


def test_the_steps_in_sequence_give_the_summary_of_run(sami, complete, tmp_path):
    recipe, _, summary = complete
    output = ["--output", tmp_path / "out"]
    for iteration in (1, 2):
        code, out, err = sami("generate", recipe, "--iteration", iteration, *output)
        assert (code, out.strip()) == (0, str(tmp_path / "out" / f"iteration-{iteration}" / "contrasts.parquet")), err
        code, out, err = sami("train", recipe, "--iteration", iteration, *output)
        assert (code, out.strip()) == (0, str(tmp_path / "out" / f"iteration-{iteration}" / "model")), err
    code, out, err = sami("evaluate", recipe, "--json", *output)
    assert code == 0, err
    assert timeless(json.loads(out)) == timeless(summary)


def test_the_default_output_is_named_after_the_recipe(sami, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = sami("generate", recipe)
    assert (code, out.strip()) == (0, "runs/tiny/iteration-1/contrasts.parquet")
    assert (tmp_path / "runs" / "tiny" / "recipe.yaml").is_file()
