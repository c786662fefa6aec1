"""`sami probe`: figures that can be checked by hand, the rule of the verdict, and the command."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sami.commands import probe as probe_module
from sami.commands.probe import CONTROL, Link, Probe, probe, read_links, sentences
from sami.contrasts import Contrast
from sami.evaluation.bootstrap import Estimate
from sami.evaluation.information import ContrastScores
from sami.generation.respond import respond
from sami.prepared import prepare
from sami.principles import Principle
from sami.queries import Query
from sami.recipe import Recipe, load_recipe
from tests.support.command_line import refused
from tests.support.recipes import PRINCIPLES, write_recipe


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, model_folder) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), model_folder("llama", True))


@pytest.fixture(scope="module")
def recipe(recipe_file) -> Recipe:
    return load_recipe(recipe_file)


# Figures.


class Made:
    """What `read_links` takes of a prepared recipe."""

    def __init__(self, recipe: Recipe, principles: Sequence[Principle]) -> None:
        self.recipe, self.principles, self.prompts = recipe, list(principles), self
        self.stop = []
        self.control = {}


def contrast(principle: str, query: str, responses: tuple[str, str] = ("one", "two")) -> Contrast:
    return Contrast(
        id=f"{query}-{principle}",
        query=query,
        constitutions=["+", "-"],
        prompt_ids=[[1], [2]],
        response_ids=[[3], [4]],
        responses=list(responses),
        finish_reasons=["stop", "stop"],
        principles=[[(principle, True)], [(principle, False)]],
    )


def score(one: Contrast, lean: float, masked: float | None) -> ContrastScores:
    """Each response is likelier by `lean` nats under what it was written under."""
    [[(name, _)], _] = one.principles
    matrices = [None if x is None else [[-1.0, -1.0 - x], [-1.0 - x, -1.0]] for x in (lean, masked)]
    return ContrastScores(one.id, one.query, True, [name], matrices[0], matrices[1])


def links_of(
    recipe: Recipe,
    leans: dict[str, list[tuple[float, float | None]]],
    control: tuple[float, float] = (0.0, 0.0),
    responses: dict[int, tuple[str, str]] | None = None,
) -> Probe:
    """Links of made-up matrices: for each principle one (plain, masked) lean a query, of which the first two fit."""
    principles = [Principle(id=name, definition="a", antithesis="b") for name in leans]
    with_control = {CONTROL.id: [control] * 6, **leans}
    made = [
        (one := contrast(name, f"q{n}", (responses or {}).get(n, ("one", "two"))), score(one, *lean))
        for name, row in with_control.items()
        for n, lean in enumerate(row)
    ]
    queries = [Query(f"q{n}", f"q{n}") for n in range(2)]
    return read_links(Made(recipe, principles), [c for c, _ in made], [s for _, s in made], queries)


def test_the_bound_is_taken_at_the_temperature_of_the_fitting_queries(recipe):
    # Of the four responses to the fitting queries, in two contrasts, three lean the right way by 0.1 and one the wrong.
    contrasts = [contrast(name, f"q{n}") for name in ("p", CONTROL.id) for n in range(6)]
    scores = [score(one, 0.1, 0.1) if one.id.endswith("p") else score(one, 0.0, 0.0) for one in contrasts]
    scores[0] = replace(scores[0], matrix=[[-1.0, -0.9], [-1.1, -1.0]])
    made = Made(recipe, [Principle(id="p", definition="a", antithesis="b")])
    found = read_links(made, contrasts, scores, [Query("q0", "q0"), Query("q1", "q1")])
    assert 1 / found.temperature == pytest.approx(10 * math.log(3), rel=0.02)
    [link] = found.links
    assert (link.bound.n, link.accuracy.value, found.queries, found.fitted_on) == (4, 1.0, 4, 2)
    assert link.bound.value == pytest.approx(math.log(2) + math.log(0.75), abs=1e-3)


def test_a_wrong_link_has_a_bound_below_zero(recipe):
    found = links_of(recipe, {"right": [(0.1, 0.1)] * 6, "wrong": [(0.1, 0.1)] * 2 + [(-0.1, -0.1)] * 4})
    assert [link.principle.id for link in found.links] == ["right", "wrong"]
    assert found.links[1].bound.value < -1
    assert found.links[1].accuracy.value == 0.0
    assert [link.verdict(found.control) for link in found.links] == ["worth training", "not followed"]


def test_equal_responses_are_no_link(recipe):
    found = links_of(recipe, {"right": [(0.1, 0.1)] * 6, "none": [(0.0, 0.0)] * 6})
    link = found.links[1]
    assert (link.accuracy.value, link.bound.value) == (0.5, pytest.approx(0.0))
    assert link.verdict(found.control) == "not followed"


def test_a_link_no_stronger_than_that_of_one_request_in_two_wordings_is_none(recipe):
    found = links_of(recipe, {"alike": [(0.1, 0.1)] * 6}, control=(0.1, 0.1))
    assert found.control.accuracy.value == found.links[0].accuracy.value == 1.0
    assert found.links[0].verdict(found.control) == "not followed"


def test_a_link_by_the_principles_own_words_alone_is_weak(recipe):
    found = links_of(recipe, {"own": [(0.1, 0.1)] * 6, "words": [(0.2, 0.0)] * 6, "only": [(0.1, None)] * 6})
    verdicts = {link.principle.id: link.verdict(found.control) for link in found.links}
    assert verdicts == {"own": "worth training", "words": "weak", "only": "weak"}
    assert next(link for link in found.links if link.principle.id == "only").unleaked_bound.n == 0


def link(accuracy: float, bound: float, unleaked: float, enough: bool = True) -> Link:
    """A link whose intervals start at these figures."""
    estimates = [Estimate(low + 0.1, low, low + 0.2, 9) for low in (accuracy, bound, unleaked)]
    principle = Principle(id="p", definition="a", antithesis="b")
    return Link(principle, *estimates, kept=1.0, enough=enough, example=contrast("p", "q"))


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (link(0.51, 0.01, 0.01), "worth training"),
        (link(0.51, 0.01, 0.01, enough=False), "weak"),
        (link(0.51, 0.01, 0.0), "weak"),
        (link(0.51, 0.0, 0.01), "weak"),
        (link(0.5, 0.01, 0.01), "weak"),
        (link(0.5, 0.0, 0.01), "not followed"),
        (link(0.3, -0.4, -0.4), "not followed"),
    ],
)
def test_the_rule(made, verdict):
    control = link(0.3, -0.1, -0.1)  # at 0.4 and 0: chance counts
    assert made.verdict(control) == verdict


def test_the_rule_counts_from_the_control_where_it_is_above_chance():
    control = link(0.6, 0.1, 0.1)  # 0.7 and 0.2
    assert link(0.71, 0.21, 0.21).verdict(control) == "worth training"
    assert link(0.71, 0.19, 0.21).verdict(control) == "weak"
    assert link(0.71, 0.21, 0.19).verdict(control) == "weak"
    assert link(0.69, 0.19, 0.21).verdict(control) == "not followed"


def test_filtered_contrasts_are_counted(recipe):
    filtering = recipe.model_copy(update={"filters": recipe.filters.model_copy(update={"identical": True})})
    [one] = links_of(filtering, {"p": [(0.1, 0.1)] * 6}, responses={3: ("one", "one")}).links
    assert (one.kept, one.enough) == (0.75, True)


# The command.


def test_every_principle_is_measured_on_training_queries_only(recipe, monkeypatch):
    asked = []

    def watched(engine, planned, *rest, **more):
        asked.extend(planned)
        return respond(engine, planned, *rest, **more)

    monkeypatch.setattr(probe_module, "respond", watched)
    found = probe(recipe, 4)
    splits = prepare(recipe).splits
    training = {query.text for half in splits.train for query in half}
    assert {one.query for one in asked} <= training
    assert len({one.query for one in asked}) == 6
    assert len(asked) == 6 * (len(PRINCIPLES) + 1)  # and the control
    assert all([[q for _, q in c.principles] for c in one.constitutions] == [[True], [False]] for one in asked)
    assert {link.principle.id for link in found.links} == {str(p["id"]) for p in PRINCIPLES}
    assert all(link.accuracy.n == link.bound.n == 4 for link in found.links)
    assert all("–" not in sentence for sentence in sentences(found))


def test_the_command_prints_a_table_and_json(sami, recipe_file, tmp_path):
    before = sorted(recipe_file.parent.iterdir())
    code, out, err = sami("probe", recipe_file, "--queries", 4)
    assert code == 0, err
    rule = ("Rule: worth training", "Temperature", "4 queries are few")
    for words in ("column accuracy", "verdict", "brief", "asking (held out)", *rule):
        assert words in out
    assert "4 principles and a control, 4 training queries" in err
    code, out, _ = sami("probe", recipe_file, "--queries", 4, "--json")
    value = json.loads(out)
    assert code == 0
    assert (value["queries"], value["temperature_queries"], len(value["principles"])) == (4, 2, 4)
    first = value["principles"][0]
    assert {
        "id",
        "held_out",
        "verdict",
        "column_accuracy",
        "bound",
        "unleaked_bound",
        "kept",
        "example",
    } == first.keys()
    assert first["column_accuracy"].keys() == {"value", "low", "high", "n"}
    assert sorted(recipe_file.parent.iterdir()) == before  # nothing is written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--queries", "6"), ["6 training queries", "has 8", "--queries"]),
        (("principles=nowhere.yaml",), ["nowhere.yaml", "hh"]),
        (("principles={task: writing letters}",), ["sami write-principles"]),
        (("model.source=/nowhere/model", "--queries", "4"), ["/nowhere/model"]),
    ],
)
def test_bad_input(sami, recipe_file, arguments, words):
    refused(sami("probe", recipe_file, *arguments), *words)


def test_a_single_query_is_a_usage_error(sami, recipe_file):
    code, out, err = sami("probe", recipe_file, "--queries", 1)
    assert (code, out) == (2, "")
    assert "queries" in err
