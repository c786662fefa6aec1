"""Training in several processes, started by a run: each is `python -m sami.launch RECIPE RUN ITERATION`.

The processes find everything in the run's folder. What one of them cannot do is written to a file that the
parent reads, so that a person gets the same message as from one process.
"""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from sami.errors import InputError
from sami.progress import console
from sami.recipe import Recipe, dump_recipe, load_recipe

_MESSAGE_FILE = "SAMI_MESSAGE_FILE"


def train(recipe: Recipe, folder: Path, iteration: int, processes: int) -> None:
    """Train one iteration of a run in several processes of this machine.

    They end with this process, however it ends.

    Raises:
        InputError: more processes than GPUs, or whatever a process refused.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise InputError(
            f"launch.processes is {processes}, and this machine has {torch.cuda.device_count()} GPUs. Each process "
            f"needs a GPU of its own: lower launch.processes."
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with tempfile.TemporaryDirectory(prefix="sami-launch-") as workplace:
        message, resolved = Path(workplace) / "message", Path(workplace) / "recipe.yaml"
        resolved.write_text(dump_recipe(recipe), encoding="utf-8")  # data may lie elsewhere than when the run began
        command += ["-m", "sami.launch", str(resolved), str(folder), str(iteration)]
        environment = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
        done = subprocess.run(
            command,
            env=environment | {_MESSAGE_FILE: str(message)},
            stdout=sys.stderr,
            check=False,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        if message.is_file():
            raise InputError(message.read_text(encoding="utf-8"))
    if done.returncode != 0:
        raise RuntimeError(f"Training in {processes} processes ended with exit code {done.returncode}; see above.")


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent ends; the launcher then stops its processes."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _process(recipe: Path, folder: Path, iteration: int) -> None:
    console.quiet = os.environ["RANK"] != "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before weights are loaded
    from sami.pipeline import Pipeline

    try:
        Pipeline(load_recipe(recipe), folder).train_model(iteration)
    except InputError as error:
        with suppress(FileExistsError), Path(os.environ[_MESSAGE_FILE]).open("x", encoding="utf-8") as file:
            file.write(str(error))  # the first process that has something to say
        raise
    torch.distributed.barrier()
    atexit._run_exitfuncs()  # trackers send what they hold
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then


if __name__ == "__main__":
    _process(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
