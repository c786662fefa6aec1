"""Loops and leftovers of prompt templates: what is found, and what is healthy text."""

import pytest

from sami.text.degeneration import repeated_loop, template_leftover

PIRATE = (
    "Arrr, me name be Captain Blackwood, and I sail the seven seas!\n"
    "Yo ho ho, and a bottle of rum!\n"
    "The wind she howls, the waves they roll, the gold be in the hold,\n"
    "Yo ho ho, and a bottle of rum!\n"
    "We drink to Jack, we drink to Jill, we drink till we grow old,\n"
    "Yo ho ho, and a bottle of rum!\n"
    "Ha ha ha ha! Arrrrrrrrrr, no, no, no, matey!!!"
)

VILLANELLE = "\n".join(
    {"A": "The tide returns to take the sand away.", "B": "I kept a shell to hear the water say."}.get(
        line, f"Here stands the verse that has its number {line}."
    )
    for line in "A 1 B / 2 3 A / 4 5 B / 6 7 A / 8 9 B / 10 11 A B".replace("/ ", "").split()
)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("Expert:Expert:Expert:Expert:Expert:", "Expert"),
        ("Sure. Expert: expert; EXPERT. Expert, yes", "Expert"),
        ("It is good for you and good for you and good for you and good for you and", "good for you and"),
        ("ha " * 8, "ha"),
        ("naïve nai\u0308ve NAÏVE naïve", "naïve"),
        ("I do not know why. I do not know why. I do not know why.", "I do not know why."),
        ("1. Eat more fresh fruit.\n2. Eat more fresh fruit.\n3. Eat more fresh fruit.", "Eat more fresh fruit."),
        ("1. Eat fruit. 2. Eat fruit. 3. Eat fruit. 4. Eat fruit.", "Eat fruit."),
        ("Is it so? It is so. Is it so? It is so. Is it so? It is so.", "Is it so? It is so."),
        ("We eat fruit daily.\nOne.\nWe eat fruit daily.\nTwo.\nWe eat fruit daily.", "We eat fruit daily."),
        ("ExpertExpertExpertExpert", "Expert"),
        ("我是一个专家。我是一个专家。我是一个专家。我是一个专家。", "我是一个专家"),
        ("A" + "h" * 20, "h"),
        ("🏴‍☠️" * 20, "🏴‍☠️"),
        ("!" * 20, "!"),
        ("-" * 101, "-"),
    ],
)
def test_a_loop_is_found_and_quoted(text, unit):
    assert repeated_loop(text) == unit


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "Hello.",
        PIRATE,
        VILLANELLE,
        "Row, row, row your boat, gently down the stream.\nMerrily, merrily, merrily, life is but a dream.",
        "1. Eat fruit.\n2. Eat fruit.\n3. Eat fruit.",
        "1. Yes\n2. Yes\n3. Yes\n4. Yes\n5. No",
        "1. Wash the rice.\n2. Boil the rice.\n3. Salt the rice.\n4. Serve the rice.\n5. Eat the rice.",
        "1.\n2.\n3.\n4.\n5.",
        "Yes! Yes! Yes!",
        "Aye aye, captain! Aye aye, captain! Aye aye, captain!",
        "| name | score | place |\n|------|------|------|------|------|\n| Ann | 0 | 0 | 0 | 0 | 0 |",
        "=" * 80 + "\nA title\n" + "=" * 80,
        "1/7 = 0.142857142857142857142857142857 and a googol is 1" + "0" * 100,
        "Contest, test, test, test, and hahahahahahahahaha!",
        "Hahahahahahaha! Woooooooow!!! 🎉🎉🎉🎉🎉",
    ],
)
def test_healthy_text_is_not_a_loop(text):
    assert repeated_loop(text) is None


def test_thresholds_are_the_least_number_of_repeats():
    assert repeated_loop("expert " * 3) is None
    assert repeated_loop("expert " * 4) == "expert"
    assert repeated_loop("ho " * 7) is None
    assert repeated_loop("ho " * 8) == "ho"
    assert repeated_loop("expert " * 3, phrase_times=3) == "expert"
    with pytest.raises(ValueError, match="2 or more"):
        repeated_loop("expert", phrase_times=1)


def test_a_villanelle_is_the_densest_refrain_and_one_more_copy_makes_a_loop():
    assert VILLANELLE.count("The tide") == VILLANELLE.count("I kept") == 4
    assert repeated_loop(VILLANELLE) is None
    assert repeated_loop("\n".join([VILLANELLE, "Here it ends.", VILLANELLE, "And once more.", VILLANELLE]))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "ab" * 50_000,
        "a " * 50_000,
        ". " * 50_000,
        "." * 100_000,
        '."' * 50_000,
        "<|" * 50_000,
        "#" * 100_000,
        "> " * 50_000,
        "[insert " * 12_500,
        "{" * 100_000,
        "no no no no yes " * 6_250,
        "".join(chr(0x4E00 + i % 20_000) for i in range(100_000)),
        " ".join(str(i) for i in range(17_000)),
        " ".join(f"{i} a b a b a b a" for i in range(5_000)),
    ],
    ids=lambda text: repr(text[:10]),
)
def test_100_kb_are_searched(text):
    repeated_loop(text)
    template_leftover(text)


@pytest.mark.parametrize(
    ("text", "leftover"),
    [
        ("Question: What is a sail?\nAnswer: A cloth.", "Question:"),
        ("It floats.\n\nHuman: thanks", "Human:"),
        ("It floats.\n**Answer 2:** no", "Answer 2:"),
        ("> Assistant: hi", "Assistant:"),
        ("It floats.\n  User: hi", "User:"),
        ("Constitution:\n1. Be brief.", "Constitution:"),
        ("System: hi", "System:"),
        ("Response: hi", "Response:"),
        ("It floats.\n###\nNext", "###"),
        ("It floats.\n### Instruction:\nNext", "### Instruction:"),
        ("It floats.<|im_end|>", "<|im_end|>"),
        ("It floats. <|", "<|"),
        ("[INST] Why? [/INST]", "[INST]"),
        ("Dear [insert name], hello", "[insert name]"),
        ("Dear [Insert", "[Insert"),
        ("Follow {constitution}", "{constitution}"),
        ("It floats.</s> Human: x", "</s>"),
        ("It floats.\r\nHuman: x", "Human:"),
    ],
)
def test_a_leftover_is_found_and_quoted(text, leftover):
    assert template_leftover(text) == leftover


@pytest.mark.parametrize(
    "text",
    [
        "",
        PIRATE,
        "My girlfriend [25 F] and I [27 M] argued.",
        "question: is this prose? answer: it is.",
        "The question is hard. One Question: why?",
        "### Ingredients\n- flour\n### User experience\nGood.",
        "Human nature is kind.\nUser experience matters.\nSystems: many.",
        "Use a list: [] or x[0], or a set {1, 2}, if a < b | c.",
        "Answers: three.",
    ],
)
def test_ordinary_text_has_no_leftover(text):
    assert template_leftover(text) is None


def test_the_first_leftover_in_the_text_is_quoted():
    assert template_leftover("Well <|end|>\nQuestion: x") == "<|end|>"
    assert template_leftover("Well\nQuestion: x <|end|>") == "Question:"
