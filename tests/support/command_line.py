"""The command line called in this process, and what a refusal must look like."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Sami = Callable[..., tuple[int, str, str]]


def process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sami")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, **options)


def refused(result: tuple[int, str, str], *words: str) -> str:
    """The message, after checking that there is nothing else."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.startswith("sami: ") or "\nsami: " in err
    for word in words:
        assert word in err, err
    return err
