"""`sami write-principles` and recipes that name a writer: the file, local and served writers, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami import chat_client
from sami.errors import InputError
from sami.loop.context import Run
from sami.principle_writing.questions import ATTEMPTS, Question, scripted
from sami.principle_writing.writers import Local
from sami.principles import load_principles
from sami.recipe import LocalWriter, dump_recipe, load_recipe
from tests.support.command_line import Sami, refused
from tests.support.faulty_server import Request, serving
from tests.support.recipes import write_recipe

KEY = "sk-secret-4711"
TASK = ("--task", "summarising Reddit posts")
NAMES = ("--names", "concise,comprehensive")


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(chat_client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("WRITER_KEY", KEY)


@pytest.fixture
def write(sami) -> Sami:
    """`sami write-principles` with the task."""
    return lambda *arguments: sami("write-principles", *TASK, *arguments)


def served(url: str, **more: Any) -> str:
    return json.dumps({"url": url, "model": "m", "key_variable": "WRITER_KEY", "retries": 1, **more})


def answer(request: Request) -> str:
    """What the script says to a question that a server got."""
    opening = request.prompt.rpartition('starts with "')[2].partition('"')[0]
    kind = "names" if opening == "Styles:" else "antithesis" if opening.startswith("Instead") else "definition"
    name = request.prompt.partition("to be ")[2].removeprefix("the opposite of ").partition(".")[0]
    return scripted([Question(kind, name, request.prompt, opening, 0)])[0]


# The file.


def test_the_file_loads_and_says_how_it_came_about(write, tmp_path):
    target = tmp_path / "new" / "principles.yaml"
    code, out, err = write(*NAMES, "--writer", "scripted", "--seed", 3, "--output", target)
    assert (code, out.strip()) == (0, str(target)), err
    assert "2 principles written by a script" in err
    assert [p.id for p in load_principles(target)] == ["concise", "comprehensive"]
    record = yaml.safe_load(target.read_text())["written"]
    assert (record["task"], record["writer"], record["seed"]) == ("summarising Reddit posts", {"kind": "scripted"}, 3)
    assert "{name}" in record["prompts"]["definition"]
    assert record["names"] == ["concise", "comprehensive"]
    assert "names" not in record["prompts"]


def test_without_an_output_the_file_is_printed(write, tmp_path):
    code, out, _ = write("--writer", "scripted", "--count", 3)
    assert code == 0
    (tmp_path / "p.yaml").write_text(out)
    assert len(load_principles(tmp_path / "p.yaml")) == 3
    assert "names" in yaml.safe_load(out)["written"]["prompts"]


def test_an_existing_file_is_never_replaced(write, tmp_path):
    (tmp_path / "p.yaml").write_text("mine")
    refused(write(*NAMES, "--writer", "scripted", "--output", tmp_path / "p.yaml"), "p.yaml", "exists")
    assert (tmp_path / "p.yaml").read_text() == "mine"


def test_a_place_where_nothing_can_be_written_is_refused_before_the_writer_is_asked(write, tmp_path, monkeypatch, sami):
    monkeypatch.setattr("sami.principle_writing.files.make_ask", lambda settings: pytest.fail("the writer was asked"))
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "p.yaml", tmp_path / "file" / "new" / "p.yaml"):
        refused(write(*NAMES, "--output", place), str(place), f"{tmp_path / 'file'} is not a folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--names", "concise"), ["principles.names: 1 principle would be written", "at least two"]),
        (("--names", "a,b", "--count", "3"), ["count has no effect"]),
        (("--count", "1"), ["principles.count", "greater than or equal to 2"]),
        (("--task", " ", *NAMES), ["task is empty"]),
        (("--task", "summarising posts " * 50, *NAMES), ["principles.task", "at most 500 characters"]),
        ((*NAMES, "--writer", "/nowhere/model"), ["/nowhere/model"]),
        ((*NAMES, "--writer", "{kind: oracle}"), ["principles.writer", "local, endpoint, scripted"]),
        ((*NAMES, "--writer", "{url: 'http://u:p@h/v1', model: m}"), ["key_variable"]),
        ((*NAMES, "--writer", "{url: 'http://h/v1', model: m, budget: 3}"), ["principles.writer.endpoint.budget"]),
        ((*NAMES, "--writer", "{model: m, temperature: 0}"), ["temperature"]),
        ((*NAMES, "--writer", "{a: ["), ["--writer", "YAML"]),
        ((*NAMES, "--writer", "{url: 'https://api.openai.com/v1', model: m, key_variable: UNSET_KEY}"), ["UNSET_KEY"]),
    ],
)
def test_what_cannot_be_asked_for_is_refused(write, tmp_path, arguments, words):
    given = [*(() if "--writer" in arguments else ("--writer", "scripted")), *arguments]
    refused(write(*given, "--output", tmp_path / "p.yaml"), *words)
    assert not (tmp_path / "p.yaml").exists()


# A local writer.


def test_a_random_model_cannot_write_and_leaves_no_file(write, tmp_path, model_folder):
    for chat_template in (True, False):
        writer = ("--writer", model_folder("llama", chat_template))
        message = refused(write(*NAMES, *writer, "--output", tmp_path / "p.yaml"), "0 of 2")
        assert "Nothing was written" in message
        assert list(tmp_path.iterdir()) == []


def test_a_local_writer_answers_from_the_opening_on_and_repeats_itself_by_seed(model_folder):
    ask = Local(LocalWriter.model_validate({"model": {"source": str(model_folder("llama", True))}}))
    questions = [Question("definition", "concise", "Say something.", "Responses should", seed) for seed in (1, 1)]
    first = ask(questions)
    assert all(text.startswith("Responses should") for text in first)
    assert first == ask(questions)
    assert first != ask([Question("definition", "concise", "Say something.", "Responses should", 2)] * 2)


def test_a_sentence_that_a_stop_ended_gets_its_full_stop_back():
    assert Local._full_stop(" be brief", "stop") == "."
    assert Local._full_stop(" be brief!", "stop") == ""
    assert Local._full_stop(" be brief and", "length") == ""


# A served writer.


def test_a_server_writes_and_its_key_stands_nowhere(write, tmp_path):
    target = tmp_path / "p.yaml"
    with serving(lambda request: request.say(answer(request))) as server:
        code, out, err = write("--writer", served(server.url), "--output", target)
    assert code == 0, err
    assert len(load_principles(target)) == 4
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert {"temperature", "seed", "max_tokens", "model", "messages"} == server.requests[0].body.keys()
    assert KEY not in target.read_text() + out + err
    assert yaml.safe_load(target.read_text())["written"]["writer"]["key_variable"] == "WRITER_KEY"


@pytest.mark.parametrize("text", [f"I'm sorry, I can't help with that. {KEY}", None])
def test_a_server_that_says_nothing_usable_is_asked_a_bounded_number_of_times(write, tmp_path, text):
    with serving(lambda request: request.say(text, finish="length")) as server:
        result = write(*NAMES, "--writer", served(server.url), "--output", tmp_path / "p.yaml")
    message = refused(result, "0 of 2", "'concise'", "'comprehensive'")
    assert KEY not in message
    assert len(server.requests) == 2 * ATTEMPTS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda r: r.fail(401, f"bad key {KEY}"), ["refuses the key in WRITER_KEY"]),
        (lambda r: r.fail(400, "no such field"), ["did not answer", "no such field (HTTP 400)"]),
        (lambda r: r.drop(), ["did not answer"]),
    ],
)
def test_a_server_that_fails_is_an_error_and_no_file(write, tmp_path, fail, words):
    with serving(fail) as server:
        result = write(*NAMES, "--writer", served(server.url), "--output", tmp_path / "p.yaml")
    assert KEY not in refused(result, *words)
    assert list(tmp_path.iterdir()) == []


# A recipe that names a writer.


@pytest.fixture
def recipe(tmp_path, model_folder) -> Path:
    file = write_recipe(tmp_path / "recipe", model_folder("llama", True), training__iterations=1, training__steps=1)
    raw = yaml.safe_load(file.read_text())
    raw["principles"] = {"task": "answering questions", "names": ["brief", "kind"], "writer": "scripted"}
    file.write_text(yaml.safe_dump(raw))
    return file


def test_a_run_writes_its_principles_once(sami, recipe, tmp_path, monkeypatch):
    output = ("--output", tmp_path / "out")
    code, _, err = sami("generate", recipe, *output)
    assert code == 0, err
    file = tmp_path / "out" / "principles.yaml"
    assert [p.id for p in load_principles(file)] == ["brief", "kind"]
    before = file.read_bytes()
    monkeypatch.setattr(
        "sami.principle_writing.files.make_ask", lambda settings: pytest.fail("the writer was asked again")
    )
    code, out, err = sami("run", recipe, *output, "--json")
    assert code == 0, err
    assert file.read_bytes() == before
    assert list(json.loads(out)["policies"][1]["principles"]) == ["brief", "kind"]


def test_what_was_written_may_be_edited_until_it_is_used(sami, recipe, tmp_path):
    resolved = load_recipe(recipe)
    with Run.start(resolved, tmp_path / "out").opened():
        pass
    file = tmp_path / "out" / "principles.yaml"
    file.write_text(file.read_text().replace("be kind from", "be very kind from"))
    assert "very kind" in Run.start(resolved, tmp_path / "out").principles[1].definition
    code, _, err = sami("generate", recipe, "--output", tmp_path / "out")
    assert code == 0, err
    file.write_text(file.read_text().replace("very kind", "rather kind"))
    refused(sami("generate", recipe, "--output", tmp_path / "out"), "generate-1", "principles")


def test_another_writer_or_task_is_another_run(sami, recipe, tmp_path):
    output = ("--output", tmp_path / "out")
    assert sami("generate", recipe, *output)[0] == 0
    refused(sami("run", recipe, "principles.task=writing letters", *output), "- task: 'answering questions' there")
    refused(sami("run", recipe, "principles.seed=1", *output), "- seed: 0 there, 1 now")


def test_a_writer_that_fails_ends_the_run_before_it_starts(sami, recipe, tmp_path, model_folder):
    override = f"principles.writer={model_folder('llama', True)}"
    refused(sami("run", recipe, override, "--output", tmp_path / "out"), "0 of 2")
    assert not (tmp_path / "out" / "principles.yaml").exists()


def test_a_plan_needs_no_writer(sami, recipe):
    code, out, err = sami("plan", recipe, "principles.writer=/nowhere/model", "--json")
    assert code == 0, err
    assert json.loads(out)["recipe"]["principles"]["names"] == ["brief", "kind"]
    code, out, err = sami("plan", recipe)
    assert code == 0, err
    assert "principles.task" in out


def test_a_section_is_read_back_as_it_was_written(recipe, tmp_path):
    for override in ("principles.seed=3", "principles.writer={url: 'http://h/v1', model: m}", "principles.writer=a/b"):
        resolved = load_recipe(recipe, [override])
        (tmp_path / "again.yaml").write_text(dump_recipe(resolved))
        assert load_recipe(tmp_path / "again.yaml") == resolved


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("principles.tsk=x", ["principles.tsk is not a key", "'task'"]),
        ("principles={names: [a, b]}", ["principles.task is missing: What the responses do"]),
        ("generation.first_contrasts=first.parquet", ["first_contrasts", "sami import-principles"]),
        ("principles=3", ["principles is 3", "string"]),
        ("principles.writer={kind: oracle}", ["principles.writer is", "local, endpoint, scripted"]),
    ],
)
def test_mistakes_in_the_section_are_named(recipe, override, words):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe, [override])
    assert all(word in str(caught.value) for word in words), caught.value
