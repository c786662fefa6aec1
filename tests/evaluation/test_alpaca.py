"""Annotations for alpaca_eval, and our length-controlled rate against that package's own."""

import math

import numpy as np
import pytest

from sami.evaluation.alpaca import annotations
from sami.evaluation.win_rate import win_rates
from tests.support.simulated import evaluation, verdict


def test_an_annotation_keeps_lengths_and_says_who_won():
    (first, tie, unscored) = annotations(
        [verdict("q1", 1.0, longer_by=-400), verdict("q2", 0.5, order="baseline_first"), verdict("q3", None)]
    )
    assert (len(first.pop("output_1")), len(first.pop("output_2"))) == (1000, 600)
    assert first == {
        "instruction": "q1",
        "generator_1": "base",
        "generator_2": "iteration-1",
        "annotator": "judge",
        "preference": 2.0,
    }
    assert (tie["preference"], unscored["preference"]) == (1.5, None)
    assert annotations([verdict(score=0.0)])[0]["preference"] == 1.0


@pytest.fixture
def alpaca(monkeypatch, tmp_path):
    """alpaca_eval's regression; the table of difficulties that it downloads, and then ignores, is a stub."""
    pytest.importorskip("alpaca_eval", reason="alpaca_eval is not installed: pip install 'sami[alpaca]'")
    from alpaca_eval.metrics import glm_winrate

    table = tmp_path / "df_gamed.csv"
    table.write_text("model,index,instruction_difficulty\n" + "".join(f"stub,{i},0.0\n" for i in range(5000)))
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(table))
    return glm_winrate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # scikit-learn's, about options that alpaca_eval sets
@pytest.mark.parametrize("quality", [-0.8, -0.3, 0.3, 0.8])
@pytest.mark.parametrize("length", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_the_length_controlled_rate_is_alpaca_evals_within_half_a_point(alpaca, quality, length, shift):
    # With quality 0, alpaca_eval's L1 penalty may set the answer to exactly 50; see docs/evaluation.md.
    rng = np.random.default_rng(1)
    verdicts = evaluation(rng, queries=1000, quality=quality, length=length, shift=shift)
    theirs = alpaca.get_length_controlled_winrate(
        annotations(verdicts), glm_name="length_controlled_minimal", save_weights_dir=None
    )
    (ours,) = win_rates(verdicts, samples=2)
    assert theirs["win_rate"] == pytest.approx(ours["raw"]["rate"])
    assert theirs["length_controlled_winrate"] == pytest.approx(ours["length_controlled"]["rate"], abs=0.5)
    # Neither is the raw rate by another name.
    if abs(shift) == 1 and length > 0.5:
        assert abs(ours["raw"]["rate"] - ours["length_controlled"]["rate"]) > 3
    assert ours["length_controlled"]["rate"] == pytest.approx(100 / (1 + math.exp(-quality)), abs=6)
