"""Scripts that several processes run together, as `torchrun` or `accelerate launch` starts them."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.support.places import ROOT

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]

_END = """
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes abort an interpreter that exits while they run
"""


def launch(folder: Path, script: str, *arguments: object, launcher: Sequence[str] = TORCHRUN) -> str:
    """What a script prints, run by each of two processes, or by one if the launcher is empty."""
    file = folder / "launched.py"
    file.write_text(
        f"import json, os, pathlib, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport torch\n"
        + textwrap.dedent(script)
        + _END
    )
    module = ["-m", *launcher] if launcher else []
    done = subprocess.run(
        [sys.executable, *module, str(file), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder)},  # without this machine's configuration
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
