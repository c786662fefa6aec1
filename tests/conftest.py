"""No test touches a hub or the user's cache; the tiny tokenizer and model folders are built once."""

import os
import sys

# Read by the libraries at import, so set before any of them is loaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from a second thread

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.garbage import freeze_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from sami.recipe import Recipe


@pytest.fixture(scope="session", autouse=True)
def sami_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `sami` keeps fetched weights: a folder of this session."""
    folder = tmp_path_factory.mktemp("sami-cache")
    os.environ["SAMI_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def frozen_libraries() -> None:
    freeze_libraries()


@pytest.fixture(scope="session")
def chat_tokenizer() -> "PreTrainedTokenizerFast":
    from tests.support.tiny import tiny_tokenizer

    return tiny_tokenizer(chat=True)


@pytest.fixture(scope="session")
def plain_tokenizer() -> "PreTrainedTokenizerFast":
    from tests.support.tiny import tiny_tokenizer

    return tiny_tokenizer(chat=False)


@pytest.fixture
def llama() -> "PreTrainedModel":
    from tests.support.tiny import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """`model_folder(architecture, chat)`: a saved tiny model, written at first use. Tests read it only."""
    from tests.support.tiny import save_tiny

    made: dict[tuple[str, bool], Path] = {}

    def folder(architecture: str = "llama", chat: bool = True) -> Path:
        if (architecture, chat) not in made:
            made[architecture, chat] = save_tiny(
                tmp_path_factory.mktemp("models") / f"{architecture}-{'chat' if chat else 'plain'}", architecture, chat
            )
        return made[architecture, chat]

    return folder


@pytest.fixture(scope="session")
def report_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run made of files alone, see `report_runs`. Tests add nothing to it but report.html."""
    from tests.support.report_runs import make_run

    return make_run(tmp_path_factory.mktemp("report-runs") / "finished")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str, bool], Path]) -> Path:
    """The folder of a finished run of two iterations on a tiny model. Tests read it only."""
    from sami.pipeline import run
    from sami.recipe import load_recipe
    from tests.support.recipes import write_recipe

    folder = tmp_path_factory.mktemp("finished-run")
    run(load_recipe(write_recipe(folder / "recipe", model_folder("llama", True))), folder / "run")
    return folder / "run"


@pytest.fixture
def tiny_recipe(tmp_path: Path, model_folder: Callable[[str, bool], Path]) -> "Callable[..., Recipe]":
    """`tiny_recipe(section__key=value)`: a recipe of two short iterations on a tiny model, see `write_recipe`."""
    from sami.recipe import load_recipe
    from tests.support.recipes import write_recipe

    return lambda architecture="llama", chat=True, **changes: load_recipe(
        write_recipe(tmp_path, model_folder(architecture, chat), **changes)
    )


@pytest.fixture
def sami(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`sami("run", …)`: exit code, stdout and stderr of the command, in this process."""

    from sami.cli import main

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sami-in-a-test", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
