"""Health figures by hand, limits at their limit, and the planted policies that must not be called better."""

import json
import math
from dataclasses import replace

import pytest
import torch

from sami.evaluation import health
from sami.evaluation.health import Health, check
from sami.evaluation.information import ContrastScores, score_contrasts
from sami.loop import summary
from sami.loop.directory import RunDirectory
from sami.principles import Principle
from sami.prompts import PromptBuilder
from sami.recipe import Health as Limits
from sami.recipe import Prompt, Recipe
from tests.support.information import QUERIES, contrast, token_logprobs_alone
from tests.support.tiny import EOS, tiny_model

BASE = Health(
    responses=10,
    words=20.0,
    words_ratio=1.0,
    loops=2.0,
    leakage=4.0,
    unfinished=10.0,
    template_leftovers=0.0,
    distinct_2=0.8,
    opening="the sky is",
    opening_share=10.0,
    base_logprob=-1.5,
    relevance=0.5,
    forgetting=0.0,
)


# Limits.


@pytest.mark.parametrize(
    ("figure", "at_the_limit", "beyond", "words"),
    [
        ("leakage", 7.0, 7.01, "copy from their constitution"),
        ("loops", 5.0, 5.01, "repeat themselves"),
        ("unfinished", 20.0, 20.01, "are cut off"),
        ("base_logprob", -2.5, -2.501, "less likely under the base model"),
        ("distinct_2", 0.7 * 0.8, 0.559, "distinct bigrams"),
        ("relevance", 0.35, 0.349, "relevance to the query"),
    ],
)
def test_each_limit_holds_up_to_its_limit(figure, at_the_limit, beyond, words):
    limits = Limits()
    assert check(BASE, BASE, limits) == ()
    assert check(replace(BASE, **{figure: at_the_limit}), BASE, limits) == ()
    [failure] = check(replace(BASE, **{figure: beyond}), BASE, limits)
    assert words in failure


def test_limits_are_those_of_the_recipe():
    worse = replace(BASE, leakage=40.0, base_logprob=-9.0, relevance=0.01)
    assert len(check(worse, BASE, Limits())) == 3
    assert check(worse, BASE, Limits(leakage=50, base_logprob_drop=20, relevance_ratio=0)) == ()


def test_a_policy_equal_to_base_or_healthier_breaks_no_limit_whatever_the_sign_of_its_relevance():
    better = replace(BASE, leakage=0.0, loops=0.0, unfinished=0.0, base_logprob=-0.5, distinct_2=0.9, relevance=1.0)
    assert check(better, BASE, Limits(leakage=0, loops=0, unfinished=0, base_logprob_drop=0)) == ()
    irrelevant = replace(BASE, relevance=-0.1)
    assert check(irrelevant, irrelevant, Limits()) == ()


@pytest.mark.parametrize("figure", ["distinct_2", "relevance", "base_logprob"])
def test_a_figure_that_is_not_a_number_breaks_its_limit(figure):
    assert len(check(replace(BASE, **{figure: math.nan}), BASE, Limits())) == 1


# Figures of the text.


def test_text_figures_are_shares_of_responses(plain_tokenizer):
    contrasts = [
        contrast(plain_tokenizer, ["The sky is blue today.", "Red red red red red red red red red"]),
        contrast(plain_tokenizer, ["Explain it to an expert. Yes.", "The sky is Human:\nHuman: red"], number=1),
    ]
    contrasts[1] = replace(contrasts[1], finish_reasons=["stop", "length"])
    figures = health.text_figures(contrasts, [health.flags(c) for c in contrasts])
    assert figures["responses"] == 4
    assert figures["words"] == (5 + 9 + 6 + 6) / 4
    assert figures["loops"] == 25.0
    assert figures["leakage"] == 25.0
    assert figures["unfinished"] == 25.0
    assert figures["template_leftovers"] == 25.0
    assert (figures["opening"], figures["opening_share"]) == ("the sky is", 50.0)
    assert figures["distinct_2"] == pytest.approx((1 + 1 / 8 + 1 + 1) / 4)


def test_base_logprob_is_the_mean_of_the_diagonals():
    scores = [
        ContrastScores("a", "q", True, [], [[-1.0, -9.0], [-9.0, -2.0]], None),
        ContrastScores("b", "q", True, [], [[-3.0, -9.0], [-9.0, -6.0]], None),
    ]
    assert health.base_logprob(scores) == -3.0


# Figures of the frozen base model.


@pytest.fixture
def prompts(plain_tokenizer):
    return PromptBuilder(plain_tokenizer, Prompt())


TEXTS = {"expert+": "Explain it to an expert.", "expert-": "Keep it simple."}


def asked(prompts, one):
    ids = [prompts.training_prompt(one.query, [text], text) for text in one.constitutions]
    return replace(one, prompt_ids=ids)


def test_relevance_is_the_loss_of_log_prob_under_the_next_query(llama, plain_tokenizer, prompts):
    one = asked(prompts, contrast(plain_tokenizer, ["Blue light scatters.", "Air does it."], QUERIES[0], 0))
    two = asked(prompts, contrast(plain_tokenizer, ["Seven minutes, then cold water.", "Boil it."], QUERIES[1], 1))
    contrasts = [one, two]
    scores = score_contrasts(llama, tokenizer=plain_tokenizer, contrasts=contrasts, held_out=set(), batch_size=2)
    differences = []
    for own, other in ((one, two), (two, one)):
        for r, response in enumerate(own.response_ids):
            text = own.constitutions[r]
            under = [
                token_logprobs_alone(llama, prompts.training_prompt(c.query, [text], text), response)
                for c in (own, other)
            ]
            differences.append((sum(under[0]) - sum(under[1])) / len(response))
    expected = sum(differences) / 4
    for size in (1, 2):
        found = health.relevance(llama, contrasts, scores, prompts, TEXTS, pad_token_id=2, queries=5, batch_size=size)
        assert found == pytest.approx(expected, abs=1e-4)
    assert abs(expected) > 1e-3


