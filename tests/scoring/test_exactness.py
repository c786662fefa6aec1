"""Shared rows give the scores and gradients of single sequences at real sizes too: long rows, many tokens, C = 16."""

import pytest
import torch

from bench.data import made_contrasts, tldr_contrasts
from bench.flops import needed_tokens
from bench.measure import DATA
from sami.contrasts import collate
from sami.models import attention
from sami.objective import sami_loss
from sami.prompts import PromptBuilder
from sami.recipe import Prompt
from sami.scoring import logprobs
from sami.scoring.gradient_cache import cached_logprob_matrix
from sami.scoring.logprobs import logprob_matrix
from tests.support.scoring import COSINE, TOLERANCE, cosine, distance, gradient, reference
from tests.support.tiny import ARCHITECTURES, PAD, random_contrast, tiny_model

GEMMA3_VOCABULARY = 262_144


@pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_longer_than_those_that_are_attended_together(architecture, share):
    """On a CPU rows of more than `SHORT` tokens are attended in pieces; here beside a short one."""
    model = tiny_model(architecture)
    long = random_contrast(0, prompt_tokens=(280, 330), response_tokens=(40, 90))
    assert min(map(len, long.prompt_ids)) > attention.SHORT
    contrasts = [long, random_contrast(1)]
    matrix, expected = logprob_matrix(model, collate(contrasts, PAD, share)), reference(model, contrasts)
    assert distance(matrix, expected) <= TOLERANCE
    assert cosine(gradient(model, matrix), gradient(model, expected)) >= COSINE


def test_the_vocabulary_of_gemma3_is_taken_in_parts(monkeypatch):
    model = tiny_model("gemma3", vocab_size=GEMMA3_VOCABULARY)
    contrast = random_contrast(0, prompt_tokens=(5, 10), response_tokens=(30, 40), vocab_size=GEMMA3_VOCABULARY)
    batch = collate([contrast], PAD)
    monkeypatch.setattr(logprobs, "MOST_LOGITS", 50 * GEMMA3_VOCABULARY)
    assert len(batch.scored) > 100
    matrix, expected = logprob_matrix(model, batch), reference(model, [contrast])
    assert distance(matrix, expected) <= TOLERANCE
    assert cosine(gradient(model, matrix), gradient(model, expected)) >= COSINE


def test_sixteen_constitutions():
    model, contrasts = tiny_model(), [random_contrast(0, 16)]
    expected = reference(model, contrasts)
    whole = logprob_matrix(model, collate(contrasts, PAD))
    rows = [collate(contrasts, PAD, constitutions=[c]) for c in range(16)]
    cached = cached_logprob_matrix(lambda row: logprob_matrix(model, row), rows)
    for matrix in (whole, cached):
        assert matrix.shape == (1, 16, 16)
        assert distance(matrix, expected) <= TOLERANCE
    loss_gradient = gradient(model, expected)
    assert cosine(gradient(model, whole), loss_gradient) >= COSINE
    sami_loss(cached).backward()
    found = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    assert cosine(found, loss_gradient) >= COSINE


# Padding, on lengths of TL;DR posts.


def padding(contrasts, batch_size):
    """The share of computed tokens that no loss needs."""
    batches = [collate(contrasts[i : i + batch_size], PAD) for i in range(0, len(contrasts), batch_size)]
    return 1 - sum(map(needed_tokens, contrasts)) / sum(batch.input_ids.numel() for batch in batches)


@pytest.mark.parametrize("constitutions", [2, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_less_than_a_twentieth_of_the_tokens_is_padding(constitutions, batch_size):
    assert padding(made_contrasts(20, constitutions, vocabulary=300), batch_size) < 0.05


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of TL;DR posts is absent")
def test_less_than_a_twentieth_of_the_tokens_of_real_posts_is_padding(chat_tokenizer):
    prompts = PromptBuilder(chat_tokenizer, Prompt())
    assert padding(tldr_contrasts(DATA, 20, 4, prompts, chat_tokenizer), 4) < 0.05
