"""What a run folder refuses, what it does again and what it never does again."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami.errors import InputError
from sami.loop.directory import RunDirectory, content_hash
from sami.recipe import Recipe


def recipe(lr: float = 1e-3, **sections: Any) -> Recipe:
    values = {"model": "m", "queries": {"path": "q.jsonl"}, "principles": "p.yaml"}
    values |= {"training": {"lr": lr}, "generation": {"max_new_tokens": 9}}
    return Recipe.model_validate({**values, **sections})


def finish_a_step(directory: RunDirectory, name: str = "first") -> None:
    directory.step(name, {}, [], lambda: {})


class Work:
    """Writes a file and counts how often it did."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.output, self.calls = directory, directory.folder / "output", 0

    def done(self, inputs: dict[str, Any], directory: RunDirectory | None = None) -> dict[str, Any]:
        """The result of the step s that does this work."""
        return (directory or self.directory).step("s", inputs, [self.output], self)

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        self.output.parent.mkdir(exist_ok=True)
        self.output.write_text("whole")
        return {"calls": self.calls}


def begin(directory: RunDirectory, value: Recipe, principles: str = "", work: Any = lambda _: None) -> None:
    with directory.open(value, principles):
        work(directory)


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def work(directory) -> Work:
    return Work(directory)


# Opening.


def test_opening_writes_the_resolved_recipe_and_the_principles(directory):
    begin(directory, recipe(), "- principles\n")
    written = yaml.safe_load((directory.folder / "recipe.yaml").read_text())
    assert Recipe.model_validate(written) == recipe()
    assert written["training"]["weight_decay"] == 0.0  # defaults too
    assert (directory.folder / "principles.yaml").read_text() == "- principles\n"


def _try_to_open(folder: Path, results: Any) -> None:
    try:
        with RunDirectory(folder).open(recipe(), ""):
            results.put("opened")
    except InputError as error:
        results.put(str(error))


def test_a_second_process_is_refused_while_the_first_one_writes(directory):
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def elsewhere():
        process = context.Process(target=_try_to_open, args=(directory.folder, results))
        process.start()
        answer = results.get(timeout=30)
        process.join()
        return answer

    with directory.open(recipe(), ""):
        assert "Another process is writing" in elsewhere()
        assert str(directory.folder) in elsewhere()
    assert elsewhere() == "opened"


def test_the_lock_is_released_when_the_work_fails(directory):
    with pytest.raises(ZeroDivisionError), directory.open(recipe(), ""):
        raise ZeroDivisionError
    begin(directory, recipe())


def test_a_refused_process_leaves_the_recipe_of_the_first_one(directory):
    with directory.open(recipe(lr=1e-3), "first"):
        with pytest.raises(InputError, match="Another process"):
            begin(directory, recipe(lr=2e-3), "second")
        assert (directory.folder / "principles.yaml").read_text() == "first"
        assert yaml.safe_load((directory.folder / "recipe.yaml").read_text())["training"]["lr"] == [1e-3]


def test_a_different_recipe_is_refused_with_every_difference(directory):
    begin(directory, recipe(), work=finish_a_step)
    changed = recipe(lr=2e-3, generation={"max_new_tokens": 7})
    with pytest.raises(InputError) as caught:
        begin(directory, changed)
    message = str(caught.value)
    assert "training.lr: [0.001] there, [0.002] now" in message
    assert "generation.max_new_tokens: 9 there, 7 now" in message
    assert message.count("\n- ") == 2  # and no others
    assert "--output" in message


def test_a_key_that_is_younger_than_a_run_had_its_default(directory, work):
    with directory.open(recipe(), ""):
        directory.step("s", {"generation": {"max_new_tokens": 9}}, [], dict)
    file = directory.folder / "recipe.yaml"
    older = yaml.safe_load(file.read_text())
    del older["generation"]["surplus"], older["queries"]["max_chars"]
    file.write_text(yaml.safe_dump(older))
    with directory.open(recipe(), ""):
        now = {"generation": {"max_new_tokens": 9, "surplus": recipe().generation.surplus}}
        assert directory.step("s", now, [], lambda: pytest.fail("the step was done again")) == {}
        with pytest.raises(InputError, match=r"generation\.surplus"):
            directory.step("s", {"generation": {"max_new_tokens": 9, "surplus": 3.0}}, [], dict)
    with pytest.raises(InputError, match=r"generation\.surplus: \S+ there, 3\.0 now"):
        begin(directory, recipe(generation={"max_new_tokens": 9, "surplus": 3.0}))


