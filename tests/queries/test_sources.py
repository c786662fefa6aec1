"""Which source a path names: a file, a folder, or a data set of the hub."""

import gzip
from pathlib import Path

import datasets
import pytest

from sami.queries import LoadedQueries, Query, load_queries, normalize
from sami.recipe import PACKAGED_RECIPES, load_recipe
from tests.support.places import SHARED
from tests.support.queries import comparison, lines, pair, refusal, texts, turns, write

DATA = SHARED / "data"


def test_a_missing_file_names_near_matches(tmp_path):
    write(tmp_path / "queries.jsonl", "")
    message = refusal(str(tmp_path / "querys.jsonl"))
    assert message.startswith("File not found")
    assert "queries.jsonl" in message
    assert "does not exist" in refusal(str(tmp_path / "no" / "q"))


@pytest.mark.parametrize("path", ["missing.csv", "q.jsonl.gz", "./missing", "/missing", "a/b/c", "what is this?", ""])
def test_a_path_that_cannot_be_a_hub_id_is_never_looked_up(monkeypatch, path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert refusal(path).startswith("File not found")


def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path):
    assert ".jsonl, .json, .csv, .tsv, .parquet, .txt" in refusal(write(tmp_path / "q.xlsx", "query\nOne?\n"))


@pytest.mark.parametrize(
    "option",
    [{"config": "main"}, {"split": "test"}, {"field": "prompt"}, {"data_dir": ["helpful-base"]}, {"revision": "v1"}],
)
def test_an_option_without_effect_on_a_text_file_is_refused(tmp_path, option):
    assert "has no effect" in refusal(write(tmp_path / "q.txt", "One?\n"), **option)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with data sets as their repositories are laid out; the calls it received are listed."""
    gzipped = {
        "Anthropic/hh-rlhf/helpful-base/train.jsonl.gz": [pair(turns("Why tea?", "So.")), pair(turns("Salt?", "So."))],
        "Anthropic/hh-rlhf/helpful-base/test.jsonl.gz": [pair(turns("Tested?", "So."))],
        "Anthropic/hh-rlhf/harmless-base/train.jsonl.gz": [pair(turns("Poison?", "No.")), pair(turns("Salt?", "No."))],
        "Anthropic/hh-rlhf/red-team-attempts/train.jsonl.gz": [{"transcript": "\n\nHuman: Hm"}],
    }
    for name, records in gzipped.items():
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(gzip.compress(lines(*records).encode()))
    # The second is a script, and the hub's copy of its data in Parquet files, which has no card.
    for name, records in {
        "owner/name/train": [
            {"id": i, "prompt": text} for i, text in zip("abc", ("One?", "one?", "Two?"), strict=True)
        ],
        "openai/summarize_from_feedback/comparisons/train": [comparison("t3_a", "Tea.")] * 3,
        "openai/summarize_from_feedback/comparisons/validation": [comparison("t3_b", "Salt.")],
        "openai/summarize_from_feedback/axis/validation": [comparison("t3_x", "Of the axis.")],
    }.items():
        file = tmp_path / "hub" / name / "0000.parquet"
        file.parent.mkdir(parents=True)
        datasets.Dataset.from_list(records).to_parquet(file)
    load_dataset, calls = datasets.load_dataset, []

    def load(path, name=None, *, data_dir, split, revision):
        calls.append((path, name, data_dir, split, revision))
        folder = tmp_path / "hub" / path  # an absolute path stays itself
        if not folder.exists():
            raise ConnectionError(f"Couldn't reach {path!r} on the Hub")
        if path.startswith("openai/") and revision != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        return load_dataset(str(folder), name, data_dir=data_dir, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    return calls


def test_a_hub_id_is_loaded_with_its_split_and_cleaned(hub):
    loaded = load_queries("owner/name", field="prompt", split="train[:3]")
    assert loaded == LoadedQueries([Query("a", "One?"), Query("c", "Two?")], 3, 0, 1, 0, 0)
    assert hub == [("owner/name", None, None, "train[:3]", None)]


def test_a_data_set_names_its_fields_splits_and_configurations(hub):
    assert "its fields are 'id', 'prompt'" in refusal("owner/name")
    assert "Should be one of ['train']" in refusal("owner/name", split="test")
    assert "configuration 'main'" in refusal("owner/name", config="main")


def test_a_damaged_folder_gives_the_underlying_reason(hub):
    folder = Path("hub/owner/name/train")
    (folder / "0000.parquet").unlink()
    write(folder / "train.jsonl", "{query: 1}")
    message = refusal(str(folder.absolute()))
    assert message.startswith(f"The data set {str(folder.absolute())!r} cannot be loaded")
    assert "DatasetGenerationError" not in message
    assert "JSON" in message


def test_an_unreachable_hub_id_is_neither_a_file_nor_a_data_set(hub, tmp_path):
    write(tmp_path / "queries.jsonl", "")
    message = refusal("queries")
    assert "'queries' is neither a file or folder here nor reachable as a Hugging Face data set" in message
    assert "queries.jsonl" in message  # the file that was probably meant


def test_hh_rlhf_is_read_by_its_hub_id_from_the_folders_asked_for(hub):
    folders = ["helpful-base", "harmless-base"]
    loaded = load_queries("Anthropic/hh-rlhf", format="hh", data_dir=folders, revision="abc")
    assert texts(loaded) == ["Why tea?", "Salt?", "Poison?"]
    assert loaded.duplicates == 1
    assert hub == [("Anthropic/hh-rlhf", None, folder, "train", "abc") for folder in folders]


def test_summarize_from_feedback_is_read_by_its_hub_id_from_the_hubs_parquet_files(hub):
    where = {"data_dir": ["comparisons"], "revision": "refs/convert/parquet"}
    loaded = load_queries("openai/summarize_from_feedback", format="tldr", **where)
    assert (loaded.queries, loaded.duplicates) == ([Query("t3_a", "Tea.")], 2)
    held_out = load_queries("openai/summarize_from_feedback", format="tldr", split="validation", **where)
    assert held_out.queries == [Query("t3_b", "Salt.")]
    message = refusal("openai/summarize_from_feedback", format="tldr", config="comparisons")
    assert "revision=refs/convert/parquet and data_dir=comparisons in place of config" in message


@pytest.mark.parametrize("name", sorted(path.stem for path in (PACKAGED_RECIPES / "paper").glob("*.yaml")))
def test_the_papers_recipes_read_their_data_sets(hub, name):
    q = load_recipe(f"paper/{name}").queries
    where = {"format": q.format, "split": q.split, "config": q.config, "data_dir": q.data_dir, "revision": q.revision}
    assert texts(load_queries(q.path, **where)) == (["Why tea?", "Salt?", "Poison?"] if q.format == "hh" else ["Tea."])


def test_a_local_copy_of_a_data_set_is_read_like_the_hubs(hub, tmp_path):
    local = str(tmp_path / "hub" / "Anthropic" / "hh-rlhf")
    where = {"format": "hh", "data_dir": ["helpful-base", "harmless-base"]}
    assert load_queries(local, **where) == load_queries("Anthropic/hh-rlhf", **where)
    message = refusal(local, format="hh", data_dir=["helpful"])
    assert "no folder 'helpful'" in message
    assert "helpful-base" in message
    assert "no field 'chosen'" in refusal(local, format="hh", data_dir=["red-team-attempts"])
    assert "revision='v1', which a folder does not have" in refusal(local, revision="v1", **where)


@pytest.mark.skipif(not DATA.exists(), reason="the shared data are absent")
def test_public_queries_are_read():
    loaded = load_queries(str(DATA / "hh" / "helpful_queries.jsonl"))
    assert loaded.read == 1500 == len(loaded.queries) + loaded.duplicates + loaded.empty
    assert loaded.queries[1] == Query("hh-helpful-0001", "How do I teach kids to meditate?")
    assert len({normalize(query.text) for query in loaded.queries}) == len(loaded.queries)
    posts = load_queries(str(DATA / "tldr" / "posts.jsonl"), field="post")
    assert (posts.read, len(posts.queries), posts.queries[0].id) == (150, 150, "tldr-000")
