"""`beta` holds the policy near a reference, by whatever route it is trained."""

import pytest
import torch
from peft import LoraConfig

from sami.contrasts import collate
from sami.errors import InputError
from sami.scoring.divergence import frozen, scored_with_divergence
from tests.support.tiny import PAD, tiny_model
from tests.support.training import SGD, contrasts_of, largest_difference, logged, trained

CONTRASTS = contrasts_of(4)
RATE = {"learning_rate": 5e-3}
adapted_or_whole = pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])


def lora(on=True, **settings):
    return LoraConfig(r=4, target_modules="all-linear", **settings) if on else None


def distance(model, reference):
    with torch.no_grad():
        return float(scored_with_divergence(model, collate(CONTRASTS, PAD), frozen(reference))[..., -1].mean())


@adapted_or_whole
def test_a_large_beta_keeps_the_policy_closer_to_base(make, adapter):
    distances, bounds = [], []
    for beta in (0.0, 1.0, 30.0):
        trainer = make(CONTRASTS, 12, peft_config=lora(adapter), beta=beta, **RATE)
        trainer.train()
        distances.append(distance(trainer.trained_model.eval(), tiny_model("llama")))
        bounds.append(logged(trainer, "bound")[-1])
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0
    assert bounds[0] > bounds[2]


@adapted_or_whole
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_loss_contains_the_divergence_that_is_logged(make, adapter, dtype):
    settings = {"beta": 0.5, "compute_dtype": dtype, "contrast": "columns", **RATE}
    trainer = make(CONTRASTS, 3, peft_config=lora(adapter), **settings)
    trainer.train()
    kl, loss, bound = (logged(trainer, name) for name in ("kl", "loss", "bound"))
    assert kl[0] == pytest.approx(0.0, abs=1e-7)  # the policy is still the reference
    assert kl[1] > 1e-3
    assert loss == pytest.approx([0.6931472 - b + 0.5 * k for b, k in zip(bound, kl, strict=True)], abs=1e-4)


def test_beta_0_makes_no_reference(make, monkeypatch):
    for place in ("sami.training.policy.frozen_copy", "sami.scoring.divergence.scored_with_divergence"):
        monkeypatch.setattr(place, lambda *_: pytest.fail("a reference was used"))
    trainer = make(CONTRASTS, beta=0.0)
    trainer.train()
    assert "kl" not in trainer.state.log_history[0]


@pytest.mark.parametrize("config", [None, {}, {"lora_dropout": 0.3}], ids=str)
def test_the_gradient_cache_changes_nothing(make, config):
    shared = {"peft_config": None if config is None else lora(**config), "beta": 0.5, **SGD}
    dropout = bool(config)  # hits other units when rows are scored alone, so only repeatability is tested
    cached = trained(make, CONTRASTS, 3, gradient_cache=True, **shared)
    assert largest_difference(cached, trained(make, CONTRASTS, 3, gradient_cache=dropout, **shared)) < 1e-6
    assert largest_difference(cached, trained(make, CONTRASTS, 3, gradient_cache=True, **{**shared, "beta": 0})) > 1e-5


def test_the_divergence_is_the_one_from_the_reference_that_was_passed(make):
    trainer = make(CONTRASTS, beta=0.5, ref_model=tiny_model(seed=3))
    trainer.train()
    assert logged(trainer, "kl")[0] == pytest.approx(distance(tiny_model(), tiny_model(seed=3)), abs=1e-5)


def test_a_reference_that_cannot_work_is_refused(make):
    model = tiny_model()
    for message, arguments in (
        ("no effect while beta is 0", {"ref_model": tiny_model()}),
        (r"vocabulary of 400.*320", {"beta": 0.1, "ref_model": tiny_model(vocab_size=400)}),
        ("a second time", {"beta": 0.1, "model": model, "ref_model": model}),
    ):
        with pytest.raises(InputError, match=message):
            make(CONTRASTS, **arguments)
