"""Scoring in shared rows against the obvious way: one sequence at a time, no batch, no mask, no padding."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from sami.contrasts import collate
from sami.errors import InputError
from sami.models import attention, structure
from sami.objective import sami_loss
from sami.scoring import logprobs
from sami.scoring.logprobs import logprob_matrix, reduce_tokens, token_logprobs
from sami.training.precision import ComputeCopy
from tests.support.scoring import (
    COSINE,
    RIGHT,
    TOLERANCE,
    bf16_copy,
    causal_rows,
    contrasts_of,
    cosine,
    distance,
    gradient,
    reference,
    reference_tokens,
)
from tests.support.tiny import ARCHITECTURES, EOS, PAD, VOCABULARY, random_contrast, tiny_model

WINDOWED = ["mistral", "mixtral", "qwen3", "gemma2", "gemma3", "cohere2"]

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
every_path = pytest.mark.parametrize("share", [True, False], ids=["shared", "plain"])


# --- against the reference ---


@every_path
@every_architecture
@pytest.mark.parametrize("constitutions", [2, 4])
def test_scores_and_gradients_are_those_of_single_sequences(architecture, share, constitutions):
    model, contrasts = tiny_model(architecture), contrasts_of(constitutions, count=2)
    matrix = logprob_matrix(model, collate(contrasts, PAD, share_prefix=share))
    expected = reference(model, contrasts)
    assert matrix.shape == (2, constitutions, constitutions)
    assert matrix.dtype == torch.float32
    assert distance(matrix, expected) <= TOLERANCE
    ours, theirs = gradient(model, matrix), gradient(model, expected)
    assert cosine(ours, theirs) >= COSINE
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1, abs=1e-4)


@every_path
def test_every_token_is_the_one_of_the_single_sequence(llama, share):
    """Also: padding scores 0, so a token count or a shift by one cannot hide in a mean."""
    contrasts = contrasts_of()
    tokens = token_logprobs(llama, collate(contrasts, PAD, share_prefix=share)).detach()
    for b, contrast in enumerate(contrasts):
        for c, prompt in enumerate(contrast.prompt_ids):
            for r, response in enumerate(contrast.response_ids):
                assert (
                    distance(tokens[b, c, r, : len(response)], reference_tokens(llama, prompt, response)) <= TOLERANCE
                )
                assert not tokens[b, c, r, len(response) :].any()


# --- a wrong mask would show ---


def without_window(*tensors, **settings):
    return RIGHT(*tensors, **{**settings, "sliding_window": None})


def window_by_index(query, key, value, packed, **settings):
    """The window counted along the row, where another response may lie between a token and its prompt."""
    window = settings["sliding_window"]
    if window is None:
        return RIGHT(query, key, value, packed, **settings)
    parts, start = [], 0
    for row in packed[0, 0].tolist():
        part = slice(start, start := start + sum(row))
        index = torch.arange(sum(row))
        mask = attention._row_mask(tuple(row), None, query.device) & (index[:, None] - index < window)
        q, k, v = (x[:, :, part] for x in (query, key, value))
        if settings.get("softcap") is not None:
            parts.append(
                attention._attend_capped(q, k, v, mask, softcap=settings["softcap"], scaling=settings["scaling"])
            )
            continue
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=settings.get("scaling"), enable_gqa=True)
        parts.append(out.transpose(1, 2))
    return torch.cat(parts, 1)


@pytest.mark.parametrize(
    ("architecture", "wrong"),
    [
        *((architecture, causal_rows) for architecture in ARCHITECTURES),
        *((architecture, window_by_index) for architecture in WINDOWED),
        *((architecture, without_window) for architecture in WINDOWED),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_wrong_attention_is_far_beyond_the_tolerance(monkeypatch, architecture, wrong):
    model, contrasts = tiny_model(architecture), contrasts_of()
    batch = collate(contrasts, PAD)
    monkeypatch.setattr(attention, "_attend_packed", wrong)
    with torch.no_grad():
        assert distance(logprob_matrix(model, batch), reference(model, contrasts)) > 500 * TOLERANCE


# --- padding ---


@every_path
@every_architecture
def test_padding_does_not_change_a_score(architecture, share):
    """Alone, beside a longer contrast, and with another pad token: PAD, EOS, an ordinary word."""
    model, contrast = tiny_model(architecture), random_contrast(1)
    longer = random_contrast(2, prompt_tokens=(30, 40), response_tokens=(20, 30))
    with torch.no_grad():
        alone = logprob_matrix(model, collate([contrast], PAD, share_prefix=share))
        for pad in (PAD, EOS, 77):
            beside = logprob_matrix(model, collate([longer, contrast], pad, share_prefix=share))
            assert distance(alone[0], beside[1]) <= TOLERANCE


@every_path
@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad", "pad = EOS"])
def test_the_pad_token_inside_a_contrast_is_read_and_scored_like_any_token(llama, share, pad):
    prompts, responses = [[pad, 20, pad], [20, pad, 21, 22, pad]], [[20, pad, 30, pad], [pad, 21, 22, 23, EOS]]
    contrast = replace(random_contrast(1), prompt_ids=prompts, response_ids=responses)
    batch = collate([contrast, random_contrast(2)], pad, share_prefix=share)
    assert batch.response_mask[0].sum(-1).tolist() == [4, 5]
    with torch.no_grad():
        assert distance(logprob_matrix(llama, batch)[:1], reference(llama, [contrast])) <= TOLERANCE


@every_path
@every_architecture
def test_responses_and_prompts_of_one_token(architecture, share):
    model = tiny_model(architecture)
    contrast = replace(random_contrast(1), prompt_ids=[[40], [41, 42, 43]], response_ids=[[EOS], [50]])
    with torch.no_grad():
        matrix = logprob_matrix(model, collate([contrast], PAD, share_prefix=share))
        assert distance(matrix, reference(model, [contrast])) <= TOLERANCE


# --- what is averaged, what is left out ---


@every_path
def test_without_per_token_log_probs_are_summed(llama, share):
    contrasts = contrasts_of()
    with torch.no_grad():
        summed = logprob_matrix(llama, collate(contrasts, PAD, share_prefix=share), per_token=False)
        torch.testing.assert_close(summed, reference(llama, contrasts, per_token=False), rtol=1e-5, atol=1e-4)


def test_reduced_tokens_by_hand():
    tokens = torch.tensor([[[[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]]]])  # one constitution, two responses
    mask = torch.tensor([[[True, True, False], [True, False, True]]])
    assert reduce_tokens(tokens, mask).tolist() == [[[1.5, 5.0]]]
    assert reduce_tokens(tokens, mask, per_token=False).tolist() == [[[3.0, 10.0]]]
    assert reduce_tokens(tokens, torch.zeros_like(mask)).tolist() == [[[0.0, 0.0]]]


@every_path
def test_without_train_eos_only_the_eos_of_finished_responses_is_left_out(llama, share):
    """The second response was cut off at a token that happens to be EOS; the third is nothing but EOS."""
    contrast = replace(
        random_contrast(1, constitutions=3),
        response_ids=[[20, 21, EOS], [30, 31, EOS], [EOS]],
        finish_reasons=["stop", "length", "stop"],
    )
    batch = collate([contrast], PAD, share_prefix=share, train_eos=False)
    assert batch.response_mask[0].sum(-1).tolist() == [2, 3, 1]
    scored = replace(contrast, response_ids=[[20, 21], [30, 31, EOS], [EOS]])
    with torch.no_grad():
        assert distance(logprob_matrix(llama, batch), reference(llama, [scored])) <= TOLERANCE


def test_log_softmax_in_blocks_is_the_one_in_a_single_block(llama, monkeypatch):
    batch = collate(contrasts_of(), PAD)
    whole = logprob_matrix(llama, batch)
    whole_gradient = gradient(llama, whole)
    monkeypatch.setattr(logprobs._Softmax, "ROWS_AT_ONCE", 3)
    blocks = logprob_matrix(llama, batch)
    assert distance(whole, blocks) <= 1e-6
    assert cosine(whole_gradient, gradient(llama, blocks)) >= 0.9999999


@every_path
@every_architecture
def test_the_head_in_parts_gives_what_it_gives_at_once(architecture, share, monkeypatch):
    """Seven scored positions at a time, so that [X, V] never exists; scaling and soft-capping included."""
    model, batch = tiny_model(architecture), collate(contrasts_of(), PAD, share)
    whole = logprob_matrix(model, batch)
    whole_gradient = gradient(model, whole)
    assert len(batch.scored) > 21
    monkeypatch.setattr(logprobs, "MOST_LOGITS", 7 * VOCABULARY)
    rows = []
    head = structure.head_logits
    monkeypatch.setattr(logprobs, "head_logits", lambda m, h: rows.append(len(h)) or head(m, h))
    parts = logprob_matrix(model, batch)
    assert distance(whole, parts) <= 1e-6
    assert cosine(whole_gradient, gradient(model, parts)) >= 0.9999999
    assert max(rows) == 7


@every_architecture
def test_the_head_alone_is_the_models_own_last_steps(architecture):
    model = tiny_model(architecture)
    ids = torch.randint(10, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        assert torch.equal(structure.head_logits(model, states), model(input_ids=ids).logits[0])


# --- other dtypes ---


@every_architecture
def test_computing_in_bf16_gives_the_gradients_of_a_bf16_copy_to_fp32_masters(architecture):
    model = tiny_model(architecture)
    before = copy.deepcopy(model.state_dict())
    rounded = bf16_copy(model)
    batch = collate(contrasts_of(count=2), PAD)
    ours = logprob_matrix(ComputeCopy(model, torch.bfloat16).model, batch)
    theirs = logprob_matrix(rounded, batch)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)

    sami_loss(ours).backward()
    arrived = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(arrived) == len(list(model.parameters()))
    assert {g.dtype for g in arrived.values()} == {torch.float32}
    flat = torch.cat([g.double().flatten() for g in arrived.values()])
    expected = gradient(rounded, theirs)
    assert float((flat - expected).norm() / expected.norm()) <= 1e-2
    assert cosine(flat, expected) >= 0.9999
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_copy_for_computing_follows_its_masters_and_sums_gradients_in_fp32(llama):
    copied = ComputeCopy(llama, torch.bfloat16)
    batches = [collate(contrasts_of()[i : i + 1], PAD) for i in range(3)]
    each = []
    for batch in batches:
        sami_loss(logprob_matrix(copied.model, batch)).backward()
        each.append({name: p.grad.clone() for name, p in llama.named_parameters()})
        llama.zero_grad()
    for batch in batches:
        sami_loss(logprob_matrix(copied.model, batch)).backward()
    assert all(p.grad is None for p in copied.model.parameters())
    for name, p in llama.named_parameters():
        torch.testing.assert_close(p.grad, sum(g[name] for g in each), rtol=1e-6, atol=1e-9)

    with torch.no_grad():
        for p in llama.parameters():
            p.add_(0.01)
    stale = {name: p.clone() for name, p in copied.model.named_parameters()}
    copied.refresh()
    for name, p in copied.model.named_parameters():
        assert torch.equal(p, dict(llama.named_parameters())[name].bfloat16())
        assert not torch.equal(p, stale[name])


# --- damaged models ---


def test_the_contrasts_with_log_probs_that_are_not_numbers_are_named():
    """One row of the input embedding is damaged, and one contrast holds that token; then every weight of a norm."""
    model, contrasts = tiny_model(vocab_size=VOCABULARY + 1), contrasts_of()
    model.model.embed_tokens.weight.data[VOCABULARY] = float("nan")
    contrasts[1].prompt_ids[0][0] = VOCABULARY
    with pytest.raises(InputError, match=r"not finite for the contrasts contrast-1\. .*float32"):
        logprob_matrix(model, collate(contrasts, PAD))
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="contrast-0, contrast-1, contrast-2"):
        logprob_matrix(model, collate(contrasts, PAD))
