"""The verifiers of the principles as a judge."""

import pytest

from sami.evaluation.ask import questions_of
from sami.evaluation.judges import Given
from sami.evaluation.judges.verifier import Verifiers
from sami.principles import Principle
from sami.recipe import VerifierJudge
from tests.support.judging import BRIEF, KIND, pair, said

LOUD = Principle(id="loud", definition="Be loud.", antithesis="Be soft.", verifier={"check": "case", "case": "upper"})


@pytest.mark.parametrize(
    ("principles", "candidate", "baseline", "score"),
    [
        ([("brief", True)], "Yes.", "Yes, and here is why.", 1.0),
        ([("brief", True)], "Yes, and here is why.", "Yes.", 0.0),
        ([("brief", False)], "Yes, and here is why.", "Yes.", 1.0),
        ([("brief", True)], "Yes.", "No.", 0.5),
        ([("brief", True), ("loud", True)], "YES.", "yes.", 1.0),
        ([("brief", True), ("loud", False)], "YES.", "yes it is so", 0.5),
        ([("brief", True), ("kind", True)], "Yes.", "Yes, and here is why.", None),
        ([], "Yes.", "Yes, and here is why.", None),
    ],
)
def test_who_passes_more_of_the_verifiers_wins(principles, candidate, baseline, score):
    one = pair(candidate=candidate, baseline=baseline, principles=tuple(principles))
    found = said(
        Verifiers(VerifierJudge(kind="verifier"), Given([BRIEF, LOUD, KIND])), questions_of([one], order="both", seed=0)
    )
    assert [j.score for j in found.values()] == ([] if score is None else [score, score])
