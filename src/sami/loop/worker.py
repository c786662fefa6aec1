"""One of the processes that train an iteration: `python -m sami.loop.worker RECIPE RUN ITERATION`.

What it refuses is written to the file that the parent process reads, so that a person gets the same message as from
one process.
"""

import atexit
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from sami.console import console
from sami.errors import InputError
from sami.loop.context import Run
from sami.loop.launch import MESSAGE_FILE
from sami.loop.train import train_model
from sami.recipe import Launch, load_recipe


def _require_processes(launch: Launch) -> None:
    started = int(os.environ["WORLD_SIZE"])
    if started != launch.total:
        raise InputError(
            f"{launch.described}, and {started} processes met. Give every machine the same launch.processes and "
            f"launch.nodes."
        )


def train_in_process(recipe: Path, folder: Path, iteration: int) -> None:
    console.quiet = os.environ["RANK"] != "0"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before weights are loaded
    try:
        run = Run.start(load_recipe(recipe), folder)
        run.directory.require_recipe(run.recipe)  # of machine 0, which wrote it
        _require_processes(run.recipe.launch)
        train_model(run, iteration)
    except InputError as error:
        with suppress(FileExistsError), Path(os.environ[MESSAGE_FILE]).open("x", encoding="utf-8") as file:
            file.write(str(error))  # the first process that has something to say
        raise
    torch.distributed.barrier()
    atexit._run_exitfuncs()  # trackers flush their buffers
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo threads that are still alive at interpreter exit occasionally abort it


if __name__ == "__main__":
    train_in_process(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
