"""Training in several processes, started by a run: each is `python -m sami.launch RUN ITERATION`.

The processes find everything in the run's folder. What one of them cannot do is written to a file that the
parent reads, so that a person gets the same message as from one process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sami.errors import InputError
from sami.progress import console
from sami.recipe import load_recipe

_MESSAGE_FILE = "SAMI_MESSAGE_FILE"


def train(folder: Path, iteration: int, processes: int) -> None:
    """Train one iteration of a run in several processes of this machine.

    Raises:
        InputError: more processes than GPUs, or whatever a process refused.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(
            f"launch.processes is {processes}, and this machine has {torch.cuda.device_count()} GPUs. Each process "
            f"needs a GPU of its own: lower launch.processes."
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "sami.launch", str(folder), str(iteration)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with tempfile.TemporaryDirectory(prefix="sami-launch-") as workplace:
        message = Path(workplace) / "message"
        environment = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
        done = subprocess.run(command, env=environment | {_MESSAGE_FILE: str(message)}, stdout=sys.stderr, check=False)
        if message.is_file():
            raise InputError(message.read_text(encoding="utf-8"))
    if done.returncode != 0:
        raise RuntimeError(f"Training in {processes} processes ended with exit code {done.returncode}; see above.")


def _process(folder: Path, iteration: int) -> None:
    console.quiet = os.environ["RANK"] != "0"
    from sami.pipeline import Pipeline

    try:
        Pipeline(load_recipe(folder / "recipe.yaml"), folder).train_model(iteration)
    except InputError as error:
        if os.environ["RANK"] == "0":
            Path(os.environ[_MESSAGE_FILE]).write_text(str(error), encoding="utf-8")
        raise
    torch.distributed.barrier()
    sys.stderr.flush()
    os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then


if __name__ == "__main__":
    _process(Path(sys.argv[1]), int(sys.argv[2]))
