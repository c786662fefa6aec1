"""Principles, constitutions, and what a principles file may not say."""

import math
import random
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.principles import Constitution, load_principles
from tests.support.principles import FOUR, ids, principle, sample

SEEDS = range(200)


def test_learned_principles_suffice_so_held_out_ones_are_never_needed(tmp_path):
    """k of exactly k learned principles can be drawn, and no more: held-out ones are not counted."""
    file = tmp_path / "p.yaml"
    file.write_text(
        "- {id: a, definition: A., antithesis: Not A.}\n"
        "- {id: b, definition: B., antithesis: Not B., held_out: true}\n"
        "- {id: c, definition: C., antithesis: Not C.}\n"
    )
    learned = [p for p in load_principles(file) if not p.held_out]
    for scheme in ("opposite", "positive_vs_negative", "independent"):
        drawn = {name for seed in SEEDS for c in sample(seed, scheme, 2, 2, learned) for name in ids(c)}
        assert drawn == {"a", "c"}
        with pytest.raises(InputError, match=r"only 2 principles.*not held out"):
            sample(0, scheme, 2, 3, learned)


# --- constitutions ---


def test_one_principle_stands_alone_and_several_are_numbered():
    brief, kind, formal, _ = FOUR
    assert Constitution(((brief, True),)).text == "Be brief."
    assert Constitution(((brief, False),)).text == "Never be brief."
    numbered = Constitution(((brief, True), (kind, False), (formal, True)))
    assert numbered.text == "1. Be brief.\n2. Never be kind.\n3. Be formal."


def test_shuffling_changes_the_order_and_nothing_else():
    constitution = sample(3, "opposite", k=4)[0]
    orders = set()
    for seed in SEEDS:
        shuffled = constitution.shuffled(random.Random(seed))
        assert sorted(shuffled.principles, key=str) == sorted(constitution.principles, key=str)
        assert shuffled.key == constitution.key
        orders.add(tuple(ids(shuffled)))
    assert len(orders) == math.factorial(4)
    first = min(orders)
    lines = Constitution(tuple((p, True) for name in first for p in FOUR if p.id == name)).text.splitlines()
    assert [line[:2] for line in lines] == ["1.", "2.", "3.", "4."]


def test_the_key_ignores_order_and_sees_polarity():
    brief, kind = FOUR[:2]
    one = Constitution(((brief, True), (kind, False)))
    assert one.key == Constitution(((kind, False), (brief, True))).key
    assert one.key != Constitution(((brief, True), (kind, True))).key


# --- verdicts ---

SHORT = {"check": "word_count", "max": 3}
LONG = {"check": "word_count", "min": 6}


@pytest.mark.parametrize(
    ("response", "definition", "antithesis", "antithesis_of_its_own"),
    [
        ("Two words.", True, False, False),
        ("Here are exactly four.", False, True, False),  # neither short nor long
        ("Here is a response of seven words.", False, True, True),
        ("", False, False, False),
        (" \n", False, False, False),
    ],
)
def test_a_response_follows_the_definition_or_the_antithesis_by_their_verifiers(
    response, definition, antithesis, antithesis_of_its_own
):
    alone = principle("brief", verifier=SHORT)
    both = principle("brief", verifier=SHORT, antithesis_verifier=LONG)
    assert alone.follows(response, positive=True) is definition
    assert both.follows(response, positive=True) is definition
    assert alone.follows(response, positive=False) is antithesis
    assert both.follows(response, positive=False) is antithesis_of_its_own


def test_without_a_verifier_nothing_is_decided():
    assert FOUR[0].follows("Yes.", positive=True) is None
    assert FOUR[0].follows("", positive=False) is None


@pytest.mark.parametrize("response", ["\u200b", "\ufeff\n"])
def test_a_response_that_cannot_be_seen_follows_no_antithesis(response):
    assert principle("brief", verifier=SHORT).follows(response, positive=False) is False


# --- files ---


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "principles.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


GOOD = """\
- id: brief
  definition: "  Answers should be brief. "
  antithesis: Answers should be long.
  verifier: {check: word_count, max: 40}
- id: pirate-2.0
  definition: Talk like a pirate.
  antithesis: Talk like a lawyer.
  held_out: true
"""


@pytest.mark.parametrize("content", [GOOD, "principles:\n" + "".join(f"  {line}\n" for line in GOOD.splitlines())])
def test_a_file_is_a_list_or_holds_it_under_principles(tmp_path, content):
    brief, pirate = load_principles(write(tmp_path, content))
    assert (brief.id, brief.definition, brief.held_out) == ("brief", "Answers should be brief.", False)
    assert brief.follows("Yes.", positive=True) is True
    assert (pirate.id, pirate.verifier, pirate.held_out) == ("pirate-2.0", None, True)


ONE = "- {id: a, definition: A., antithesis: B."  # to be closed
NO_LIST = ["it has no list of principles", "id, definition and antithesis"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("- {id: a, definition: Be a.}", ["Principle a", "has no antithesis"]),
        ("- {id: a, definition: Be a., antithesis: ''}", ["Principle a", "has no antithesis"]),
        ("- {definition: Be a.}", ["Principle number 1", "has no antithesis"]),
        ("- {id: a, definition: Be a., antithesis: '  '}", ["Principle a", "antithesis: string should have"]),
        (ONE + "}\n- {id: b, definition: A., antithesis: B.}\n" + ONE + "}", ["uses the id 'a' twice"]),
        ("- {id: a, definition: Be Kind., antithesis: ' be  kind. '}", ["Principle a", "antithesis is the definition"]),
        (ONE + ", held_out: true}", ["Every principle", "none to train on"]),
        (ONE + ", verifier: {check: wordcount, max: 3}}", ["Principle a", "verifier", "wordcount", "word_count"]),
        (ONE + ", antithesis_verifier: {check: word_count, max: 3}}", ["Principle a", "needs a verifier beside it"]),
        (ONE.replace("a,", "a b,") + "}", ["Principle a b", "id: string should match pattern"]),
        (ONE + ", weight: 2}", ["Principle a", "weight: extra inputs"]),
        ("- {antithesis: B., definition: A.}", ["Principle number 1", "id: field required"]),
        ("- Be kind.", ["Principle number 1", "cannot be used"]),
        ("[1", ["is not valid"]),
        ("", NO_LIST),
        ("[]", NO_LIST),
        ("principles: {}", NO_LIST),
        ("text", NO_LIST),
    ],
)
def test_a_file_that_cannot_work_is_refused_with_the_place(tmp_path, content, parts):
    file = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        load_principles(file)
    message = str(caught.value)
    assert all(part.casefold() in message.casefold() for part in [*parts, str(file)]), message


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml does not exist"):
        load_principles(tmp_path / "nothing.yaml")
