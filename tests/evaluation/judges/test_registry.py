"""Every kind of judge that a recipe accepts has a class, and every class has the settings that it takes."""

import inspect
from typing import get_args, get_type_hints

import pytest

from sami.evaluation.judges import JUDGES, judge_class
from sami.recipe import EndpointJudge, HumanJudge, LocalJudge, VerifierJudge
from sami.recipe.judging import Judge

SECTIONS = {kind: section for section in get_args(get_args(Judge)[0]) for kind in [get_args(section)[1].tag]}


def test_recipes_and_the_registry_have_the_same_kinds():
    assert list(SECTIONS) == list(JUDGES)


@pytest.mark.parametrize(
    ("section", "calibrated", "by_principles"),
    [
        (VerifierJudge, False, True),
        (LocalJudge, True, False),
        (EndpointJudge, True, False),
        (HumanJudge, False, False),
    ],
)
def test_the_abilities_of_each_judge(section, calibrated, by_principles):
    (kind,) = get_args(section.model_fields["kind"].annotation)
    found = judge_class(kind)
    assert (found.needs_calibration, found.needs_principles) == (calibrated, by_principles)
    assert get_type_hints(found.__init__)["settings"] is section
    assert not inspect.isabstract(found)
