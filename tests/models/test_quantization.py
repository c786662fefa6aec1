"""An adapter trains on a base in 4 bits that never changes, and belongs to the base that is not quantised."""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast

from sami.contrasts import collate
from sami.costs.estimate import plan
from sami.errors import InputError
from sami.loop.context import Run
from sami.models import adapters, loading, quantization
from sami.models.structure import causal_lm
from sami.pipeline import run
from sami.recipe import Model, load_recipe
from sami.scoring.logprobs import logprob_matrix, token_logprobs
from sami.training.config import SAMIConfig
from sami.training.trainer import SAMITrainer
from tests.support.interruption import interrupted_at
from tests.support.recipes import write_recipe
from tests.support.tiny import PAD, random_contrast, tiny_model

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install 'sami[qlora]'",
)
Folder = Callable[[str, bool], Path]
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
CONTRASTS = [random_contrast(seed) for seed in range(4)]
RECIPE: dict[str, Any] = {"adapter__r": 4, "adapter__lora_alpha": 8, "adapter__quantize": "nf4"}
SHORT: dict[str, Any] = {
    "training__iterations": 1,
    "training__steps": 3,
    "evaluation__principles_per_query": 1,
    "queries__train": 4,
    "queries__evaluation": 2,
}


@pytest.fixture(scope="module")
def source(model_folder: Folder) -> Model:
    return Model(source=str(model_folder("llama", True)))


