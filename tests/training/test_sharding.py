"""Two processes with sharded weights train as one does, and checkpoints are read by the names of their model."""

import json

import pytest
import torch
from safetensors.torch import load_file

from sami.training.checkpoint import trained_weights
from tests.support.launching import ACCELERATE, TORCHRUN, launch
from tests.support.tiny import ARCHITECTURES, tiny_model
from tests.support.training import contrasts_of, largest_difference

SHARDED = """
    from torch import distributed
    from sami.contrasts import collate
    from sami.models import attention, loading
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
        # Tied weights are still one weight, which one update moves.
        assert [name for name, _ in model.named_parameters()] == [name for name, _ in whole.named_parameters()]
        assert sharded.without_gradient(lambda m: check_packing(m, random_contrast(0), 2)).shared
        gathered = whole_weights(model)
        if first:
            assert all(torch.equal(gathered[name], weight) for name, weight in whole.state_dict().items())
    print("all equal")
"""


@pytest.mark.slow
def test_the_first_process_gives_its_weights_to_a_model_without_any(tmp_path):
    assert launch(tmp_path, SHARDED).count("all equal") == 2


TRAINED = """
    from torch.distributed.tensor import DTensor
    from transformers import Trainer
    from tests.support.training import contrasts_of, make_trainer, steps_logged

    out, settings = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    seen, world = [], int(os.environ.get("WORLD_SIZE", "1"))
    save = Trainer._save_rng_state

    def slow_in_the_second(self, folder):
        if self.args.process_index:
            import time
            time.sleep(1)
        save(self, folder)

    Trainer._save_rng_state = slow_in_the_second
    trainer = make_trainer(out, contrasts_of(32), per_device_train_batch_size=4 // world,
                           gradient_accumulation_steps=2, save_strategy="steps", save_steps=10, **settings)
    collate = trainer.data_collator
    trainer.data_collator = lambda chosen: seen.append([c.id for c in chosen]) or collate(chosen)
    checkpoint = out / "checkpoint-10"
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.is_dir() else None)
    assert trainer.args.world_size == world
    gathered = [seen]
    if world > 1:
        parameters = list(trainer.trained_model.parameters())
        assert all(isinstance(p, DTensor) for p in parameters)
        assert sum(p.to_local().numel() for p in parameters) < 0.6 * sum(p.numel() for p in parameters)
        gathered = [None] * world
        torch.distributed.all_gather_object(gathered, seen)
    trainer.save_model(str(out))
    if trainer.is_world_process_zero():
        (out / "steps.json").write_text(json.dumps(steps_logged(trainer)))
        (out / "seen.json").write_text(json.dumps(gathered))
"""
ADAM = {"optim": "adamw_torch_fused", "learning_rate": 3e-3}


@pytest.fixture
def run(tmp_path):
    """`run(name, launcher, …)`: weights, logged steps and the contrasts that each process saw."""

    def started(name, launcher, steps=20, **settings):
        out = tmp_path / name
        arguments = {"optim": "sgd", "learning_rate": 0.1, "max_steps": steps, **settings}
        launch(tmp_path, TRAINED, out, json.dumps(arguments), launcher=launcher)
        return load_file(out / "model.safetensors"), *(
            json.loads((out / f"{file}.json").read_text()) for file in ("steps", "seen")
        )

    return started


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_processes_train_to_the_weights_of_one(run, dtype):
    one, single, whole = run("one", [], compute_dtype=dtype)
    two, double, parts = run("two", TORCHRUN, compute_dtype=dtype)
    exact = dtype == "float32"
    assert largest_difference(one, two) < (1e-3 if exact else 5e-2)
    assert largest_difference(one, dict(tiny_model("llama").state_dict())) > 1e-2
    for ours, theirs in zip(single, double, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4 if exact else 5e-2)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-2 if exact else 0.5)
    # Every process has contrasts of its own, and together they are those of the one process.
    for step in range(20):
        seen = [ids for process in parts for micro in process[2 * step : 2 * step + 2] for ids in micro]
        assert len(set(seen)) == len(seen) == 8
        assert set(seen) == {ids for micro in whole[0][2 * step : 2 * step + 2] for ids in micro}


@pytest.mark.slow
def test_two_processes_resume_and_use_the_gradient_cache(run, tmp_path):
    straight, logged, _ = run("straight", TORCHRUN, **ADAM)
    run("stopped", TORCHRUN, steps=10, **ADAM)
    # The checkpoint counts as complete only when the slower process has written its part.
    state, part = (tmp_path / "stopped" / "checkpoint-10" / n for n in ("trainer_state.json", "rng_state_1.pth"))
    assert state.stat().st_mtime_ns > part.stat().st_mtime_ns
    resumed, again, _ = run("stopped", TORCHRUN, **ADAM)
    assert largest_difference(straight, resumed) == 0.0
    assert [step["loss"] for step in again] == [step["loss"] for step in logged]
    (plain, _, _), (cached, _, _) = (run(f"cache-{on}", ACCELERATE, gradient_cache=on) for on in (False, True))
    assert largest_difference(plain, cached) < 1e-3


# Checkpoints.


@pytest.mark.parametrize("architecture", ["mixtral", "gemma3"])
def test_a_model_that_is_saved_under_other_names_or_without_some_resumes(make, tmp_path, architecture):
    def weights(**settings):
        trainer = make(contrasts_of(8), 4, model=tiny_model(architecture), learning_rate=1e-2, **saving)
        trainer.train(**settings)
        return trainer.trained_model.state_dict()

    saving = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    straight = weights()
    resumed = weights(resume_from_checkpoint=str(tmp_path / "trainer" / "checkpoint-2"))
    assert all(torch.equal(straight[name], weight) for name, weight in resumed.items())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_is_read_by_the_names_of_its_model(tmp_path, architecture):
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    read = trained_weights(tiny_model(architecture, seed=1), tmp_path)
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], weight) for name, weight in model.state_dict().items())
