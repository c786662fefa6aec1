"""Queries: what is read, what is refused and how, and splits that keep evaluation out of training."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sami.errors import InputError
from sami.queries import LoadedQueries, Query, load_queries, normalise, split_queries
from sami.recipe import PACKAGED_RECIPES, load_recipe
from tests.support.places import SHARED

HELPFUL = SHARED / "data/hh/helpful_queries.jsonl"
POSTS = HELPFUL.parents[1] / "tldr/posts.jsonl"
QUERIES = [Query(f"q{number}", f"How do I do {number}?") for number in range(50)]


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def texts(loaded: LoadedQueries) -> list[str]:
    return [query.text for query in loaded.queries]


def refusal(path: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_queries(path, **options)
    return str(caught.value)


# Reading


def test_importing_the_module_loads_no_heavy_package():
    code = "import sys, sami.queries; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"id": "a", "query": "One, or two?"}\n\n{"id": 7, "query": " Wärmer? "}'),
        ("q.JSON", '{"id": "a", "query": "One, or two?"}\r\n{"id": 7, "query": "W\\u00e4rmer?"}\r\n'),
        ("q.csv", 'id,query\na,"One, or two?"\n\n7, Wärmer?\n'),
        ("q.csv", 'query,other,id\r\n"One, or two?",x,a\r\n"Wärmer?\r\n",y,7\r\n'),
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte-order mark"])
def test_text_formats_give_the_same_queries(write, name, content, mark):
    loaded = load_queries(write(name, mark + content))
    assert loaded == LoadedQueries([Query("a", "One, or two?"), Query("7", "Wärmer?")], 2, 0, 0, 0, 0)


def test_a_text_file_has_one_query_a_line(write):
    loaded = load_queries(write("q.txt", "\ufeffOne?\r\n\n  Two?  \nThree?"))
    assert texts(loaded) == ["One?", "Two?", "Three?"]
    assert (loaded.read, loaded.empty) == (4, 1)


def test_a_unicode_line_separator_does_not_end_a_record(write):
    assert texts(load_queries(write("q.jsonl", '{"query": "One\u2028two?"}\n'))) == ["One\u2028two?"]


def test_parquet_gives_ids_and_counts_missing_values_as_empty(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"prompt": ["One?", None, "Two?"], "id": [1, 2, 3]}), path)
    loaded = load_queries(str(path), field="prompt")
    assert loaded.queries == [Query("1", "One?"), Query("3", "Two?")]
    assert (loaded.read, loaded.empty) == (3, 1)


def test_each_dropped_record_is_counted_under_one_reason(write):
    lines = ["  ", "ab", "abcd", "ABCD", "abcdefgh", "efgh", "ab"]
    loaded = load_queries(write("q.txt", "\n".join(lines)), min_chars=3, max_chars=5)
    assert loaded == LoadedQueries(loaded.queries, read=7, empty=1, duplicates=1, too_short=2, too_long=1)
    assert texts(loaded) == ["abcd", "efgh"]


def test_normalise_equates_case_width_and_white_space():
    assert normalise("  Straße\u00a0\n ﬁve ") == normalise("STRASSE \uff46ive") == "strasse five"


@pytest.mark.parametrize("text", ["ẞ", "ﬀ", "İ", "\u0345", "\u00a8", "ϓ"])
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("unusable", [None, "", "  ", True, 1.5, ["x"], "a\nb", "\ud83d"])
def test_a_record_without_a_usable_id_gets_a_hash_of_its_normalised_text(write, unusable):
    first = load_queries(write("a.jsonl", json.dumps({"id": unusable, "query": "What now?"})))
    second = load_queries(write("b.txt", " WHAT  now? "))
    # The literal pins the hash: run directories made earlier refer to it.
    assert first.queries[0].id == second.queries[0].id == "e0b5265522b39f0b"


def test_repeated_record_ids_fall_back_to_distinct_hashes(write):
    lines = [{"id": "same", "query": text} for text in ("One?", "Two?", "Three?")]
    # A record that took another's hash as its id must not collide with it either.
    lines.insert(0, {"id": load_queries(write("two.txt", "Two?")).queries[0].id, "query": "Zero?"})
    ids = [query.id for query in load_queries(write("q.jsonl", "\n".join(map(json.dumps, lines)))).queries]
    assert ids[1] == "same"
    assert len(set(ids)) == 4


# Refusing


GOOD = '{"query": "One?"}\n'
NOT_UTF8 = b"One?\n" + "Wärmer?\n".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("q.jsonl", GOOD + '{"query": "Tw', "Line 2", "not valid JSON"),
        ("q.jsonl", GOOD + "{query: 1}\n", "Line 2", "not valid JSON"),
        ("q.jsonl", GOOD + "[" * 100_000, "Line 2", "not valid JSON"),
        ("q.json", '[\n{"query": "One?"}\n]', "Line 1", "jq"),
        ("q.jsonl", GOOD + '"Two?"\n', "Line 2", "not an object"),
        ("q.jsonl", GOOD + '[{"query": "Two?"}]\n', "Line 2", "not an object"),
        ("q.jsonl", GOOD + '{"id": 1, "text": "Two?"}\n', "Line 2", "its fields are 'id', 'text'"),
        ("q.jsonl", GOOD + '\n{"query": 3}\n', "Line 3", "holds int"),
        ("q.jsonl", GOOD + '{"query": ["Two?"]}\n', "Line 2", "holds list"),
        ("q.jsonl", GOOD + '{"query": "\\ud83d"}\n', "Line 2", "surrogate"),
        ("q.jsonl", GOOD + "\0\0\0", "Line 2", "NUL"),
        ("q.txt", NOT_UTF8, "Line 2", "not UTF-8 (byte 0xe4"),
        ("q.txt", "One?\n".encode("utf-16"), "Line 1", "UTF-16"),
        ("q.csv", b"query\n" + NOT_UTF8, "Line 3", "not UTF-8"),
        ("q.csv", "query\nOne?\nTw\0o?\n", "Line 3", "NUL"),
        ("q.csv", 'query\n"One\nor two?"\n"Two?" x\n', "Line 4", "malformed"),
        ("q.csv", 'query\nOne?\n"Two?\nThree?\n', "Line 3", "malformed"),
        ("q.csv", "query,id\nOne?,1\nTwo, or three?,2\n", "Line 3", "3 columns where the header has 2"),
        ("q.csv", "query,id\nOne?\n", "Line 2", "1 columns where the header has 2"),
        ("q.csv", "id,text\n1,One?\n", "Line 1", "its fields are 'id', 'text'"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_the_reason(write, name, content, place, reason):
    path = write(name, content)
    message = refusal(path)
    assert message.startswith(f"{place} of {path}")
    assert reason in message


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_parquet_is_refused(tmp_path, keep):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"query": [f"Query {number}?" for number in range(100)]}), path)
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as Parquet" in refusal(str(path))


def test_parquet_with_damaged_data_is_refused(tmp_path):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"query": [f"Query {number}?" for number in range(100)]}), path)
    damaged = bytearray(path.read_bytes())
    damaged[4:200] = b"\xff" * 196  # the data pages; the footer still parses
    path.write_bytes(damaged)
    assert f"{path} cannot be read as Parquet" in refusal(str(path))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"query": pa.array([b"W\xe4rmer?"]).cast(pa.string(), safe=False)}), "codec can't decode"),
        (pa.table([pa.array(["One?"])] * 2, names=["query", "query"]), "exists 2 times"),
    ],
    ids=["not UTF-8", "a field twice"],
)
def test_parquet_that_parses_but_has_no_single_text_column_is_refused(tmp_path, table, reason):
    path = str(tmp_path / "q.parquet")
    pq.write_table(table, path)
    message = refusal(path)
    assert f"{path} cannot be read as Parquet" in message
    assert reason in message


def test_parquet_names_its_fields_and_the_row_of_a_value_that_is_no_string(tmp_path):
    path = str(tmp_path / "q.parquet")
    pq.write_table(pa.table({"id": ["a", "b"], "query": [["One?"], ["Two?"]]}), path)
    assert "its fields are 'id', 'query'" in refusal(path, field="prompt")
    assert refusal(path).startswith(f"Row 1 of {path} holds list")


@pytest.mark.parametrize("name", ["q.txt", "q.jsonl", "q.csv"])
def test_an_empty_file_has_no_usable_query(write, name):
    assert "No usable query is left of the 0 records" in refusal(write(name, ""))


def test_no_usable_query_states_what_was_dropped(write):
    message = refusal(write("q.txt", "\nab\nabcdefgh\n"), min_chars=3, max_chars=5)
    assert "of the 3 records" in message
    assert "1 empty, 1 shorter than 3 characters, 1 longer than 5, 0 duplicates" in message


def test_a_missing_file_names_near_matches(write, tmp_path):
    write("queries.jsonl", GOOD)
    message = refusal(str(tmp_path / "querys.jsonl"))
    assert message.startswith("File not found")
    assert "queries.jsonl" in message
    assert "does not exist" in refusal(str(tmp_path / "no" / "q"))


@pytest.mark.parametrize("path", ["missing.csv", "./missing", "/missing", "a/b/c", "what is this?", ""])
def test_a_path_that_cannot_be_a_hub_id_is_never_looked_up(monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert refusal(path).startswith("File not found")


def test_an_unknown_suffix_is_refused_with_the_known_ones(write):
    assert ".jsonl, .json, .csv, .parquet, .txt" in refusal(write("q.tsv", "query\nOne?\n"))


@pytest.mark.parametrize("option", [{"config": "main"}, {"split": "test"}, {"field": "prompt"}])
def test_an_option_without_effect_on_a_text_file_is_refused(write, option):
    assert "has no effect" in refusal(write("q.txt", "One?\n"), **option)


# Data sets


@pytest.fixture
def folder(tmp_path) -> str:
    (tmp_path / "set").mkdir()
    data = datasets.Dataset.from_dict({"id": ["a", "b", "c"], "prompt": ["One?", "one?", "Two?"]})
    data.to_parquet(tmp_path / "set" / "train.parquet")
    return str(tmp_path / "set")


@pytest.fixture
def hub(monkeypatch, folder, tmp_path):
    """The hub holds `owner/name`, whose content is `folder`; the calls it received are listed."""
    load_dataset, calls = datasets.load_dataset, []

    def load(path, name=None, *, data_dir, split, revision):
        calls.append((path, name, split, data_dir, revision))
        if path != "owner/name":
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub")
        return load_dataset(folder, name, data_dir=data_dir, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_hub_id_is_loaded_with_its_split_and_cleaned(hub):
    loaded = load_queries("owner/name", field="prompt", split="train[:3]")
    assert loaded == LoadedQueries([Query("a", "One?"), Query("c", "Two?")], 3, 0, 1, 0, 0)
    assert hub == [("owner/name", None, "train[:3]", None, None)]


def test_a_folder_is_loaded_as_a_data_set(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert texts(load_queries(folder, field="prompt")) == ["One?", "Two?"]


def test_a_data_set_names_its_fields_splits_and_configurations(hub):
    assert "its fields are 'id', 'prompt'" in refusal("owner/name")
    assert "Should be one of ['train']" in refusal("owner/name", split="test")
    assert "configuration 'main'" in refusal("owner/name", config="main")


def test_a_damaged_folder_gives_the_underlying_reason(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Path(folder, "train.parquet").unlink()
    Path(folder, "train.jsonl").write_text("{query: 1}")
    message = refusal(folder)
    assert message.startswith(f"The data set {folder!r} cannot be loaded")
    assert "DatasetGenerationError" not in message
    assert "JSON" in message


def test_an_unreachable_hub_id_is_neither_a_file_nor_a_data_set(hub, write):
    write("queries.jsonl", GOOD)
    message = refusal("queries")
    assert "'queries' is neither a file or folder here nor reachable as a Hugging Face data set" in message
    assert "queries.jsonl" in message  # the file that was probably meant


@pytest.mark.skipif(not HELPFUL.exists(), reason="../shared/data/hh/helpful_queries.jsonl is absent")
def test_the_helpful_queries_are_read_and_split():
    loaded = load_queries(str(HELPFUL))
    assert loaded.read == 1500
    assert loaded.queries[1] == Query("hh-helpful-0001", "How do I teach kids to meditate?")
    assert len(loaded.queries) + loaded.duplicates + loaded.empty == 1500
    assert len({normalise(query.text) for query in loaded.queries}) == len(loaded.queries)
    assert len(split_queries(loaded.queries, train=240, evaluation=60, seed=0).evaluation) == 60


@pytest.mark.skipif(not POSTS.exists(), reason="../shared/data/tldr/posts.jsonl is absent")
def test_the_reddit_posts_are_read():
    loaded = load_queries(str(POSTS), field="post")
    assert (loaded.read, len(loaded.queries), loaded.queries[0].id) == (150, 150, "tldr-000")


# Splitting


def test_the_parts_are_disjoint_and_of_the_sizes_asked_for():
    splits = split_queries(QUERIES, train=31, evaluation=19, seed=0)
    half_a, half_b = splits.train
    assert (len(half_a), len(half_b), len(splits.evaluation)) == (16, 15, 19)
    assert {*half_a, *half_b, *splits.evaluation} == set(QUERIES)


def test_the_seed_decides_the_split():
    first, again, other = (split_queries(QUERIES, train=20, evaluation=10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.evaluation != other.evaluation
    assert first.evaluation != tuple(QUERIES[:10])


def test_more_training_queries_leave_evaluation_alone_and_extend_each_half():
    small = split_queries(QUERIES, train=11, evaluation=10, seed=3)
    large = split_queries(QUERIES, train=40, evaluation=10, seed=3)
    assert small.evaluation == large.evaluation
    for little, much in zip(small.train, large.train, strict=True):
        assert much[: len(little)] == little


def test_iterations_alternate_between_the_halves():
    splits = split_queries(QUERIES, train=20, evaluation=10, seed=0)
    half_a, half_b = splits.train
    assert [splits.for_iteration(number) for number in (1, 2, 3, 4)] == [half_a, half_b, half_a, half_b]
    with pytest.raises(ValueError, match="count from 1"):
        splits.for_iteration(0)


@pytest.mark.parametrize(
    ("train", "evaluation", "reason"),
    [
        (41, 10, "51 in all, but only 50 are usable"),
        (1, 10, "1 training and 10 evaluation"),
        (10, 0, "10 training and 0 evaluation"),
        (-5, 10, "at least 2"),
    ],
)
def test_sizes_that_cannot_be_met_are_refused_with_the_numbers(train, evaluation, reason):
    with pytest.raises(InputError, match=reason):
        split_queries(QUERIES, train=train, evaluation=evaluation, seed=0)


def test_queries_that_repeat_are_refused_since_evaluation_could_leak_into_training():
    with pytest.raises(InputError, match="1 of the 51 queries repeat"):
        split_queries([*QUERIES, Query("x", " how do I DO 7? ")], train=2, evaluation=1, seed=0)


# Layouts of known data sets


def turns(*texts: str) -> str:
    """A transcript as HH-RLHF has it, the human first."""
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[number % 2]}: {text}" for number, text in enumerate(texts))


def pair(chosen: str, rejected: str | None = None) -> dict[str, str]:
    return {"chosen": chosen, "rejected": chosen if rejected is None else rejected}


def comparison(identifier: str, post: str | None, **others) -> dict[str, object]:
    """A record of summarize_from_feedback's comparisons."""
    info = {"id": identifier, "post": post, "title": "Tea", "subreddit": "tea", "site": None, "article": None}
    summaries = [{"text": " Short.", "policy": "sup1", "note": None}, {"text": " Long.", "policy": "ref", "note": "x"}]
    return {
        "info": info | others,
        "summaries": summaries,
        "choice": 0,
        "worker": "w",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": 4},
    }


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_the_query_of_a_transcript_is_its_first_human_turn(write):
    records = [
        pair(turns("Why tea?", "Because.", "And milk?", "No."), turns("Why tea?", "Never mind.")),
        pair(turns("Two\n\nparagraphs: one, two.", "I see.")),
        pair("\n\nHuman: Human: who are you?\n\nAssistant: Assistant."),
        pair(turns("No answer yet?")),
        pair("Human:One space less\n\nAssistant: Yes"),
    ]
    assert texts(load_queries(write("hh.jsonl", lines(*records)), format="hh")) == [
        "Why tea?",
        "Two\n\nparagraphs: one, two.",
        "Human: who are you?",
        "No answer yet?",
        "One space less",
    ]


