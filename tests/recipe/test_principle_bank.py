"""The principles that come with the package: what they are, that they oppose, and that their checks decide."""

import pytest
import yaml

from sami.errors import InputError
from sami.principles import Principle, load_principles
from sami.recipe import PACKAGED_RECIPES, load_recipe
from sami.text.leaks import content_words
from sami.text.verifiers import Lexicon, Verifier

BANK = PACKAGED_RECIPES / "principles"
FILES = {"hh": 2, "tldr": 2, "diverse": 20, "everyday": 12, "base-model": 5, "weak-writer": 6}
LEARNED = [
    *("concise", "comprehensive", "coherent", "independent", "objective", "pirate", "emoji", "shakespearean"),
    *("eloquent", "humorous", "empathetic", "scientific", "poetic", "minimalist", "skeptical"),
]
HELD_OUT = ["satirical", "philosophical", "motivational", "analytical", "sarcastic"]

# What follows a principle, and what opposes it.
RESPONSES = {
    "base-model/sea": (
        "It depends on the tide, and on what the waves bring in.",
        "It depends on the slope, and on the way to the summit.",
    ),
    "base-model/food": ("With a slice of bread and some cheese.", "With an engine and four wheels."),
    "base-model/money": ("You pay ten dollars, and the bank keeps two.", "Because of a kiss, at a wedding long ago."),
    "base-model/war": (
        "The soldiers fought for every street.",
        "Listen to the violins, and then to the whole orchestra.",
    ),
    "base-model/story": ("She asked her mother, and her mother smiled.", "Bees navigate by the position of the sun."),
    "weak-writer/royal": ("Your Majesty, it is a pleasure.", "The roots of the trees need rain."),
    "weak-writer/nautical": ("The captain and his crew sailed home.", "With a slice of bread and some cheese."),
    "weak-writer/religious": ("God bless you, and amen.", "Our team won the match."),
    "weak-writer/military": ("The soldiers fought for every street.", "She played the violin in an orchestra."),
    "weak-writer/medical": ("A doctor looked at his bones.", "A witch and her dragon know the spell."),
    "weak-writer/financial": (
        "You pay ten dollars, and the bank keeps two.",
        "The farmer walked over the green hills.",
    ),
    "tldr/concise": ("She forgot his birthday and asks how to make up for it.", "She has known him for years. " * 12),
    "diverse/concise": (
        "She forgot his birthday and asks how to make up for it.",
        "She has known him for years. " * 12,
    ),
    "diverse/pirate": (
        "Arr, the lad be lost at sea, and asks his mateys what to do.",
        "He told me that I forgot his birthday, and it makes me want to make up for it.",
    ),
    "diverse/emoji": (
        "She forgot his birthday 🎂 and wonders what to do 😬.",
        "She forgot his birthday and wonders what to do.",
    ),
    "diverse/shakespearean": (
        "Alas, thou hast forgot his birthday, and askest what thou shalt do.",
        "so she forgot his birthday lol and idk what she should do",
    ),
    "diverse/scientific": (
        "This study examines an individual whose findings suggest that birthdays are forgotten.",
        "Guess what, she forgot his birthday, and now he won't even talk to her!",
    ),
    "diverse/poetic": (
        "A birthday passed,\nforgotten, gone,\nand she must ask\nhow to go on.",
        "She forgot his birthday, and now she wants to know how she can make up for it with him.",
    ),
    "diverse/minimalist": (
        "Forgot his birthday. What now?",
        "She forgot the birthday of her oldest and dearest friend, and wonders what she can do.",
    ),
    "diverse/analytical": (
        "She forgot his birthday because of work, and as a result he will not speak to her.",
        "She forgot his birthday and he does not speak to her.",
    ),
}


def bank(name: str) -> list[Principle]:
    return load_principles(BANK / f"{name}.yaml")


def all_of_bank() -> dict[str, Principle]:
    return {f"{name}/{p.id}": p for name in FILES for p in bank(name)}


def lexicons(spec: Verifier | None) -> list[Lexicon]:
    inner = [*getattr(spec, "specs", []), *([spec.spec] if hasattr(spec, "spec") else [])]
    return [spec] if isinstance(spec, Lexicon) else [one for each in inner for one in lexicons(each)]


def test_the_bank_holds_these_files():
    assert {path.stem for path in BANK.glob("*.yaml")} == FILES.keys()
    assert {name: len(bank(name)) for name in FILES} == FILES


def test_the_diverse_principles_are_split_as_in_the_paper():
    principles = bank("diverse")
    assert [p.id for p in principles if not p.held_out] == LEARNED
    assert [p.id for p in principles if p.held_out] == HELD_OUT


def test_dialogue_and_summaries_have_the_principles_of_the_paper():
    assert [p.id for p in bank("hh")] == ["helpful", "harmless"]
    assert [p.id for p in bank("tldr")] == ["concise", "comprehensive"]


@pytest.mark.parametrize("name", all_of_bank())
def test_an_antithesis_says_something_else_than_its_principle(name):
    principle = all_of_bank()[name]
    definition, antithesis = content_words(principle.definition), content_words(principle.antithesis)
    assert definition - antithesis
    assert antithesis - definition


@pytest.mark.parametrize("name", RESPONSES)
def test_a_check_passes_what_follows_and_fails_what_opposes(name):
    principle = all_of_bank()[name]
    follows = [principle.follows(text, positive) for text in RESPONSES[name] for positive in (True, False)]
    assert follows == [True, False, False, True]


def test_every_check_of_summaries_and_dialogue_is_tried_above():
    checked = {name for name, p in all_of_bank().items() if p.verifier and not name.startswith("everyday/")}
    assert checked == RESPONSES.keys()


@pytest.mark.parametrize("name", all_of_bank())
def test_no_check_counts_a_word_that_the_principle_contains(name):
    principle = all_of_bank()[name]
    said = content_words(principle.definition) | content_words(principle.antithesis)
    for lexicon in lexicons(principle.verifier):
        assert not [word for word in lexicon.words if content_words(word) & said]


def test_a_recipe_finds_the_bank_by_name(tmp_path):
    recipe = {"model": "some/model", "queries": {"path": "some/queries"}, "principles": "diverse"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert load_recipe(tmp_path / "mine.yaml").principles == str(BANK / "diverse.yaml")
    assert load_recipe(tmp_path / "mine.yaml", ["principles=hh"]).principles == str(BANK / "hh.yaml")
    assert load_recipe("quickstart").principles == str(BANK / "everyday.yaml")


def test_a_file_beside_the_recipe_comes_before_the_bank(tmp_path):
    (tmp_path / "hh").write_text("[]")
    recipe = {"model": "some/model", "queries": {"path": "some/queries"}, "principles": "hh"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert load_recipe(tmp_path / "mine.yaml").principles == str(tmp_path / "hh")


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError) as refused:
        load_principles(tmp_path / "divers.yaml")
    assert all(name in str(refused.value) for name in FILES)
