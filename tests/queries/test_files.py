"""What is read from each kind of file, and which files are refused with which reason."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sami.queries import LoadedQueries, Query, load_queries
from tests.support.queries import lines, refusal, texts, write

BOTH = LoadedQueries([Query("a", "One, or two?"), Query("7", "Wärmer?")], 2, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", '{"id": "a", "query": "One, or two?"}\n\n{"id": 7, "query": " Wärmer? "}'),
        ("q.JSON", '{"id": "a", "query": "One, or two?"}\r\n{"id": 7.0, "query": "W\\u00e4rmer?"}\r\n'),
        ("q.json", '\n[\n {"id": "a", "query": "One, or two?"},\n {"id": 7, "query": "Wärmer?"}\n]\n'),
        ("q.csv", 'id,query\na,"One, or two?"\n\n7, Wärmer?\n'),
        ("q.CSV", 'query,other,id\r\n"One, or two?",x,a\r\n"Wärmer?\r\n",y,7\r\n'),
        ("q.csv", 'id, query\ra, "One, or two?"\r7, Wärmer?\r'),
        ("q.csv", 'n;id;query\n"0,";a;One, or two?\n"1,";7;Wärmer?\n'),
        ("q.csv", "id|query\na|One, or two?\n7|Wärmer?\n"),
        ("q.tsv", "id\tquery\na\tOne, or two?\n7\tWärmer?\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gzip"])
def test_every_spelling_of_a_table_gives_the_same_queries(tmp_path, name, content, encoding):
    if encoding == "gzip":
        path = write(tmp_path / f"{name}.gz", gzip.compress(content.encode()))
    else:
        path = write(tmp_path / name, content.encode(encoding))
    assert load_queries(path) == BOTH


def test_a_text_file_has_one_query_a_line(tmp_path):
    loaded = load_queries(write(tmp_path / "q.txt", "\ufeffOne?\r\n\n  Two?  \nThree?\rFour\u2028lines?"))
    assert texts(loaded) == ["One?", "Two?", "Three?", "Four\u2028lines?"]
    assert (loaded.read, loaded.empty) == (5, 1)


def test_cells_have_any_length(tmp_path):
    path = write(tmp_path / "q.csv", f"query,document\nOne?,{'x' * 200_000}\n{'y' * 200_000},x\n")
    assert [len(text) for text in texts(load_queries(path, max_chars=200_000))] == [4, 200_000]


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ({"query": ["One?", None, "Two?"], "id": [1, 2, 3]}, ["1", "3"]),
        ({"query": [b"One?", b"", b"Two?"], "id": ["x", "y", "z"]}, ["x", "z"]),
        ({"query": pa.array(["One?", "", "Two?"], pa.large_string()), "id": [1.0, 2.0, 3.0]}, ["1", "3"]),
        ({"query": pa.array(["One?", "\u200b", "Two?"]).dictionary_encode(), "id": [10, 2, 3]}, ["10", "3"]),
    ],
    ids=["missing value", "bytes", "floats as ids", "categories"],
)
def test_parquet_is_read_as_pandas_and_spark_write_it(tmp_path, values, ids):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table(values), path)
    loaded = load_queries(str(path))
    assert loaded.queries == [Query(ids[0], "One?"), Query(ids[1], "Two?")]
    assert (loaded.read, loaded.empty) == (3, 1)


def test_a_missing_value_counts_as_empty_however_it_is_written(tmp_path):
    assert load_queries(write(tmp_path / "q.jsonl", '{"query": NaN}\n{"query": null}\n{"query": "x"}\n')).empty == 2
    assert load_queries(write(tmp_path / "q.csv", "query,n\nNaN,1\n,2\nx,3\n")).empty == 2


GOOD = '{"query": "One?"}\n'
LATIN_1 = b"One?\n" + "Wärmer?\n".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("q.jsonl", GOOD + '{"query": "Tw', "Line 2 of ", "not valid JSON"),
        ("q.jsonl", GOOD + "[" * 100_000, "Line 2 of ", "more than 100 deep"),
        ("q.jsonl", GOOD + '"Two?"\n', "Line 2 of ", "not an object"),
        ("q.jsonl", GOOD + '[{"query": "Two?"}]\n', "Line 2 of ", "not an object"),
        ("q.json", '[{"query": "One?"}, 2]', "Record 2 of ", "not an object"),
        ("q.json", '[{"query": "One?"}', "", "not valid JSON"),
        ("q.jsonl", GOOD + '{"query": "a", "query": "b"}', "Line 2 of ", "'query'"),
        ("q.jsonl", GOOD + '{"id": 1, "text": "Two?"}\n', "Line 2 of ", "its fields are 'id', 'text'"),
        ("q.jsonl", GOOD + '\n{"query": 3}\n', "Line 3 of ", "type int"),
        ("q.jsonl", GOOD + '{"query": "\\ud83d"}\n', "Line 2 of ", "surrogate"),
        ("q.jsonl", GOOD + "\0\0\0", "Line 2 of ", "NUL"),
        ("q.txt", LATIN_1, "Line 2 of ", "not UTF-8 (byte 0xe4"),
        ("q.txt", "One?\n".encode("utf-16-le"), "Line 1 of ", "without a byte-order mark"),
        ("q.csv", b"query\n" + LATIN_1, "Line 3 of ", "not UTF-8"),
        ("q.csv", 'query\n"One\nor two?"\n"Two?" x\n', "Line 4 of ", "malformed"),
        ("q.csv", 'query\nOne?\n"Two?\nThree?\n', "Line 3 of ", "malformed"),
        ("q.csv", "query,id\nOne?,1\nTwo, or three?,2\n", "Line 3 of ", "3 columns where the header has 2"),
        ("q.csv", "query,id\nOne?\n", "Line 2 of ", "1 columns where the header has 2"),
        ("q.csv", "id,text\n1,One?\n", "Line 1 of ", "its fields are 'id', 'text'"),
        ("q.csv", "Query,n\nOne?,1\n", "Line 1 of ", "Did you mean 'Query'?"),
        ("q.csv", "query,n,query\nOne?,1,Two?\n", "Line 1 of ", "'query' twice"),
        ("q.txt.gz", b"One?\n", "", "cannot be unpacked"),
        ("q.txt.gz", gzip.compress(b"One?\n" * 1000)[:30], "", "cannot be unpacked"),
    ],
)
def test_a_file_is_refused_with_the_place_and_the_reason(tmp_path, name, content, place, reason):
    path = write(tmp_path / name, content)
    message = refusal(path)
    assert message.startswith(f"{place}{path}")
    assert reason in message


@pytest.mark.parametrize("damage", [slice(0, 0), slice(0, 4), slice(0, 100), slice(0, -1), None])
def test_damaged_parquet_is_refused(tmp_path, damage):
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"query": [f"Query {number}?" for number in range(100)]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 196 + whole[200:] if damage is None else whole[damage])
    assert f"{path} cannot be read as Parquet" in refusal(str(path))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"query": pa.array([b"W\xe4rmer?"]).cast(pa.string(), safe=False)}), "codec can't decode"),
        (pa.table({"query": [b"W\xe4rmer?"]}), "bytes that are not UTF-8"),
        (pa.table([pa.array(["One?"])] * 2, names=["query", "query"]), "'query' twice"),
        (pa.table({"query": [1, 2]}), "Row 1"),
        (pa.table({"prompt": ["One?"]}), "its fields are 'prompt'"),
    ],
)
def test_parquet_without_one_column_of_text_is_refused(tmp_path, table, reason):
    path = str(tmp_path / "q.parquet")
    pq.write_table(table, path)
    message = refusal(path)
    assert path in message
    assert reason in message


@pytest.mark.parametrize("unusable", [None, "", "  ", True, 1.5, ["x"], "a\nb"])
def test_a_record_without_a_usable_id_gets_a_hash_of_its_text(tmp_path, unusable):
    first = load_queries(write(tmp_path / "a.jsonl", json.dumps({"id": unusable, "query": "What now?"})))
    second = load_queries(write(tmp_path / "b.txt", " WHAT  now? "))
    # The literal pins the hash: folders of earlier runs refer to it.
    assert first.queries[0].id == second.queries[0].id == "e0b5265522b39f0b"


def test_repeated_record_ids_fall_back_to_distinct_hashes(tmp_path):
    records = [{"id": "same", "query": text} for text in ("One?", "Two?", "Three?")]
    # A record whose own id is another's hash must not collide with it either.
    records.insert(0, {"id": load_queries(write(tmp_path / "two.txt", "Two?")).queries[0].id, "query": "Zero?"})
    ids = [query.id for query in load_queries(write(tmp_path / "q.jsonl", lines(*records))).queries]
    assert ids[1] == "same"
    assert len(set(ids)) == 4


def test_each_dropped_record_is_counted_under_one_reason(tmp_path):
    records = ["  \u200b", "ab", "abcd", "ABC\u200bD", "abcdefgh", "efgh", "ab"]
    path = write(tmp_path / "q.txt", "\n".join(records))
    loaded = load_queries(path, min_chars=3, max_chars=5)
    assert loaded == LoadedQueries(loaded.queries, read=7, empty=1, duplicates=1, too_short=2, too_long=1)
    assert texts(loaded) == ["abcd", "efgh"]
    message = refusal(path, min_chars=3, max_chars=3)
    assert "of the 7 records" in message
    assert "1 empty, 2 shorter than 3 characters, 4 longer than 3, 0 duplicates" in message


@pytest.mark.parametrize("name", ["q.txt", "q.jsonl", "q.csv", "q.json"])
def test_an_empty_file_has_no_usable_query(tmp_path, name):
    assert "No usable query is left of the 0 records" in refusal(write(tmp_path / name, ""))
