"""Contrasts generated in parts are those of the whole, and parts that do not belong together are refused."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from sami.contrasts import read_contrasts, write_contrasts
from sami.errors import InputError
from sami.loop.shards import Shard, made_from
from sami.pipeline import Pipeline
from sami.recipe import load_recipe
from tests.support.command_line import refused as refused_command
from tests.support.recipes import write_recipe

PARTS = 3


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), model_folder("llama", True))


def pipeline(recipe: Path, folder: Path, *overrides: str) -> Pipeline:
    return Pipeline(load_recipe(recipe, overrides), folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, recipe) -> Path:
    """A run with all shards of iteration 1, each made as on a machine of its own. Tests copy it."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    for number in (2, 3, 1):
        pipeline(recipe, folder).generate_shard(1, Shard(number, PARTS))
    return folder


@pytest.fixture
def copy(sharded, tmp_path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "run"))


def shard_file(run: Path, number: int, of: int = PARTS) -> Path:
    return Shard(number, of).file(run / "iteration-1" / "shards")


def refused(recipe: Path, run: Path, *overrides: str) -> str:
    """What the merge says; nothing is written."""
    with pytest.raises(InputError) as caught:
        pipeline(recipe, run, *overrides).generate(1, merge=True)
    assert not (run / "iteration-1" / "contrasts.parquet").exists()
    assert not list((run / ".steps").glob("generate-1*"))
    return str(caught.value)


def test_merged_shards_are_the_contrasts_of_one_machine(recipe, copy, tmp_path):
    pipeline(recipe, copy).generate(1, merge=True)
    pipeline(recipe, tmp_path / "whole").generate(1)
    whole, merged = (read_contrasts(run / "iteration-1" / "contrasts.parquet") for run in (tmp_path / "whole", copy))
    assert merged == whole
    assert len(whole) == 8
    steps = [json.loads((run / ".steps" / "generate-1.json").read_text()) for run in (tmp_path / "whole", copy)]
    assert steps[0]["inputs"] == steps[1]["inputs"]
    assert steps[0]["result"] == steps[1]["result"]
    pipeline(recipe, copy).generate(1)  # done, so not again


def test_parts_cover_everything_once():
    for count, of in ((9, 3), (10, 3), (7, 7), (1000, 7)):
        things = list(range(count))
        parts = [things[Shard(number, of).part(count)] for number in range(1, of + 1)]
        assert [thing for part in parts for thing in part] == things
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_sampled_responses_of_two_parts_do_not_share_their_random_numbers(recipe, tmp_path):
    run = pipeline(recipe, tmp_path / "run", "generation.temperature=1.0")
    seeds = []

    class Watched:
        def generate(self, prompts, settings, _):
            seeds.append((settings.seed, settings.seed + len(prompts)))
            raise InputError("seen")

    run.context.engine = lambda *_: Watched()
    for number in range(1, PARTS + 1):
        with pytest.raises(InputError, match="seen"):
            run.generate_shard(1, Shard(number, PARTS))
    assert [begin for begin, _ in seeds] == [0, *(end for _, end in seeds[:-1])]


def test_a_shard_tells_what_it_is(copy):
    shard, inputs = made_from(shard_file(copy, 2))
    assert shard == Shard(2, PARTS)
    assert inputs["generation"]["max_new_tokens"] == 6
    assert [c.id for c in read_contrasts(shard_file(copy, 2))] == ["1-00003", "1-00004", "1-00005"]


def test_a_shard_that_is_there_is_not_made_again(recipe, copy, capsys):
    before = shard_file(copy, 1).stat().st_mtime_ns
    pipeline(recipe, copy).generate_shard(1, Shard(1, PARTS))
    assert "was already generated" in capsys.readouterr().err
    assert shard_file(copy, 1).stat().st_mtime_ns == before


def test_a_missing_shard_is_named(recipe, copy):
    shard_file(copy, 1).unlink()
    shard_file(copy, 3).unlink()
    assert "The shards 1/3, 3/3 are missing" in refused(recipe, copy)


