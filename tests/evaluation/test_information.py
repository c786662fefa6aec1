"""Two scorers of the same responses: what the policy claims and what the frozen base model can see."""

import math
from dataclasses import replace

import pytest
import torch

from sami.evaluation import information
from sami.evaluation.information import ContrastScores, PolicyScores, score_contrasts
from tests.support.information import QUERIES, contrast, token_logprobs_alone
from tests.support.tiny import tiny_model
from tests.support.training import make_trainer


def scored(model, tokenizer, contrasts):
    return score_contrasts(model, tokenizer=tokenizer, contrasts=contrasts, held_out=set(), batch_size=2)


def test_matrices_are_mean_log_probs_with_and_without_leaked_tokens(llama, plain_tokenizer):
    one = contrast(plain_tokenizer, ["The expert view of blue light.", "Light is blue and red."])
    other = contrast(plain_tokenizer, ["Rayleigh scattering.", "Air does it, you see?"], QUERIES[1], 1)
    results = scored(llama, plain_tokenizer, [one, other])
    assert [s.id for s in results] == ["c0", "c1"]
    word = set(range(len("The"), len("The expert")))
    at, leaked = 0, []
    for token in one.response_ids[0]:
        piece = plain_tokenizer.decode([token], skip_special_tokens=True)
        span = range(at, at + len(piece))
        leaked.append(bool(word.intersection(span) - {len("The")}))
        at += len(piece)
    assert 2 <= sum(leaked) <= 7
    for c, prompt in enumerate(one.prompt_ids):
        for r, response in enumerate(one.response_ids):
            tokens = token_logprobs_alone(llama, prompt, response)
            assert results[0].matrix[c][r] == pytest.approx(sum(tokens) / len(tokens), abs=1e-4)
            kept = [value for t, value in enumerate(tokens) if r == 1 or not leaked[t]]
            assert results[0].masked is not None
            assert results[0].masked[c][r] == pytest.approx(sum(kept) / len(kept), abs=1e-4)


def test_a_response_of_leaked_words_sets_its_contrast_aside(llama, plain_tokenizer):
    contrasts = [
        contrast(plain_tokenizer, ["Expert:Expert:Expert:Expert:", "Simple simple simple simple"]),
        contrast(plain_tokenizer, ["Blue light scatters in the air.", "Simple simple simple simple"], QUERIES[1], 1),
        contrast(plain_tokenizer, ["Blue light scatters in the air.", "Because of the air, you see."], QUERIES[2], 2),
        contrast(plain_tokenizer, ["Expert expert expert.", "Simple simple simple."], "Is an expert simple?", 3),
    ]
    results = scored(llama, plain_tokenizer, contrasts)
    assert [s.masked is None for s in results] == [True, True, False, False]
    assert results[3].masked == results[3].matrix  # words of the query are not leaks
    assert set(information.bounds_under_base(results)) == {"c2", "c3"}
    assert set(information.bounds_by_policy(results)) == {"c0", "c1", "c2", "c3"}


def test_held_out_principles_make_a_contrast_held_out(llama, plain_tokenizer):
    one = contrast(plain_tokenizer, ["Blue.", "Red."])
    two = replace(one, id="both", principles=[[("expert", True), ("new", False)], [("expert", False), ("new", True)]])
    results = score_contrasts(llama, tokenizer=plain_tokenizer, contrasts=[one, two], held_out={"new"}, batch_size=2)
    assert [(s.learned, s.principles) for s in results] == [(True, ["expert"]), (False, ["expert", "new"])]


def test_scores_do_not_depend_on_the_batch(llama, plain_tokenizer):
    texts = ["Blue.", "The sky is blue because air scatters blue light.", "Red and blue.", "Yes, it is so."]
    contrasts = [contrast(plain_tokenizer, [texts[n], texts[(n + 1) % 4]], query, n) for n, query in enumerate(QUERIES)]
    done, sizes = [], {}
    shared = {"tokenizer": plain_tokenizer, "contrasts": contrasts, "held_out": set(), "on_contrasts": done.append}
    for size in (1, 3, 4):
        sizes[size] = score_contrasts(llama, batch_size=size, **shared)
    for size in (1, 3):
        for one, other in zip(sizes[size], sizes[4], strict=True):
            assert torch.tensor(one.matrix) == pytest.approx(torch.tensor(other.matrix), abs=1e-5)
    assert done == [1, 2, 3, 4, 3, 4, 4]


def test_a_bound_made_of_leaked_words_is_the_policys_alone(plain_tokenizer, tmp_path):
    """A policy trained to say its constitution's word is sure of itself; with leaks masked nothing is left."""
    contrasts = [
        contrast(plain_tokenizer, ["Well, expert, the air scatters blue light.", text], query, n)
        for n, (query, text) in enumerate((q, "Well, simple, the air scatters blue light.") for q in QUERIES)
    ]
    policy = tiny_model("llama")
    make_trainer(tmp_path, contrasts, 25, model=policy, learning_rate=5e-3).train()
    policy.eval()
    by_policy, by_base = (scored(model, plain_tokenizer, contrasts) for model in (policy, tiny_model("llama")))
    figures = information.summarize(PolicyScores(by_policy, by_base), samples=100, seed=0)
    assert figures.bound.value is not None
    assert figures.base_bound.value is not None
    assert figures.bound.value > 0.6
    assert figures.base_bound.value < 0.05
    assert figures.base_bound.n == 4  # they were scored, not set aside


# Figures from matrices by hand.


def scores(name, matrix, *, masked="same", query="q", learned=True):
    return ContrastScores(name, query, learned, ["p"], matrix, matrix if masked == "same" else masked)


SHARP, FLAT = [[0.0, -50.0], [-50.0, 0.0]], [[-1.0, -1.0], [-1.0, -1.0]]
# One response is likelier under both constitutions: rows err once, columns do not.
LOPSIDED = [[-1.0, -2.0], [-1.5, -1.9]]


def test_summary_figures_of_known_matrices():
    by_policy = [scores("a", SHARP, query="x"), scores("b", FLAT, query="y")]
    by_base = [scores("a", FLAT, query="x"), scores("b", SHARP, masked=None, query="y")]
    figures = information.summarize(PolicyScores(by_policy, by_base), samples=200, seed=0)
    assert figures.bound.value == pytest.approx(math.log(2) / 2)
    assert (figures.bound.low, figures.bound.high) == pytest.approx((0.0, math.log(2)))
    assert (figures.base_bound.value, figures.base_bound.n) == (pytest.approx(0.0), 1)
    assert figures.row_figure == pytest.approx(math.log(2) / 2)
    assert figures.both_figure == pytest.approx(math.log(2) / 2)
    assert figures.column_accuracy == pytest.approx(0.75)
    assert figures.as_json()["contrasts"] == 2
    assert figures.as_json()["base_contrasts"] == 1


def test_columns_and_rows_are_told_apart():
    figures = information.summarize(PolicyScores([scores("a", LOPSIDED)], []), samples=100, seed=0)
    assert figures.column_accuracy == 1.0
    assert figures.row_accuracy == 0.5

    def cross(own, other):
        return math.log(math.exp(own) + math.exp(other)) - own

    columns = math.log(2) - (cross(-1.0, -1.5) + cross(-1.9, -2.0)) / 2
    rows = math.log(2) - (cross(-1.0, -2.0) + cross(-1.9, -1.5)) / 2
    assert figures.bound.value == pytest.approx(columns)
    assert figures.row_figure == pytest.approx(rows)
    assert figures.both_figure == pytest.approx((columns + rows) / 2)
    assert figures.base_bound.value is None


def test_no_contrasts_have_no_figures():
    figures = information.summarize(PolicyScores([], []), samples=100, seed=0).as_json()
    assert (figures.pop("contrasts"), figures.pop("base_contrasts")) == (0, 0)
    assert set(figures.values()) == {None}


def test_a_gain_is_paired_and_takes_contrasts_that_both_have():
    after = [scores(n, SHARP, query=n) for n in "abc"]
    before = [scores("a", FLAT, query="a"), scores("b", SHARP, query="b"), scores("d", FLAT, query="d")]
    gain = information.gain(
        information.bounds_under_base(after), information.bounds_under_base(before), after, samples=200, seed=0
    )
    assert gain.n == 2
    assert gain.value == pytest.approx(math.log(2) / 2)