def test_transcripts_without_a_human_turn_at_their_start_are_counted_as_such(write):
    records = [
        pair(turns("Why tea?", "Because.")),
        pair("\n\nAssistant: Hello!\n\nHuman: Why tea, and not coffee?"),  # an answer to what is not a query
        pair("Just text."),
        pair(""),
        pair("\n\nHuman: \n\nAssistant: Hm?"),
        pair(turns("why  TEA?", "As I said.")),
        pair("damaged", turns("Why coffee?", "Because.")),  # both members of a pair answer the same query
    ]
    loaded = load_queries(write("hh.jsonl", lines(*records)), format="hh")
    assert texts(loaded) == ["Why tea?", "Why coffee?"]
    assert (loaded.read, loaded.no_human_turn, loaded.empty, loaded.duplicates) == (7, 3, 1, 1)
    assert loaded.dropped() == "duplicates 1, empty 1, no human turn 3"


def test_transcripts_of_which_none_holds_a_human_turn_are_refused_with_their_count(write):
    message = refusal(write("hh.jsonl", lines(pair("One."), pair("Two."))), format="hh")
    assert "2 transcripts without a human turn at their start" in message
    assert "'chosen' or 'rejected'" in message


def test_a_post_is_one_query_however_many_comparisons_there_are_of_it(write):
    records = [
        comparison("t3_a", "I like tea.\n\nShould I?"),
        comparison("t3_b", "I like coffee."),
        comparison("t3_a", "I like tea.\n\nShould I?"),
        comparison("t3_c", "i like  coffee. "),  # posted again under another id
        comparison("cnn", None, article="News.", site="cnn"),
        comparison("t3_a", "I like tea.\n\nShould I?"),
    ]
    loaded = load_queries(write("tldr.jsonl", lines(*records)), format="tldr")
    assert loaded.queries == [Query("t3_a", "I like tea.\n\nShould I?"), Query("t3_b", "I like coffee.")]
    assert loaded.dropped() == "duplicates 3, empty 1"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_both_layouts_are_read_from_every_kind_of_file_that_can_hold_them(tmp_path, suffix):
    data = {
        "hh": [pair(turns("Why tea?", "So.")), pair(turns("Why salt?", "So."))],
        "tldr": [comparison("t3_a", "I like tea."), comparison("t3_b", "I like salt.")],
    }
    for layout, records in data.items():
        file = tmp_path / f"{layout}.{suffix}"
        if suffix == "jsonl":
            file.write_text(lines(*records))
        else:
            pq.write_table(pa.Table.from_pylist(records), file)
        assert len(load_queries(str(file), format=layout).queries) == 2