def test_no_shard_at_all_is_an_error(recipe, tmp_path):
    assert "There are no shards" in refused(recipe, tmp_path / "run")


def test_a_shard_of_another_recipe_is_refused_with_the_difference(recipe, copy, tmp_path):
    other = pipeline(recipe, tmp_path / "other", "generation.max_new_tokens=5", "training.seed=3")
    made = other.generate_shard(1, Shard(2, PARTS))
    shutil.copy(made, shard_file(copy, 2))
    message = refused(recipe, copy)
    assert "shard 2/3" in message
    assert "- generation.max_new_tokens: 5 there, 6 now" in message
    assert "- order_of_principles: 3 there, 0 now" in message


def test_a_shard_of_another_model_is_refused(recipe, copy, tmp_path, model_folder):
    other = pipeline(recipe, tmp_path / "other", f"model.source={model_folder('qwen2', True)}")
    shutil.copy(other.generate_shard(1, Shard(2, PARTS)), shard_file(copy, 2))
    assert "- policy: " in refused(recipe, copy)


def test_parts_of_different_wholes_are_refused(recipe, copy):
    pipeline(recipe, copy).generate_shard(1, Shard(1, 2))
    assert "2 and 3 parts" in refused(recipe, copy)


def test_damaged_or_strange_files_are_refused(recipe, copy):
    good = shard_file(copy, 2).read_bytes()
    shard_file(copy, 2).write_bytes(good[: len(good) // 2])
    assert f"{shard_file(copy, 2)} cannot be" in refused(recipe, copy)
    write_contrasts(shard_file(copy, 2), read_contrasts(shard_file(copy, 1)))  # a contrasts file, of no part
    assert f"{shard_file(copy, 2)} cannot be" in refused(recipe, copy)
    # The right label on the wrong contrasts.
    notes = {"sami.shard": pq.read_schema(shard_file(copy, 3)).metadata[b"sami.shard"].decode()}
    write_contrasts(shard_file(copy, 3), read_contrasts(shard_file(copy, 1)), notes)
    shard_file(copy, 2).write_bytes(good)
    assert "does not hold the contrasts that this recipe plans" in refused(recipe, copy)


def test_a_shard_that_another_process_writes_is_left_to_it(recipe, copy):
    shard_file(copy, 1).unlink()
    with (
        FileLock(shard_file(copy, 1).with_name(".1-of-3.parquet.lock")),
        pytest.raises(InputError, match="Another process is writing"),
    ):
        pipeline(recipe, copy).generate_shard(1, Shard(1, PARTS))


def test_shards_of_a_later_iteration_need_the_model_before_it(recipe, copy):
    with pytest.raises(InputError, match=r"train-1.*`sami train` first"):
        pipeline(recipe, copy).generate_shard(2, Shard(1, PARTS))


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/3/4"])
def test_a_shard_that_cannot_be_is_refused(text):
    with pytest.raises(InputError, match="form I/N"):
        Shard.parse(text)


def test_contrasts_that_another_model_writes_are_not_made_in_shards(recipe, tmp_path):
    first = f"generation.first_model={load_recipe(recipe).model.source}"
    run = pipeline(recipe, tmp_path / "run", first)
    for make in (lambda: run.generate_shard(1, Shard(1, 2)), lambda: run.generate(1, merge=True)):
        with pytest.raises(InputError, match="Shards are for what the run's own model writes"):
            make()


def test_more_shards_than_contrasts_are_refused(recipe, tmp_path):
    with pytest.raises(InputError, match="iteration 1 has only 9 contrasts"):
        pipeline(recipe, tmp_path / "run").generate_shard(1, Shard(1, 10))


def test_the_command_exits_with_2_and_names_what_is_missing(sami, recipe, copy):
    arguments = ("generate", recipe, "--output", copy)
    shard_file(copy, 2).unlink()
    refused_command(sami(*arguments, "--merge"), "The shards 2/3 are missing")
    refused_command(sami(*arguments, "--merge", "--shard", "2/3"), "Give one of them")
    assert sami(*arguments, "--shard", "2/3")[:2] == (0, f"{shard_file(copy, 2)}\n")
