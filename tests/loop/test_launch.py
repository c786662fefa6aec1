"""Training on several machines: two of them, played by two commands that meet over loopback."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sami.errors import InputError
from sami.loop.launch import meeting
from sami.pipeline import Pipeline
from sami.recipe import Launch, load_recipe
from tests.support.command_line import refused
from tests.support.places import DOCS
from tests.support.recipes import write_recipe

SCRIPTS = DOCS / "slurm"
# Sums in another order, in fp32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("recipe"), model_folder("llama", True), training__steps=[6, 3], launch__nodes=2
    )


def losses(run: Path) -> list[float]:
    """Of all steps of all iterations."""
    files = sorted(run.glob("iteration-*/metrics.jsonl"))
    return [json.loads(line)["loss"] for file in files for line in file.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def same_training(ours: Path, theirs: Path, steps: int) -> None:
    """Two runs took the same steps to the same weights, and the steps could have differed."""
    assert len(losses(ours)) == steps
    assert losses(ours) == pytest.approx(losses(theirs), abs=TOLERANCE)
    assert max(losses(ours)) - min(losses(ours)) > 1000 * TOLERANCE
    models = sorted(run_model.relative_to(theirs) for run_model in theirs.glob("iteration-*/model/model.safetensors"))
    assert models
    for model in models:
        a, b = load_file(ours / model), load_file(theirs / model)
        assert a.keys() == b.keys()
        assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-3


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory) -> Path:
    """The same run by one process on one machine. Tests read it only."""
    folder = tmp_path_factory.mktemp("one") / "run"
    Pipeline(load_recipe(recipe, ["launch.nodes=1"]), folder).run()
    return folder


@pytest.mark.slow
def test_two_machines_train_the_trajectory_of_one_process(recipe, one_process, tmp_path):
    both = tmp_path / "both"
    command = [sys.executable, "-m", "sami.cli", "run", str(recipe), "--output", str(both)]
    command += ["--json", f"launch.address=127.0.0.1:{free_port()}"]
    machines = [
        subprocess.Popen(
            [*command, f"launch.rank={rank}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in (1, 0)
    ]
    (said_1, progress_1), (said_0, progress_0) = [machine.communicate(timeout=400) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], progress_1 + progress_0
    assert progress_1.count("machine 1 of 2 waits for machine 0") == 2  # once an iteration
    assert said_1 == ""
    summary = json.loads(said_0)
    assert [policy["name"] for policy in summary["policies"]] == ["base", "iteration-1", "iteration-2"]
    same_training(both, one_process, steps=9)


# Stand-ins for Slurm: machines are this one, and jobs run at once, one after another.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((id = 0; id < SLURM_JOB_NUM_NODES; id++)); do SLURM_NODEID=$id "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SBATCH = """#!/bin/bash
set -e
first=1 last=1
export SLURM_JOB_ID=$RANDOM SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here OMP_NUM_THREADS=1
while [[ $1 == --* ]]; do
    case $1 in
        --array=1-*) last=${1#--array=1-}; export SLURM_ARRAY_TASK_COUNT=$last ;;
        --nodes=*) export SLURM_JOB_NUM_NODES=${1#--nodes=} ;;
        --parsable | --dependency=afterok:[0-9]*) ;;
        *) echo "sbatch: $1?" >&2; exit 1 ;;
    esac
    shift
done
for ((task = first; task <= last; task++)); do SLURM_ARRAY_TASK_ID=$task bash "$@" >&2; done
echo "$(basename "$1") $*" >> "$JOBS"
echo "$SLURM_JOB_ID"
"""


def install(folder: Path, programs: dict[str, str]) -> None:
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a login node; its jobs are listed in the file $JOBS."""
    programs = {
        "srun": SRUN,
        "sbatch": SBATCH,
        "scontrol": "#!/bin/sh\necho 127.0.0.1\n",
        "sami": f'#!/bin/sh\nexec {sys.executable} -m sami.cli "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    install(tmp_path, programs)
    return os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "JOBS": str(tmp_path / "jobs")}