@pytest.mark.parametrize(
    ("layout", "record", "parts"),
    [
        ("hh", {"chosen": "x"}, ["Line 1", "no field 'rejected'", "'chosen'"]),
        ("hh", {"chosen": 3, "rejected": "x"}, ["Line 1", "holds int in the field 'chosen'"]),
        ("tldr", {"post": "x"}, ["Line 1", "no field 'info'", "'post'"]),
        ("tldr", {"info": "x"}, ["Line 1", "no `post` in its field 'info'", "format text"]),
        ("tldr", {"info": {"title": "x"}}, ["Line 1", "no `post`"]),
        ("tldr", {"info": {"post": ["x"]}}, ["Line 1", "holds list in the field 'info.post'"]),
    ],
)
def test_a_record_of_another_layout_is_refused_by_its_line(write, layout, record, parts):
    message = refusal(write("q.jsonl", lines(record)), format=layout)
    assert all(part in message for part in parts), message


def test_a_field_beside_a_layout_that_knows_its_own_is_refused(write):
    assert "has no effect on format 'hh'" in refusal(write("q.jsonl", lines(pair("x"))), format="hh", field="chosen")


@pytest.fixture
def hubs(monkeypatch, tmp_path):
    """The hub with both data sets as their repositories are laid out; the calls it received are listed."""
    import gzip

    files = {
        "Anthropic/hh-rlhf/helpful-base/train.jsonl.gz": [pair(turns("Why tea?", "So.")), pair(turns("Salt?", "So."))],
        "Anthropic/hh-rlhf/helpful-base/test.jsonl.gz": [pair(turns("Tested?", "So."))],
        "Anthropic/hh-rlhf/harmless-base/train.jsonl.gz": [pair(turns("Poison?", "No.")), pair(turns("Salt?", "No."))],
        "Anthropic/hh-rlhf/red-team-attempts/train.jsonl.gz": [{"transcript": "\n\nHuman: Hm"}],
    }
    for name, records in files.items():
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(gzip.compress(lines(*records).encode()))
    # A script, and the hub's copy of its data in Parquet files, which has no card.
    for name, records in {
        "comparisons/train": [comparison("t3_a", "Tea.")] * 3,
        "comparisons/validation": [comparison("t3_b", "Salt.")],
        "axis/validation": [comparison("t3_x", "Of the axis.")],
    }.items():
        file = tmp_path / "hub" / "openai" / "summarize_from_feedback" / name / "0000.parquet"
        file.parent.mkdir(parents=True)
        datasets.Dataset.from_list(records).to_parquet(file)
    load_dataset, calls = datasets.load_dataset, []

    def load(path, name=None, *, data_dir, split, revision):
        calls.append((path, name, data_dir, split, revision))
        if path.startswith("openai/") and revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        folder, cache = tmp_path / "hub" / path, str(tmp_path / "cache")
        return load_dataset(str(folder), name, data_dir=data_dir, split=split, cache_dir=cache)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return calls