def test_relevance_is_zero_where_all_queries_are_one(llama, plain_tokenizer, prompts):
    contrasts = [asked(prompts, contrast(plain_tokenizer, ["Blue.", "Red."], QUERIES[0], n)) for n in range(3)]
    scores = score_contrasts(llama, tokenizer=plain_tokenizer, contrasts=contrasts, held_out=set(), batch_size=3)
    found = health.relevance(llama, contrasts, scores, prompts, TEXTS, pad_token_id=2, queries=3, batch_size=2)
    assert found == pytest.approx(0.0, abs=1e-5)


ANSWERS = [([10, 11, 12, 13, 14], [20, 21, EOS]), ([30, 31], [40, 41, 42, 43, 44, EOS]), ([50, 51, 52], [60])]


@torch.no_grad()
def slow_forgetting(policy, base):
    total, tokens = 0.0, 0
    for prompt, answer in ANSWERS:
        log_base, log_policy = (
            model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            for model in (base, policy)
        )
        for at in range(len(prompt) - 1, len(prompt) + len(answer) - 1):
            total += float((log_base[at].exp() * (log_base[at] - log_policy[at])).sum())
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_forgetting_is_the_divergence_from_base_token_by_token(architecture, batch_size):
    base, policy = tiny_model(architecture), tiny_model(architecture)
    assert health.forgetting(policy, base, ANSWERS, pad_token_id=2, batch_size=batch_size) == 0.0
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    found = health.forgetting(policy, base, ANSWERS, pad_token_id=2, batch_size=batch_size)
    assert found == pytest.approx(slow_forgetting(policy, base), rel=1e-3)
    assert found > 1e-3


# The verdict, on run files as the pipeline writes them.

SHARP = [[-0.5, -9.0], [-9.0, -0.5]]
HALF = [[-1.0, -1.4], [-1.4, -1.0]]
WEAK = [[-1.0, -1.05], [-1.05, -1.0]]


@pytest.fixture
def judged(tmp_path, plain_tokenizer):
    """`judged(responses, own, by_base, …)`: the summary of base and one policy that wrote these responses."""
    settings = {"model": "m", "queries": {"path": "q"}, "principles": "p", "evaluation": {"bootstrap_samples": 200}}
    recipe = Recipe.model_validate(settings)
    directory = RunDirectory(tmp_path)
    principles = [Principle(id="expert", definition=TEXTS["expert+"], antithesis=TEXTS["expert-"])]

    def write(policy, responses, own, masked, plain, **figures):
        contrasts = [contrast(plain_tokenizer, pair, f"Query {n}?", n) for n, pair in enumerate(responses)]
        flagged = [health.flags(c) for c in contrasts]
        text = health.text_figures(contrasts, flagged) | {"base_logprob": -1.0, "relevance": 0.5, "forgetting": 0.1}

        def rows(matrix, without):
            return [ContrastScores(c.id, c.query, True, ["expert"], matrix, without).as_json() for c in contrasts]

        directory.scores(policy).parent.mkdir(parents=True, exist_ok=True)
        scores = {"policy": rows(own, own), "base": rows(plain, masked), "verdicts": [], "health": text | figures}
        directory.scores(policy).write_text(json.dumps(scores))

    def result(responses, own, masked, plain=HALF, **figures):
        sound = [[f"The light of day {n} scatters.", f"Because number {n} is so, you see."] for n in range(8)]
        write("base", sound, WEAK, WEAK, WEAK)
        write("iteration-1", responses, own, masked, plain, **figures)
        return summary.summarize(directory, recipe, principles, ["base", "iteration-1"]).as_json()

    return result


SOUND = [[f"Photons of run {n} scatter by size.", f"Run {n} is when air plays with light!"] for n in range(8)]


def test_a_healthy_policy_that_base_recognizes_is_called_better(judged):
    value = judged(SOUND, SHARP, HALF)
    [verdict] = value["comparisons"]
    assert verdict["healthy"] is True
    assert verdict["better"] is True
    assert value["policies"][1]["health"]["failures"] == []
    assert verdict["learned"]["base_bound"]["low"] > 0
    assert "is better than base" in verdict["reason"]
    base, policy = (one["health"] for one in value["policies"])
    assert base["words_ratio"] == 1.0
    assert policy["words_ratio"] == pytest.approx(policy["words"] / base["words"])
    assert policy["words"] != base["words"]


@pytest.mark.parametrize("by_base", [HALF, SHARP, WEAK, None])
@pytest.mark.parametrize(
    "pair",
    [
        ["Expert:Expert:Expert:Expert:Expert:", "Simple simple simple simple simple"],
        ["Explain it to an expert. Sure.", "Keep it simple. Keep it simple."],
    ],
)
def test_code_words_are_never_called_better(judged, pair, by_base):
    value = judged([pair] * 8, SHARP, by_base)
    [verdict] = value["comparisons"]
    assert value["policies"][1]["information"]["bound"] > 0.69  # of log 2: its own bound is nearly the cap
    assert verdict["better"] is False
    assert "not called better" in verdict["reason"]


def test_a_policy_that_base_does_not_recognize_is_not_called_better(judged):
    for by_base in (WEAK, None):
        [verdict] = judged(SOUND, SHARP, by_base)["comparisons"]
        assert verdict["healthy"] is True
        assert verdict["better"] is False
