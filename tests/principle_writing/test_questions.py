"""Principles written by a model: what is taken from an answer, what is not, and where it ends."""

from collections.abc import Callable, Sequence

import pytest

from sami.errors import InputError
from sami.principle_writing.answers import read_names, read_sentence
from sami.principle_writing.questions import ATTEMPTS, Question, scripted, write_principles

TASK = "summarising Reddit posts"
NAMES = ["concise", "comprehensive"]
GOOD = {
    ("definition", "concise"): "Responses should keep to one short sentence without side remarks.",
    ("antithesis", "concise"): "Instead of being concise, responses should ramble on for many paragraphs.",
    ("definition", "comprehensive"): "Responses should cover every person and event of the post.",
    ("antithesis", "comprehensive"): "Instead of being comprehensive, responses should mention a single detail.",
}


class Writer:
    """Answers from a function, and remembers what it was asked."""

    def __init__(self, says: Callable[[Question], str]) -> None:
        self.says, self.asked = says, list[Question]()

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        self.asked += questions
        return [self.says(question) for question in questions]


def good(question: Question) -> str:
    return GOOD[question.kind, question.name]


def failing(kind: str, name: str, text: str) -> Writer:
    """A writer that is good at everything but one sentence."""
    return Writer(lambda q: text if (q.kind, q.name) == (kind, name) else good(q))


def refusal(writer: Writer, names: list[str] | None = NAMES) -> str:
    with pytest.raises(InputError) as caught:
        write_principles(writer, TASK, names)
    return str(caught.value)


def test_a_definition_and_an_antithesis_for_each_name():
    writer = Writer(good)
    principles = write_principles(writer, TASK, NAMES, seed=7)
    assert [(p.id, p.definition, p.antithesis) for p in principles] == [
        ("concise", GOOD["definition", "concise"], "Responses should ramble on for many paragraphs."),
        ("comprehensive", GOOD["definition", "comprehensive"], "Responses should mention a single detail."),
    ]
    assert len(writer.asked) == 4
    assert {q.seed for q in writer.asked} == {7 * ATTEMPTS}  # the first attempt's
    assert all(TASK in q.prompt and q.name in q.prompt for q in writer.asked)


@pytest.mark.parametrize("kind", ["definition", "antithesis"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I'm sorry, but I cannot help with that.", "refuses"),
        ("Responses should, as an AI language model, be neutral.", "refuses"),
        ("", "empty"),
        ("Sure! Here is a definition. Responses should be short.", "does not start with"),
        ("{opening} be short. They should also be clear.", "goes on after"),
        ("{opening} be short, and then they should be short, and then they should", "has no end"),
        ("{opening} be light-hearted and light-hearted.", "repeats itself"),
        ("{opening} be short, short, short in every way.", "repeats itself"),
        ("{opening} ser cortas y directas, sin palabras innecesarias para nadie.", "not English"),
        ("{opening} être courtes et directes, sans mots inutiles.", "not English"),
        ("{opening} kurz sein und keine unnötigen Wörter enthalten.", "not English"),
        ("{opening} 保持简短。", "not English"),
        ("{opening} be unlikельflier than the rest.", "not English"),
        ("{opening} be the opposite of the original prompt.", "about the question"),
        ("{opening} be short and to the \x07 point.", "unprintable"),
        ("{opening} rest.", "3 words"),
        ("{opening} be so short that " + ", ".join(f"reader {n} likes them" for n in range(20)) + ".", "words"),
        ("{opening} be what?", "not a statement"),
        ("{opening} do the following: be short.", "not a statement"),
        ("{opening} say <|im_end|> in the end.", "not a statement"),
    ],
)
def test_an_answer_that_cannot_be_used_is_asked_again_and_then_refused(kind, text, words):
    opening = "Responses should" if kind == "definition" else "Instead of being concise, responses should"
    writer = failing(kind, "concise", text.format(opening=opening))
    message = refusal(writer)
    for expected in (words, "1 of 2", "'concise'", kind, "Nothing was written"):
        assert expected in message
    seeds = [q.seed for q in writer.asked if (q.kind, q.name) == (kind, "concise")]
    assert seeds == list(range(ATTEMPTS))
    assert sum(q.name == "comprehensive" for q in writer.asked) == 2  # what could be used is not asked again


@pytest.mark.parametrize(
    "text",
    [
        "Responses should talk about farms, fields, cows and country roads.",
        "Responses should speak of honour, as a knight does, and of castles too.",
        "Responses should be kind, polite and rural.",
    ],
)
def test_an_example_of_the_question_is_no_answer(text):
    assert "repeats an example" in refusal(failing("definition", "concise", text))


def test_a_name_may_come_with_its_opposites():
    said = {
        "Style: military": "Responses should speak of soldiers and their weapons.",
        "Style: musical": "Responses should speak of songs, singers and guitars.",
        "Style: concise": GOOD["definition", "concise"],
    }
    writer = Writer(lambda q: said.get(q.prompt.rpartition("\n")[2]) or good(q))
    first, second = write_principles(writer, TASK, ["military / musical", "concise"])
    assert (first.id, first.definition, first.antithesis) == (
        "military",
        said["Style: military"],
        said["Style: musical"],
    )
    assert second.antithesis == "Responses should ramble on for many paragraphs."
    for antithesis, words in (
        ("Responses should never be musical or loud.", "asks for the opposite of its name"),
        ("Responses should speak of military bands and songs.", "asks for 'military' itself"),
    ):
        said["Style: musical"] = antithesis
        message = refusal(writer, ["military/musical", "concise"])
        assert words in message
        assert "the last antithesis of 'military'" in message


