"""Where the layouts of known data sets keep the query."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sami.queries import Query, load_queries
from tests.support.queries import comparison, lines, pair, refusal, texts, turns, write

USER, ANSWER = {"role": "user", "content": "Why tea?"}, {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    "messages", [[USER], [USER, ANSWER], [{"role": "user", "content": [{"type": "text", "text": "Why tea?"}]}, ANSWER]]
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_conversation_with_one_user_turn_is_a_query(tmp_path, messages, suffix):
    path = tmp_path / f"q.{suffix}"
    if suffix == "jsonl":
        write(path, lines({"messages": messages}))
    else:
        pq.write_table(pa.Table.from_pylist([{"messages": messages[:1]}]), path)
    assert texts(load_queries(str(path), field="messages")) == ["Why tea?"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "system", "content": "Be brief."}, USER], "set `prompt.system` in the recipe"),
        ([USER, ANSWER, USER], "one user turn"),
        ([ANSWER], "one user turn"),
        ([], "one user turn"),
        (["Why tea?"], "not a conversation"),
        ([{"role": "user", "content": 3}], "type int"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "not text"),
    ],
)
def test_other_conversations_are_refused_with_the_reason(tmp_path, messages, reason):
    message = refusal(write(tmp_path / "q.jsonl", lines({"messages": messages})), field="messages")
    assert message.startswith("Line 1 of")
    assert reason in message


def test_the_query_of_a_transcript_is_its_first_human_turn(tmp_path):
    records = [
        pair(turns("Why tea?", "Because.", "And milk?", "No."), turns("Why tea?", "Never mind.")),
        pair(turns("Two\n\nparagraphs: one, two.", "I see.")),
        pair("\n\nHuman: Human: who are you?\n\nAssistant: Assistant."),
        pair(turns("No answer yet?")),
        pair("Human:One space less\n\nAssistant: Yes"),
    ]
    assert texts(load_queries(write(tmp_path / "hh.jsonl", lines(*records)), format="hh")) == [
        "Why tea?",
        "Two\n\nparagraphs: one, two.",
        "Human: who are you?",
        "No answer yet?",
        "One space less",
    ]


def test_transcripts_without_a_human_turn_at_their_start_are_counted_as_such(tmp_path):
    records = [
        pair(turns("Why tea?", "Because.")),
        pair("\n\nAssistant: Hello!\n\nHuman: Why tea, and not coffee?"),  # an answer to what is not a query
        pair("Just text."),
        pair(""),
        pair("\n\nHuman: \n\nAssistant: Hm?"),
        pair(turns("why  TEA?", "As I said.")),
        pair("damaged", turns("Why coffee?", "Because.")),  # both members of a pair answer the same query
    ]
    loaded = load_queries(write(tmp_path / "hh.jsonl", lines(*records)), format="hh")
    assert texts(loaded) == ["Why tea?", "Why coffee?"]
    assert loaded.read == 7
    assert loaded.dropped() == "duplicates 1, empty 1, no human turn 3"
    message = refusal(write(tmp_path / "none.jsonl", lines(pair("One."), pair("Two."))), format="hh")
    assert "2 transcripts that do not open with a human turn" in message


def test_a_post_is_one_query_however_many_comparisons_there_are_of_it(tmp_path):
    records = [
        comparison("t3_a", "I like tea.\n\nShould I?"),
        comparison("t3_b", "I like coffee."),
        comparison("t3_a", "I like tea.\n\nShould I?"),
        comparison("t3_c", "i like  coffee. "),  # posted again under another id
        comparison("cnn", None, article="News.", site="cnn"),
    ]
    loaded = load_queries(write(tmp_path / "tldr.jsonl", lines(*records)), format="tldr")
    assert loaded.queries == [Query("t3_a", "I like tea.\n\nShould I?"), Query("t3_b", "I like coffee.")]
    assert loaded.dropped() == "duplicates 2, empty 1"


def test_layouts_are_read_from_parquet_too(tmp_path):
    for layout, record in {"hh": pair(turns("Why tea?", "So.")), "tldr": comparison("t3_a", "Why tea?")}.items():
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "q.parquet")
        assert texts(load_queries(str(tmp_path / "q.parquet"), format=layout)) == ["Why tea?"]


@pytest.mark.parametrize(
    ("layout", "record", "reason"),
    [
        ("hh", {"chosen": "x"}, "no field 'rejected'"),
        ("hh", {"chosen": 3, "rejected": "x"}, "type int in the field 'chosen'"),
        ("tldr", {"post": "x"}, "no field 'info'"),
        ("tldr", {"info": "x"}, "no `post` in its field 'info'"),
        ("tldr", {"info": {"title": "x"}}, "no `post`"),
        ("tldr", {"info": {"post": ["x"]}}, "type list in the field 'info.post'"),
    ],
)
def test_a_record_of_another_layout_is_refused_by_its_line(tmp_path, layout, record, reason):
    message = refusal(write(tmp_path / "q.jsonl", lines(record)), format=layout)
    assert message.startswith("Line 1 of")
    assert reason in message


def test_a_field_beside_a_layout_that_knows_its_own_is_refused(tmp_path):
    path = write(tmp_path / "q.jsonl", lines(pair("x")))
    assert "format 'hh', which knows" in refusal(path, format="hh", field="chosen")