@pytest.fixture
def make(tmp_path: Path, plain_tokenizer: PreTrainedTokenizerFast) -> Callable[..., SAMITrainer]:
    def trainer(model: Any, config: LoraConfig | None = LORA, steps: int = 2, **arguments: Any) -> SAMITrainer:
        settings = {"output_dir": str(tmp_path), "max_steps": steps, "learning_rate": 1e-2, "use_cpu": True}
        settings |= {"per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True}
        return SAMITrainer(
            model=model,
            args=SAMIConfig(**settings | arguments),
            train_dataset=CONTRASTS,
            processing_class=plain_tokenizer,
            peft_config=config,
        )

    return trainer


def four_bit_weights(model: Any) -> dict[str, torch.Tensor]:
    """The codes and every figure that is needed to read them."""
    held = {}
    for name, weight in causal_lm(model).named_parameters():
        if quantization.is_packed(weight):
            state = weight.quant_state
            held |= {name: weight.detach().clone(), f"{name}.scales": state.absmax.clone()}
            held[f"{name}.scales of scales"] = state.state2.absmax.clone()
    return {name.replace(".base_layer", ""): value for name, value in held.items()}


def alike(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trained_adapter(trainer: SAMITrainer) -> dict[str, torch.Tensor]:
    return {n: w.detach().clone() for n, w in trainer.trained_model.named_parameters() if "lora_" in n}


# The base.


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_evaluation_pass_leaves_the_weights_and_is_the_training_pass(source: Model, dtype: torch.dtype) -> None:
    model = loading.load_model(source, dtype, quantize="nf4")
    before = four_bit_weights(model)
    assert len(before) == 3 * 2 * 7  # linear layers of width 32, narrower than a block
    batch = collate(CONTRASTS, PAD)
    with torch.no_grad():
        evaluated = logprob_matrix(model.eval(), batch)
    assert alike(before, four_bit_weights(model))
    assert torch.equal(logprob_matrix(model.train(), batch), evaluated)
    plain = logprob_matrix(loading.load_model(source, dtype), batch)
    assert 0.01 < (evaluated - plain).abs().max() < 1.5  # it is another model, and not a wreck


@needs_bitsandbytes
def test_shared_rows_score_and_differentiate_as_single_sequences(source: Model) -> None:
    model: Any = adapters.attach(loading.load_model(source, torch.float32, quantize="nf4"), LORA)
    torch.manual_seed(0)
    factors = [w for w in model.parameters() if w.requires_grad]
    for weight in factors:
        torch.nn.init.normal_(weight, std=0.05)

    def scored(shared: bool) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logprobs = token_logprobs(model, collate(CONTRASTS, PAD, share_prefix=shared))
        logprobs.square().sum().backward()
        return logprobs.detach(), torch.cat([w.grad.flatten() for w in factors])

    (shared, shared_gradient), (alone, alone_gradient) = scored(True), scored(False)
    assert (shared - alone).abs().max() <= 2e-5
    assert torch.cosine_similarity(shared_gradient, alone_gradient, dim=0) >= 0.99999
    assert shared_gradient.norm() > 1


# The trainer, with a model loaded the way of transformers.


@needs_bitsandbytes
def test_a_model_that_transformers_loaded_in_4_bits_trains_with_a_peft_config(
    make: Callable[..., SAMITrainer], source: Model
) -> None:
    def train(**arguments: Any) -> tuple[SAMITrainer, dict[str, torch.Tensor]]:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        model = AutoModelForCausalLM.from_pretrained(source.source, quantization_config=config)
        before = four_bit_weights(model)
        trainer = make(model, beta=0.5, **arguments)
        trainer.train()
        assert alike(before, four_bit_weights(trainer.trained_model))
        assert {p.dtype for p in trainer.trained_model.parameters() if p.requires_grad} == {torch.float32}
        return trainer, trained_adapter(trainer)

    trainer, trained = train()
    assert trainer.packing is not None
    assert trainer.packing.shared
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is the same base, with the adapter off
    assert log[1]["kl"] > 1e-3
    assert log[1]["weights_changed"] > 0.99
    assert all(bool(weight.any()) for weight in trained.values())
    computes = [module.compute_dtype for module in trainer.trained_model.modules() if hasattr(module, "quant_state")]
    assert set(computes) == {torch.bfloat16}  # as the arguments say, whatever the model was loaded with

    _, again = train()
    assert alike(trained, again)
    exact = {"compute_dtype": "float32", "optim": "sgd", "learning_rate": 0.1}
    (whole, at_once), (cached, by_rows) = train(**exact, gradient_cache=False), train(**exact, gradient_cache=True)
    assert (whole.gradient_cache, cached.gradient_cache) == (False, True)
    assert max(float((at_once[name] - by_rows[name]).abs().max()) for name in at_once) < 1e-5
    assert max(float((at_once[name] - trained[name]).abs().max()) for name in at_once) > 1e-3


@needs_bitsandbytes
def test_a_resumed_training_ends_with_the_same_adapter(
    make: Callable[..., SAMITrainer], source: Model, tmp_path: Path
) -> None:
    def load() -> Any:
        return loading.load_model(source, torch.bfloat16, quantize="nf4")

    expected = make(load(), steps=4, save_strategy="steps", save_steps=2)
    expected.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert not list(checkpoint.glob("model*"))
    resumed = make(load(), steps=4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    assert alike(trained_adapter(expected), trained_adapter(resumed))


@needs_bitsandbytes
def test_what_cannot_be_trained_on_is_refused(
    make: Callable[..., SAMITrainer], source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loading.load_model(source, torch.bfloat16, quantize="nf4")
    with pytest.raises(InputError, match=r"quantized weights cannot be trained\. Pass a peft_config"):
        make(model, None)
    with monkeypatch.context() as patch:
        patch.setattr(SAMIConfig, "world_size", property(lambda self: 2))
        with pytest.raises(InputError, match=r"quantized, and 2 processes train"):
            make(model)
    packed = next(module for module in model.modules() if hasattr(module, "quant_state"))
    packed.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(InputError, match=r"repacks weights in 4 bits.*Load it again"):
        make(model)
    model.is_loaded_in_4bit, model.quantization_method = False, "gptq"
    with pytest.raises(InputError, match="quantised by gptq"):
        make(model)


def test_without_bitsandbytes_the_recipe_is_refused_with_what_to_install(
    tmp_path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, source.source, **RECIPE))

    def version(found: str | None) -> Callable[[str], str]:
        def of(package: str) -> str:
            if found is None:
                raise importlib.metadata.PackageNotFoundError(package)
            return found

        return of

    for found, named in ((None, "none is installed"), ("0.46.1", "version 0.46.1 is installed")):
        monkeypatch.setattr(importlib.metadata, "version", version(found))
        with pytest.raises(InputError, match=rf"{named}.*pip install 'sami\[qlora\]'"):
            run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Through the pipeline.


@needs_bitsandbytes
def test_a_recipe_trains_on_4_bits_and_evaluates_the_adapter_on_the_whole_base(
    tmp_path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: list[int] = []
    train = SAMITrainer.train

    def watched(self: SAMITrainer, **named: Any) -> Any:
        before = four_bit_weights(self.trained_model)
        result = train(self, **named)
        assert alike(before, four_bit_weights(self.trained_model))
        bases.append(len(before))
        return result

    monkeypatch.setattr(SAMITrainer, "train", watched)
    recipe = load_recipe(write_recipe(tmp_path, source.source, **RECIPE | SHORT))
    summary = run(recipe, tmp_path / "run")
    assert bases == [3 * 2 * 7]
    folder = tmp_path / "run" / "iteration-1" / "model"
    assert not list(folder.glob("model*"))
    weights = load_file(folder / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 7
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert "bitsandbytes" not in (folder / "adapter_config.json").read_text()
    bounds = [policy["information"]["bound"] for policy in summary["policies"]]
    assert abs(bounds[0] - bounds[1]) > 1e-6
    # The policy is the adapter on weights in the model's dtype, as plain peft loads it.
    batch = collate(CONTRASTS, PAD)
    whole = AutoModelForCausalLM.from_pretrained(source.source, dtype=torch.float32)
    policy = Run.open(tmp_path / "run").load(1)
    with torch.no_grad():
        expected = logprob_matrix(PeftModel.from_pretrained(whole, folder).eval(), batch)
        assert torch.equal(logprob_matrix(policy, batch), expected)


@needs_bitsandbytes
def test_an_adapter_that_was_trained_on_4_bits_merges_into_the_whole_base(source: Model) -> None:
    trained = adapters.attach(loading.load_model(source, torch.float32, quantize="nf4"), LORA)
    torch.manual_seed(0)
    factors = {name: w for name, w in trained.named_parameters() if w.requires_grad}
    for weight in factors.values():
        torch.nn.init.normal_(weight, std=0.05)
    merged, changed = adapters.merge(adapters.moved(trained, loading.load_model(source, torch.float32)))
    assert changed > 0.99
    name = "model.layers.1.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{factor}.default.weight"].detach() for factor in "AB")
    expected = tiny_model().state_dict()[f"{name}.weight"] + 2 * b @ a
    assert torch.allclose(merged.state_dict()[f"{name}.weight"], expected, atol=1e-6)
    assert merged.state_dict().keys() == tiny_model().state_dict().keys()


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_a_second_iteration_goes_on_from_the_first(tmp_path: Path, source: Model, merge: bool) -> None:
    changes = {"training__iterations": 2, "training__restart_from": "previous", "training__beta": 0.1}
    recipe = load_recipe(write_recipe(tmp_path, source.source, **RECIPE | SHORT | changes, adapter__merge=merge))
    run(recipe, tmp_path / "run")
    second = tmp_path / "run" / "iteration-2"
    assert (second / "model" / "adapter_config.json").exists() != merge
    first_step = (second / "metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first_step)["kl"] > 1e-3  # the reference is the recipe's base


@needs_bitsandbytes
@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_adapter(
    tmp_path: Path, source: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training__checkpoint_steps": 1}
    recipe = load_recipe(write_recipe(tmp_path, source.source, **RECIPE | SHORT | changes))
    run(recipe, tmp_path / "whole")
    with interrupted_at(3, monkeypatch):
        run(recipe, tmp_path / "resumed")
    assert (tmp_path / "resumed/iteration-1/checkpoints/checkpoint-2/adapter_model.safetensors").is_file()
    run(recipe, tmp_path / "resumed")
    whole, resumed = (
        load_file(tmp_path / name / "iteration-1/model/adapter_model.safetensors") for name in ("whole", "resumed")
    )
    assert alike(whole, resumed)


# The plan.


@needs_bitsandbytes
def test_the_plan_counts_the_base_in_4_bits(tmp_path: Path, source: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sami.costs.estimate.matrix_rate", lambda dtype: 1e6)
    recipe = write_recipe(tmp_path, source.source, **RECIPE)
    narrow, whole = plan(load_recipe(recipe)), plan(load_recipe(recipe, ["adapter.quantize=null"]))
    model = loading.load_model(source, torch.float32, quantize="nf4")
    packed = [weight for weight in model.parameters() if quantization.is_packed(weight)]
    weights = sum(weight.quant_state.shape.numel() for weight in packed)
    assert whole.training_bytes - narrow.training_bytes == pytest.approx(weights * (4 - quantization.BITS / 8), abs=1)
    assert narrow.generation_bytes == whole.generation_bytes  # responses are generated by the whole base
    scales = [state for weight in packed for state in (weight.quant_state.absmax, weight.quant_state.state2.absmax)]
    held = sum(tensor.nbytes for tensor in [*packed, *scales])
    assert weights * quantization.BITS / 8 == pytest.approx(held, rel=0.01)
