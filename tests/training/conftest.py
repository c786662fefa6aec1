"""`make`, which makes trainers."""

from functools import partial
from pathlib import Path

import pytest

from tests.support.training import Make, make_trainer


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`make(contrasts, steps, …)`: a trainer of the tiny llama in fp32, at a learning rate that moves it."""
    return partial(make_trainer, tmp_path / "trainer")
