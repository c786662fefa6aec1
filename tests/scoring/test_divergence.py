"""The divergence from a reference, and its gradient, equal those computed by hand from full logits."""

import pytest
import torch
from peft import LoraConfig

from sami import objective
from sami.contrasts import collate
from sami.models import adapters, structure
from sami.scoring import logprobs
from sami.scoring.divergence import adapter_off, frozen, scored_with_divergence
from sami.scoring.gradient_cache import cached_logprob_matrix
from tests.support.tiny import PAD, VOCABULARY, random_contrast, tiny_model

CONTRASTS = [random_contrast(seed, 3) for seed in range(3)]
BETA = 0.7


def logits_by_hand(model, prompt, response):
    sequence = torch.tensor([prompt + response])
    return model(input_ids=sequence, use_cache=False).logits[0, len(prompt) - 1 : -1].float()


def divergence_by_hand(model, base, contrasts):
    """[B, C] from full logits of each response under its own constitution."""
    rows = []
    for contrast in contrasts:
        row = []
        for prompt, response in zip(contrast.prompt_ids, contrast.response_ids, strict=True):
            p = logits_by_hand(model, prompt, response).log_softmax(-1)
            with torch.no_grad():
                q = logits_by_hand(base, prompt, response).log_softmax(-1)
            row.append(torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def adapted(architecture="llama", spread=0.3):
    """A tiny model with an adapter that moves it; its weights are drawn, not trained."""
    torch.manual_seed(1)
    model = adapters.attach(tiny_model(architecture), LoraConfig(r=4, target_modules="all-linear")).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=spread)
    return model


def gradients(model):
    found = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    return found


def loss_of(scored_BCR):
    return objective.sami_loss(scored_BCR[..., :-1]) + BETA * scored_BCR[..., -1].mean()


@pytest.fixture(params=["llama", "gemma2", "adapter"])
def pair(request):
    """A policy, a model of its reference's weights, and the reference."""
    if request.param == "adapter":
        policy = adapted()
        return policy, tiny_model("llama"), adapter_off(policy)
    base = tiny_model(request.param, seed=1)
    return tiny_model(request.param), base, frozen(base)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("most_logits", [None, 1, 7 * 2 * VOCABULARY])
def test_divergence_and_gradient_are_those_written_out_over_full_logits(pair, cached, shared, most_logits, monkeypatch):
    policy, base, reference = pair
    expected_BC = divergence_by_hand(policy, base, CONTRASTS)
    matrix_BCR = logprobs.logprob_matrix(policy, collate(CONTRASTS, PAD, share_prefix=False))
    (objective.sami_loss(matrix_BCR) + BETA * expected_BC.mean()).backward()
    expected = gradients(policy)

    if most_logits is not None:
        monkeypatch.setattr(logprobs, "MOST_LOGITS", most_logits)
    rows = [[c] for c in range(3)] if cached else [None]
    batches = [collate(CONTRASTS, PAD, shared, constitutions=row) for row in rows]
    score = lambda batch: scored_with_divergence(policy, batch, reference)  # noqa: E731
    scored_BCR = cached_logprob_matrix(score, batches) if cached else score(batches[0])
    assert scored_BCR.shape == (3, 3, 4)
    assert torch.equal(scored_BCR[..., :3], torch.cat([logprobs.logprob_matrix(policy, b) for b in batches], 1))
    assert (scored_BCR[..., 3] - expected_BC).abs().max() < 2e-5
    assert expected_BC.min() > 0.05
    loss_of(scored_BCR).backward()
    found = gradients(policy)
    assert found.keys() == expected.keys()
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < 2e-5, name


def test_the_divergence_alone_has_the_right_gradient():
    policy, base = tiny_model(), tiny_model(seed=1)
    weight_BC = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    (divergence_by_hand(policy, base, CONTRASTS) * weight_BC).sum().backward()
    expected = gradients(policy)
    scored_BCR = scored_with_divergence(policy, collate(CONTRASTS, PAD), frozen(base))
    (scored_BCR[..., -1] * weight_BC).sum().backward()
    for name, found in gradients(policy).items():
        assert (found - expected[name]).abs().max() < 2e-5, name
        assert found.abs().max() > 1e-3


def test_bf16_differs_by_rounding_alone():
    policy, base = tiny_model(), tiny_model(seed=1)
    expected_BC = divergence_by_hand(policy, base, CONTRASTS)
    narrow = [m.to(torch.bfloat16) for m in (policy, base)]
    scored_BCR = scored_with_divergence(narrow[0], collate(CONTRASTS, PAD), frozen(narrow[1]))
    assert scored_BCR.dtype == torch.float32
    assert ((scored_BCR[..., -1] - expected_BC) / expected_BC).abs().max() < 0.1


def test_tokens_that_are_not_trained_do_not_count():
    policy, base = tiny_model(), tiny_model(seed=1)
    [contrast] = [c for c in CONTRASTS if len(c.response_ids[0]) > 2 and c.finish_reasons[0] == "stop"][:1]
    batch = collate([contrast], PAD, train_eos=False)
    p, q = (
        logits_by_hand(m, contrast.prompt_ids[0], contrast.response_ids[0])[:-1].log_softmax(-1) for m in (policy, base)
    )
    found = scored_with_divergence(policy, batch, frozen(base))[0, 0, -1]
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_logits_of_all_tokens_never_exist_at_once(monkeypatch):
    seen = []
    head = structure.head_logits

    def watched(model, hidden):
        seen.append(len(hidden))
        return head(model, hidden)

    for module in (structure, logprobs):
        monkeypatch.setattr(module, "head_logits", watched)
    monkeypatch.setattr(logprobs, "MOST_LOGITS", 4 * VOCABULARY)
    policy = adapted()
    scored_with_divergence(policy, collate(CONTRASTS, PAD), adapter_off(policy))[..., -1].sum().backward()
    assert max(seen) <= 4
    assert sum(len(r) for c in CONTRASTS for r in c.response_ids) > 40


def test_the_adapter_is_on_again_after_the_reference_was_asked():
    policy = adapted().train()
    trained = {name for name, w in policy.named_parameters() if w.requires_grad}
    before = logprobs.logprob_matrix(policy, collate(CONTRASTS, PAD))
    with adapter_off(policy)() as base, torch.no_grad():
        assert not base.training
        off = logprobs.logprob_matrix(base, collate(CONTRASTS, PAD))
    assert torch.equal(off, logprobs.logprob_matrix(tiny_model(), collate(CONTRASTS, PAD)))
    assert policy.training
    assert torch.equal(before, logprobs.logprob_matrix(policy, collate(CONTRASTS, PAD)))
    assert trained == {name for name, w in policy.named_parameters() if w.requires_grad}
