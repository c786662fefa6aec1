"""`sami probe --both-places`: both places are measured as `sami probe` measures them, and the advice follows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sami.commands.probe import CONTROL, Link, Probe, probe
from sami.commands.probe_places import advice
from sami.contrasts import Contrast
from sami.evaluation.bootstrap import Estimate
from sami.principles import Principle
from sami.recipe import load_recipe
from tests.support.command_line import Sami, refused
from tests.support.recipes import write_recipe

Folder = Callable[[str, bool], Path]


def test_each_place_has_the_figures_of_a_probe_of_its_own(sami: Sami, tmp_path: Path, model_folder: Folder) -> None:
    file = write_recipe(tmp_path, model_folder("llama", True))
    code, out, err = sami("probe", file, "--queries", 4, "--both-places", "--json")
    assert code == 0, err
    found = json.loads(out)
    for place in ("user", "system"):
        alone = probe(load_recipe(file, [f"prompt.constitution_in={place}"]), 4).as_json()
        assert found[place] == json.loads(json.dumps(alone))
    assert found["user"] != found["system"]
    code, out, _ = sami("probe", file, "--queries", 4, "--both-places")
    assert code == 0
    for words in ("turn", "system", "asking (held out)", "control", found["advice"][:40], "4 queries are few"):
        assert words in out


def test_a_model_without_a_system_turn_is_refused(sami: Sami, tmp_path: Path, model_folder: Folder) -> None:
    file = write_recipe(tmp_path, model_folder("gpt2", False))
    refused(sami("probe", file, "--queries", 4, "--both-places"), "no system turn to put a constitution in")


def probed(*lows: float) -> Probe:
    """A probe whose links have intervals that begin so far above chance."""
    example = Contrast("c", "q", ["+", "-"], [[1], [2]], [[3], [4]], ["a", "b"], ["stop", "stop"], [[], []])

    def link(low: float) -> Link:
        estimates = [Estimate(chance + low + 0.1, chance + low, chance + low + 0.2, 9) for chance in (0.5, 0.0, 0.0)]
        principle = Principle(id="p", definition="a", antithesis="b")
        return Link(principle, *estimates, kept=1.0, enough=True, example=example)

    return Probe([link(low) for low in lows], replace(link(-0.2), principle=CONTROL), 1.0, 1.0, 24, 12)


@pytest.mark.parametrize(
    ("user", "system", "said"),
    [
        (
            (0.1, 0.1),
            (0.1, -0.1),
            "in the user's turn (2 of 2 with a mean bound of 0.200 nats in the user's turn, 1 of",
        ),
        ((-0.1, -0.1), (0.1, -0.1), "set prompt.constitution_in=system."),
        ((0.1, -0.1), (0.3, -0.1), "As many principles are worth training in both places"),
    ],
)
def test_the_place_with_more_principles_worth_training_is_advised(
    user: tuple[float, ...], system: tuple[float, ...], said: str
) -> None:
    assert said in advice({"user": probed(*user), "system": probed(*system)})
