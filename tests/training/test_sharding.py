"""Weights that only the first process has, spread over the processes."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from sami.errors import InputError
from sami.training.checkpoint import trained_weights
from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.places import ROOT
from tests.support.tiny import ARCHITECTURES, random_contrast, tiny_model, tiny_tokenizer

SCRIPT = """
    import os, sys
    sys.path.insert(0, {tests!r})
    import torch
    from torch import distributed
    from sami.models import attention, loading
    from sami.contrasts import collate
    from sami.scoring import check_packing, logprob_matrix
    from sami.training.sharding import ShardedScorer, whole_weights
    from tests.support.tiny import ARCHITECTURES, random_contrast, tiny_model

    distributed.init_process_group("gloo")
    first = distributed.get_rank() == 0
    batch = collate([random_contrast(seed) for seed in range(2)], 2)
    for architecture in ARCHITECTURES:
        whole = tiny_model(architecture)
        model = tiny_model(architecture) if first else loading.empty_of(whole.config, dtype=torch.float32).eval()
        attention.install(model)
        sharded = ShardedScorer(model, torch.float32, torch.device("cpu"))
        scored = sharded.without_gradient(lambda m: logprob_matrix(m, batch))
        shards = sum(weight.to_local().numel() for weight in model.parameters())
        assert shards < 0.6 * sum(weight.numel() for weight in whole.parameters()), architecture
        assert torch.equal(scored, logprob_matrix(whole, batch)), architecture
        # Tied weights are one weight still, and one update moves both.
        assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
        assert sharded.without_gradient(lambda m: check_packing(m, random_contrast(0), 2)).shared
        gathered = whole_weights(model)
        if first:
            assert all(torch.equal(gathered[name], weight) for name, weight in whole.state_dict().items())
    print("all equal", flush=True)
    distributed.barrier()
    os._exit(0)  # threads of gloo that still stand at the interpreter's end abort it now and then
"""


@pytest.mark.slow
def test_weights_of_the_first_process_reach_a_model_without_any(tmp_path: Path) -> None:
    script = tmp_path / "shard.py"
    script.write_text(textwrap.dedent(SCRIPT).format(tests=str(ROOT)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stdout.count("all equal") == 2


def trained(tmp_path: Path, architecture: str, resume: bool = False) -> dict[str, torch.Tensor]:
    trainer = SAMITrainer(
        model=tiny_model(architecture),
        args=SAMIConfig(
            output_dir=str(tmp_path),
            max_steps=4,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            compute_dtype="float32",
            save_strategy="steps",
            save_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[random_contrast(seed) for seed in range(8)],
        processing_class=tiny_tokenizer(chat=False),
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None)
    return trainer.trained_model.state_dict()


@pytest.mark.parametrize("architecture", ["mixtral", "gemma3"])
def test_a_model_that_is_saved_under_other_names_or_without_some_resumes(tmp_path: Path, architecture: str) -> None:
    straight = trained(tmp_path, architecture)
    resumed = trained(tmp_path, architecture, resume=True)
    assert all(torch.equal(straight[name], weight) for name, weight in resumed.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_is_read_by_the_names_of_its_model(tmp_path: Path, architecture: str) -> None:
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    read = trained_weights(tiny_model(architecture, seed=1), tmp_path)
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], weight) for name, weight in model.state_dict().items())


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is of another model"):
        trained_weights(tiny_model("qwen3"), tmp_path)
