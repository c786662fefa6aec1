"""Verdicts as annotations of alpaca_eval, for recomputing win rates with that package."""

from collections.abc import Sequence
from typing import Any

from sami.evaluation.verdicts import Verdict


def annotations(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """One annotation per judgement; alpaca_eval 0.6.6 takes one candidate, baseline and judge at a time.

    Output 1 is the baseline's and output 2 the candidate's. `preference` is 1 for the baseline, 1.5 for a tie, 2 for
    the candidate, and None for a judgement without a score. Verdicts contain the lengths of the responses and not their
    texts: the outputs are filler of these lengths, which is all that win rates and length control use.
    """
    return [
        {
            "instruction": v.query_id,
            "generator_1": v.baseline,
            "output_1": "x" * v.baseline_chars,
            "generator_2": v.candidate,
            "output_2": "x" * v.candidate_chars,
            "annotator": v.judge,
            "preference": None if v.score is None else 1 + v.score,
        }
        for v in verdicts
    ]