def test_the_same_recipe_opens_again(directory):
    for _ in range(2):
        with directory.open(recipe(lr=5e-7), ""):  # a number that YAML writes as 5.0e-07
            finish_a_step(directory)


def test_data_that_moved_is_no_other_recipe(directory):
    begin(directory, recipe(), work=finish_a_step)
    moved = recipe(model="/elsewhere/m", queries={"path": "/elsewhere/q.jsonl"}, principles="/elsewhere/p.yaml")
    begin(directory, moved)
    assert yaml.safe_load((directory.folder / "recipe.yaml").read_text())["model"]["source"] == "m"


def test_contrasts_that_moved_are_no_other_recipe_and_contrasts_that_were_none_are(directory):
    def first(contrasts):
        return recipe(generation={"max_new_tokens": 9, "first_contrasts": contrasts})

    begin(directory, first("/here/first.json"), work=finish_a_step)
    begin(directory, first("/elsewhere/first.json"))
    with pytest.raises(InputError, match=r"generation\.first_contrasts.*None now"):
        begin(directory, first(None))


def test_a_recipe_under_which_nothing_was_finished_is_replaced(directory):
    begin(directory, recipe(lr=1e-3), "first")
    begin(directory, recipe(lr=2e-3), "second")
    assert yaml.safe_load((directory.folder / "recipe.yaml").read_text())["training"]["lr"] == [2e-3]
    assert (directory.folder / "principles.yaml").read_text() == "second"


def test_a_folder_with_other_files_is_refused_and_left_alone(directory):
    directory.folder.mkdir()
    (directory.folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex.*--output"):
        begin(directory, recipe())
    assert [p.name for p in directory.folder.iterdir()] == ["thesis.tex"]


def test_an_output_that_is_a_file_is_refused(directory):
    directory.folder.write_text("not a folder")
    with pytest.raises(InputError, match="is a file"):
        begin(directory, recipe())
    assert directory.folder.read_text() == "not a folder"


@pytest.mark.parametrize("left", [[], [".recipe.yaml.tmp"], ["recipe.yaml"], ["recipe.yaml", ".principles.yaml.tmp"]])
def test_a_start_that_was_killed_does_not_make_the_folder_foreign(directory, left):
    directory.folder.mkdir()
    (directory.folder / ".steps").mkdir()
    for name in [".lock", *left]:
        (directory.folder / name).write_text("")
    begin(directory, recipe(), "whole")
    assert (directory.folder / "principles.yaml").read_text() == "whole"


def test_a_users_own_recipe_is_not_taken_for_a_runs(directory):
    directory.folder.mkdir()
    (directory.folder / "recipe.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        begin(directory, recipe())
    assert (directory.folder / "recipe.yaml").read_text() == "mine"


# Steps.


def test_a_finished_step_is_never_done_again(directory, work):
    first = work.done({"a": 1})
    record = (directory.folder / ".steps" / "s.json").stat().st_mtime_ns
    again = work.done({"a": 1})
    assert first == again == {"calls": 1}
    assert work.calls == 1
    assert (directory.folder / ".steps" / "s.json").stat().st_mtime_ns == record


def test_a_step_is_done_again_when_an_output_is_missing(work):
    work.done({})
    work.output.unlink()
    assert work.done({}) == {"calls": 2}
    assert work.output.read_text() == "whole"


def test_a_step_that_failed_has_no_record_and_is_done_again(directory, work):
    def fails():
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        directory.step("s", {}, [], fails)
    assert directory.record("s") is None
    work.done({})
    assert work.calls == 1


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({"a": {"b": 2}, "c": "x"}, "a.b: 1 there, 2 now"),
        ({"a": {"b": 1}, "c": "y"}, "c: 'x' there, 'y' now"),
        ({"a": {"b": 1}, "c": "x", "d": 0}, "d: None there, 0 now"),
        ({"a": {"b": 1}}, "c: 'x' there, None now"),
    ],
)
def test_changed_inputs_are_refused_with_the_difference(work, now, difference):
    work.done({"a": {"b": 1}, "c": "x"})
    with pytest.raises(InputError) as caught:
        work.done(now)
    assert difference in str(caught.value)
    assert "step s" in str(caught.value)
    assert work.calls == 1


