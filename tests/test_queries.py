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

HELPFUL = Path(__file__).resolve().parents[2] / "shared/data/hh/helpful_queries.jsonl"
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