def test_hh_rlhf_is_read_by_its_hub_id_from_the_folders_asked_for(hubs):
    folders = ["helpful-base", "harmless-base"]
    loaded = load_queries("Anthropic/hh-rlhf", format="hh", data_dir=folders, revision="abc")
    assert texts(loaded) == ["Why tea?", "Salt?", "Poison?"]
    assert loaded.duplicates == 1
    assert hubs == [("Anthropic/hh-rlhf", None, folder, "train", "abc") for folder in folders]


def test_summarize_from_feedback_is_read_by_its_hub_id_from_the_hubs_parquet_files(hubs):
    where = {"data_dir": ["comparisons"], "revision": "refs/convert/parquet"}
    loaded = load_queries("openai/summarize_from_feedback", format="tldr", **where)
    assert (loaded.queries, loaded.duplicates) == ([Query("t3_a", "Tea.")], 2)
    assert hubs == [("openai/summarize_from_feedback", None, "comparisons", "train", "refs/convert/parquet")]
    held_out = load_queries("openai/summarize_from_feedback", format="tldr", split="validation", **where)
    assert held_out.queries == [Query("t3_b", "Salt.")]


def test_a_data_set_that_is_a_script_is_refused_with_where_its_files_are(hubs):
    message = refusal("openai/summarize_from_feedback", format="tldr", config="comparisons")
    assert "revision=refs/convert/parquet and data_dir=comparisons in place of config" in message


