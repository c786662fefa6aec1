"""Training that someone interrupts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sami.training.metrics_log import Recorder


@contextmanager
def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the block training is interrupted before this step is logged, and the block must end by that."""
    on_log = Recorder.on_log

    def interrupted(self: Recorder, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        on_log(self, args, state, control, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield
