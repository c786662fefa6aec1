"""Tiny models of many architectures are scored and decoded exactly, or refused for the true reason."""

import pytest

from bench import architectures

# One for each way in which a model is scored: shared rows or not, logits from hidden states or of the whole model,
# attention or a recurrence, positions that do not begin at 0, a text part of a multimodal model.
USUAL = ("llama", "opt", "falcon_h1", "llama4", "mamba2", "roberta", "gpt_oss", "gemma3", "bart")
EXPECTED = {
    "llama": ("shared", "separate"),
    "opt": ("shared", "whole model"),
    "falcon_h1": ("one response each", "whole model"),
    "llama4": ("shared", "whole model"),
    "mamba2": ("one response each", "separate"),
}


@pytest.mark.parametrize("architecture", USUAL)
def test_scores_and_greedy_decoding_are_those_of_the_plain_model(architecture: str) -> None:
    result = architectures.check(architecture)
    assert result.exact, result
    assert EXPECTED.get(architecture, (result.rows, result.head)) == (result.rows, result.head)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(set(architectures.ARCHITECTURES) - {*USUAL, *architectures.REFUSED}))
def test_every_other_architecture_of_the_table_is_exact(architecture: str) -> None:
    result = architectures.check(architecture)
    assert result.exact, result


@pytest.mark.parametrize("architecture", architectures.REFUSED)
def test_a_model_that_is_not_causal_is_refused_for_that(architecture: str) -> None:
    refused = architectures.check(architecture).refused
    assert refused is not None
    assert "its tokens attend to later ones" in refused


def test_the_table_names_at_least_forty_architectures_and_each_once() -> None:
    assert len(set(architectures.ARCHITECTURES)) == len(architectures.ARCHITECTURES) >= 40