@pytest.mark.slow
def test_the_slurm_scripts_give_the_run_of_one_process(recipe, one_process, tmp_path, slurm):
    # The first iteration by a chain of jobs, the second by the run that ends it, on one machine.
    chain = ["bash", str(SCRIPTS / "iterations.sh"), "1", "2", "2", str(recipe), "--output", str(tmp_path / "run")]
    done = subprocess.run(chain, capture_output=True, text=True, check=False, env=slurm, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = [line.split()[0] for line in Path(slurm["JOBS"]).read_text().splitlines()]
    assert jobs == ["shards.sbatch", "merge.sbatch", "nodes.sbatch", "nodes.sbatch"]
    same_training(tmp_path / "run", one_process, steps=9)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (tmp_path / "run", one_process))
    bounds = [[policy["information"]["bound"] for policy in summary["policies"]] for summary in (ours, theirs)]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-3)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_slurm_scripts_parse_and_stop_at_the_first_failure(script):
    subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=True)
    assert "\nset -euo pipefail\n" in (SCRIPTS / script).read_text()


def test_vllm_gets_all_gpus_of_the_ray_cluster_as_one_copy(tmp_path, slurm):
    programs = {
        "sami": 'printf "%s\\n" "$*" >> "$JOBS"',
        "ray": "exec true",
        "sleep": "exec true",  # the script gives the cluster time to start
        "hostname": "echo 127.0.0.1",
    }
    install(tmp_path, {name: f"#!/bin/bash\n{text}\n" for name, text in programs.items()})
    slurm |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    slurm |= {"SLURM_JOB_NODELIST": "here"}
    job = ["bash", str(SCRIPTS / "nodes-ray.sbatch"), "run", "paper/diverse-llama3-70b"]
    subprocess.run(job, check=True, env=slurm, timeout=60)
    started = [line.split() for line in (tmp_path / "jobs").read_text().splitlines()]
    assert len(started) == 2
    for rank, (command, name, *overrides) in enumerate(sorted(started)):
        assert command == "run"
        told = load_recipe(name, overrides)
        vllm = told.generation.vllm
        assert (told.generation.engine, vllm.ray, vllm.tensor_parallel, vllm.data_parallel) == ("vllm", True, 16, 1)
        assert (told.launch.rank, told.launch.total, told.launch.address) == (rank, 16, "127.0.0.1:20007")


def test_torchrun_is_told_where_to_meet():
    first = meeting(Launch(nodes=3, rank=0, address="10.0.0.7:29500"), iteration=2)
    last = meeting(Launch(nodes=3, rank=2, address="10.0.0.7:29500"), iteration=2)
    assert first[:8] == ["--nnodes", "3", "--node-rank", "0", "--master-addr", "10.0.0.7", "--master-port", "29502"]
    assert [a for a, b in zip(first, last, strict=True) if a != b] == ["0", "timeout=1800"]
    assert meeting(Launch(), iteration=1) == ["--standalone"]
    assert meeting(Launch(address="10.0.0.7:29500"), iteration=1) == ["--standalone"]  # a script with one machine


def test_several_machines_need_an_address(recipe, tmp_path):
    run = Pipeline(load_recipe(recipe), tmp_path / "run")
    with pytest.raises(InputError, match="need an address to meet at"):
        run.run()  # before anything is generated
    assert not (tmp_path / "run").exists()
    run.generate(1)
    with pytest.raises(InputError, match=r"need an address to meet at.*launch\.rank=0 to 1"):
        run.train(1)
    assert not (tmp_path / "run" / "iteration-1" / "model").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("launch.rank=2", "the ranks 0 to 1"),
        ("launch.address=somewhere", "launch.address"),
        ("launch={nodes: 3}", "batch_size is 4, and .* on 3 nodes"),
        ("training.beta=0.1", "beta is 0.1, and .* on 2 nodes"),
    ],
)
def test_machines_that_cannot_work_together_are_refused(recipe, override, said):
    with pytest.raises(InputError, match=said):
        load_recipe(recipe, [override])


def test_another_machine_than_the_first_only_trains(sami, recipe):
    for command in ("generate", "evaluate"):
        refused(sami(command, recipe, "launch.rank=1"), "only rank 0 runs this command")


def test_a_machine_with_another_recipe_is_refused(recipe, tmp_path):
    run = tmp_path / "run"
    Pipeline(load_recipe(recipe), run).generate(1)
    other = Pipeline(load_recipe(recipe, ["training.lr=1e-4", "launch.rank=1", "launch.address=a:1"]), run)
    with pytest.raises(InputError) as caught:
        other.directory.require_recipe(other.recipe)
    assert "training.lr" in str(caught.value)
    assert "launch" not in str(caught.value)
