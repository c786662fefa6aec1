"""Starts the processes that train an iteration; each runs `python -m sami.loop.worker RECIPE RUN ITERATION`.

The processes find everything in the run's folder. If one of them refuses to go on, it writes its message to a file
that the parent reads, so that users see the same message as from a single process. With several nodes, each calls
`train` with its rank, and torchrun connects their processes.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from sami.errors import InputError
from sami.processes import end_with_parent
from sami.recipe import Launch, Recipe, dump_recipe

MESSAGE_FILE = "SAMI_MESSAGE_FILE"
# Seconds to wait for the other machines: machine 0 calls when all is ready, the others may come much earlier.
_WAIT_FOR_OTHERS = 1800
_WAIT_FOR_FIRST = 7 * 24 * 3600


def train(recipe: Recipe, folder: Path, iteration: int) -> None:
    """Train one iteration of a run in the processes of this machine, together with those of the others.

    They end with this process, however it ends.

    Raises:
        InputError: more processes than GPUs, no address to meet at, or whatever a process refused.
    """
    require_machines(recipe.launch)
    processes = recipe.launch.processes
    command = [sys.executable, "-m", "torch.distributed.run", *meeting(recipe.launch, iteration)]
    command += ["--nproc-per-node", str(processes)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    with tempfile.TemporaryDirectory(prefix="sami-launch-") as workplace:
        message, resolved = Path(workplace) / "message", Path(workplace) / "recipe.yaml"
        resolved.write_text(dump_recipe(recipe), encoding="utf-8")  # data may lie elsewhere than when the run began
        command += ["-m", "sami.loop.worker", str(resolved), str(folder), str(iteration)]
        environment = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"} | os.environ
        done = subprocess.run(
            command,
            env=environment | {MESSAGE_FILE: str(message)},
            stdout=sys.stderr,
            check=False,
            preexec_fn=end_with_parent,
        )
        if message.is_file():
            raise InputError(message.read_text(encoding="utf-8"))
    if done.returncode != 0:
        raise RuntimeError(f"Training in {processes} processes ended with exit code {done.returncode}; see above.")


def this_process() -> int:
    """Which of the processes that train this one is, counted over all machines."""
    return int(os.environ["RANK"])


def require_machines(launch: Launch) -> None:
    """Check that the processes can start, before hours of generation rather than after.

    Raises:
        InputError: more processes than GPUs, or several machines and no address.
    """
    if torch.cuda.is_available() and launch.processes > torch.cuda.device_count():
        raise InputError(
            f"launch.processes is {launch.processes}, but this machine has {torch.cuda.device_count()} GPUs, and each "
            f"process needs its own. Lower launch.processes."
        )
    meeting(launch, iteration=1)


def meeting(launch: Launch, iteration: int) -> list[str]:
    """The torchrun options by which its processes find those of other machines.

    Raises:
        InputError: several machines and no address.
    """
    if launch.nodes == 1:
        return ["--standalone"]
    if launch.address is None:
        raise InputError(
            f"launch.nodes is {launch.nodes}, so the machines need an address to meet at. Start the command on each "
            f"of them with launch.rank=0 to {launch.nodes - 1} and the same launch.address=HOST:PORT of machine 0."
        )
    host, _, port = launch.address.rpartition(":")
    # A port for each iteration: a machine that is early must not meet the processes of the last one.
    options = ["--nnodes", str(launch.nodes), "--node-rank", str(launch.rank)]
    options += ["--master-addr", host, "--master-port", str(int(port) + iteration)]
    return [*options, "--rdzv-conf", f"timeout={_WAIT_FOR_OTHERS if launch.rank == 0 else _WAIT_FOR_FIRST}"]