def test_a_later_seed_may_succeed():
    writer = Writer(lambda q: good(q) if q.seed >= 2 else "I cannot do that.")
    assert len(write_principles(writer, TASK, NAMES)) == 2


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("definition", "Responses should never be concise or direct.", "asks for the opposite of its name"),
        ("definition", "Responses should cover every person and event of the post.", "repeats what was written"),
        ("antithesis", "Instead of being concise, responses should be concise with a twist.", "asks for 'concise'"),
        ("antithesis", "Instead of being concise, responses should be the opposite of concise.", "adds nothing"),
        (
            "antithesis",
            "Instead of being concise, responses should keep to one short sentence without side remarks.",
            "adds nothing to the definition",
        ),
        (
            "antithesis",
            "Instead of being concise, responses should keep to one very short sentence with no side remark today.",
            "almost the definition",
        ),
        ("antithesis", "Instead of being concise, responses should mention a single detail.", "repeats what was"),
    ],
)
def test_a_pair_that_does_not_oppose_or_differ_is_refused(kind, text, words):
    def say(q):
        # The other principle comes first, so that a repetition is found in this one.
        return text if (q.kind, q.name) == (kind, "concise") else good(q)

    assert words in refusal(Writer(say), ["comprehensive", "concise"])


@pytest.mark.parametrize(
    "sentence",
    [
        "responses should be long and detailed, not concise.",
        "responses should be anything but concise and crisp.",
        "responses should avoid concise phrases.",
    ],
)
def test_an_antithesis_may_name_what_it_denies(sentence):
    writer = failing("antithesis", "concise", f"Instead of being concise, {sentence}")
    assert write_principles(writer, TASK, NAMES)[0].antithesis == sentence.capitalize()


def test_quotation_marks_emphasis_and_line_breaks_around_an_answer_do_not_count():
    read = read_sentence(' **"Responses should\nstay short and to the point."** ', "Responses should")
    assert read == "Responses should stay short and to the point."


# Names.


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["concise"], ["1 principle ", "at least two"]),
        ([], ["0 principles", "at least two"]),
        (["concise", "Concise"], ["'concise'", "twice"]),
        (["concise", ""], ["''", "adjective"]),
        (["concise", "42"], ["'42'"]),
        (["concise", "лаконичный"], ["a to z"]),
        (["concise", "naïve"], ["a to z"]),
        (["concise", "a: b"], ["'a: b'"]),
        (["concise", "kind/"], ["''", "concise/comprehensive"]),
        (["concise", "kind/Kind"], ["'kind/Kind'", "its own opposite"]),
        (["concise", "kind/rude/bad"], ["'rude/bad'"]),
        (["kind/rude", "kind/mean"], ["'kind'", "twice"]),
    ],
)
def test_names_that_cannot_be_used_are_refused_before_anything_is_asked(names, words):
    writer = Writer(good)
    message = refusal(writer, names)
    assert all(word in message for word in words), message
    assert not writer.asked


def test_a_name_may_be_a_few_words():
    writer = Writer(lambda q: scripted([q])[0])
    assert [p.id for p in write_principles(writer, TASK, ["to the point", "king's", "Shakespearean"])] == [
        "to_the_point",
        "king_s",
        "shakespearean",
    ]


def test_an_empty_task_is_refused():
    with pytest.raises(InputError, match="task is empty"):
        write_principles(Writer(good), " . ", NAMES)


def test_names_are_written_where_none_are_given():
    principles = write_principles(scripted, TASK, count=3)
    assert [p.id for p in principles] == ["plain", "formal", "playful"]  # "vivid" stands in the example
    assert all(p.id in p.definition for p in principles)


def test_names_are_gathered_over_several_answers_each_once():
    answers = [
        "Styles: dry, dry, Dry, xqzt, wry humour, cheerfully",
        "I'm sorry.",
        "Styles: playful, the, cheerful, dry, grim",
    ]

    def say(q):
        return answers[q.seed % 3] if q.kind == "names" else scripted([q])[0]

    assert [p.id for p in write_principles(Writer(say), TASK, count=3)] == ["dry", "playful", "grim"]


def test_a_name_that_the_writer_cannot_define_is_replaced_by_another():
    def say(q):
        return "I cannot say." if q.name == "formal" else scripted([q])[0]

    assert [p.id for p in write_principles(Writer(say), TASK, count=3)] == ["plain", "playful", "patient"]


@pytest.mark.parametrize(
    "answer", ["Styles: there are many styles.", "I can't.", "Estilos: corto, largo", "Styles: dry, dry"]
)
def test_a_writer_without_names_is_refused(answer):
    writer = Writer(lambda q: answer)
    message = refusal(writer, None)
    assert f"styles in {ATTEMPTS} attempts" in message
    assert "--names" in message
    assert len(writer.asked) == ATTEMPTS


def test_only_single_english_words_are_names():
    assert read_names("Styles: brief, to the point, and vivid.", "Styles:") == ["brief", "vivid"]
