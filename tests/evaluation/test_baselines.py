"""Supervised finetuning and DPO on contrasts: what they raise, from the ids as they are stored."""

import pytest
import torch

from sami.contrasts import collate
from sami.recipe import Training
from sami.scoring.logprobs import logprob_matrix
from tests.support.tiny import PAD, random_contrast, tiny_model

pytest.importorskip("trl", reason="the extra `baselines` is not installed")
from sami.evaluation.baselines import Schedule, train_dpo, train_sft

CONTRASTS = [random_contrast(seed, response_tokens=(4, 10)) for seed in range(4)]


def matrix(model):
    with torch.no_grad():
        return logprob_matrix(model.eval(), collate(CONTRASTS, PAD))


def schedule(**changes):
    settings = {"iterations": 1, "steps": [6], "batch_size": 4, "micro_batch_size": 2, "lr": [3e-3], **changes}
    return Schedule(Training(**settings), 1, bf16=False)


def test_supervised_finetuning_raises_each_response_under_its_own_constitution(chat_tokenizer, tmp_path):
    model = tiny_model()
    before = matrix(model).diagonal(dim1=1, dim2=2)
    train_sft(model, chat_tokenizer, CONTRASTS, schedule(), tmp_path)
    assert (matrix(model).diagonal(dim1=1, dim2=2) - before).min() > 0.5


def test_one_step_of_supervised_finetuning_follows_the_mean_over_response_tokens(chat_tokenizer, tmp_path):
    """Plain gradient by hand: Adam's first step is the sign of it, times the rate."""
    model, other = tiny_model(), tiny_model()
    train_sft(model, chat_tokenizer, CONTRASTS, schedule(steps=[1], max_grad_norm=1e9), tmp_path)
    sums = logprob_matrix(other, collate(CONTRASTS, PAD), per_token=False).diagonal(dim1=1, dim2=2).sum()
    tokens = sum(len(ids) for c in CONTRASTS for ids in c.response_ids)
    (-sums / tokens).backward()
    start = tiny_model().state_dict()
    for name, weights in model.named_parameters():
        gradient = other.get_parameter(name).grad
        assert gradient is not None
        clear = gradient.abs() > 1e-5  # else Adam's epsilon and rounding show
        expected = -3e-3 * gradient.sign()
        moved = weights.detach() - start[name]
        assert torch.allclose(moved[clear], expected[clear], atol=1e-4), name


def test_dpo_prefers_the_constitutions_own_response_to_the_other(chat_tokenizer, tmp_path):
    model = tiny_model()

    def margins():
        m = matrix(model)
        return torch.stack([m[:, 0, 0] - m[:, 0, 1], m[:, 1, 1] - m[:, 1, 0]])

    before = margins()
    train_dpo(model, tiny_model(), chat_tokenizer, CONTRASTS, schedule(), tmp_path)
    assert (margins() - before).min() > 0.5
    assert list(tmp_path.iterdir()) == []