@pytest.mark.parametrize("name", sorted(path.stem for path in (PACKAGED_RECIPES / "paper").glob("*.yaml")))
def test_the_papers_recipes_read_their_data_sets(hubs, name):
    q = load_recipe(f"paper/{name}").queries
    where = {"format": q.format, "split": q.split, "config": q.config, "data_dir": q.data_dir, "revision": q.revision}
    assert texts(load_queries(q.path, **where)) == (["Why tea?", "Salt?", "Poison?"] if q.format == "hh" else ["Tea."])


def test_a_local_copy_of_a_data_set_is_read_like_the_hubs(hubs, tmp_path):
    local = str(tmp_path / "hub" / "Anthropic" / "hh-rlhf")
    folders = ["helpful-base", "harmless-base"]
    # The stand-in for the hub loads a path that is absolute from where it lies.
    assert load_queries(local, format="hh", data_dir=folders) == load_queries(
        "Anthropic/hh-rlhf", format="hh", data_dir=folders
    )
    message = refusal(local, format="hh", data_dir=["helpful"])
    assert "no folder 'helpful'" in message
    assert "helpful-base" in message
    assert "no field 'chosen'" in refusal(local, format="hh", data_dir=["red-team-attempts"])
    assert "revision='v1' has no effect" in refusal(local, format="hh", data_dir=folders, revision="v1")


@pytest.mark.parametrize("option", [{"data_dir": ["helpful-base"]}, {"revision": "v1"}])
def test_where_in_a_data_set_means_nothing_for_a_file(write, option):
    assert "has no effect" in refusal(write("q.jsonl", GOOD), **option)