def test_a_record_holds_inputs_result_and_seconds(directory):
    directory.step("s", {"a": 1}, [], lambda: {"kept": 3})
    record = json.loads((directory.folder / ".steps" / "s.json").read_text())
    assert record == directory.record("s")
    assert (record["inputs"], record["result"], record["outputs"]) == ({"a": 1}, {"kept": 3}, {})
    assert record.keys() - {"seconds"} == {"inputs", "result", "outputs"}


def test_a_record_that_was_being_written_does_not_count(directory, tmp_path):
    steps = directory.folder / ".steps"
    steps.mkdir(parents=True)
    (steps / ".s.json.tmp").write_text('{"inputs": {}, "res')
    assert directory.record("s") is None
    directory.step("s", {}, [], lambda: {})
    assert [p.name for p in steps.iterdir()] == ["s.json"]


def test_a_step_that_another_needs_is_named_with_its_command(directory):
    with pytest.raises(InputError, match=r"generate-1.*`sami generate`"):
        directory.require("generate-1", "sami generate")
    finish_a_step(directory, "generate-1")
    assert directory.require("generate-1", "sami generate")["result"] == {}


@pytest.mark.parametrize("damage", ["{", "[]", "null", '{"inputs": {}}', "\udcff"])
def test_a_damaged_record_is_named_with_how_to_go_on(directory, damage):
    finish_a_step(directory, "one")
    file = directory.folder / ".steps" / "one.json"
    file.write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"{file}.*damaged.*Delete it"):
        finish_a_step(directory, "one")


def test_an_output_that_changed_is_refused_until_it_is_restored(directory, work):
    work.done({})
    work.output.write_text("other")
    with pytest.raises(InputError, match=r"output changed after the step s wrote it"):
        work.done({}, RunDirectory(directory.folder))
    work.output.write_text("whole")
    assert work.done({}, RunDirectory(directory.folder)) == {"calls": 1}


def test_a_log_of_a_step_may_be_missing_but_not_edited(directory):
    work, log = Work(directory), directory.folder / "log"

    def logging():
        result = work()
        log.write_text("lines")
        return result

    directory.step("s", {}, [work.output], logging, logs=[log])
    log.write_text("other")
    again = RunDirectory(directory.folder)
    again.require_intact("s", work.output)
    with pytest.raises(InputError, match=r"log changed after the step s wrote it"):
        again.step("s", {}, [work.output], logging, logs=[log])
    log.unlink()
    assert again.step("s", {}, [work.output], logging, logs=[log]) == {"calls": 1}


def test_an_output_is_read_once_per_process(directory, monkeypatch):
    work, read = Work(directory), []
    directory.step("s", {}, [work.output], work)
    monkeypatch.setattr("sami.loop.directory.content_hash", lambda path: read.append(path) or content_hash(path))
    again = RunDirectory(directory.folder)
    for _ in range(2):
        again.require_intact("s")
        again.require_intact("s", work.output)
    assert read == [work.output]


def test_a_model_card_and_temporary_files_are_no_content_of_a_model(tmp_path):
    (tmp_path / "weights").write_text("1")
    before = content_hash(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    (tmp_path / ".README.md.tmp").write_text("half a card")
    assert content_hash(tmp_path) == before
    (tmp_path / "weights").write_text("2")
    assert content_hash(tmp_path) != before
