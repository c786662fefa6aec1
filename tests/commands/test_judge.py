"""`sami judge` on files of responses and on runs: what it prints, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami.evaluation.verdicts import read_verdicts
from tests.support.command_line import refused
from tests.support.faulty_server import KEY, Request, serving
from tests.support.places import SHARED
from tests.support.recipes import write_recipe

LONG = "It is a rather long answer."
TLDR = SHARED / "data/tldr"
PRINCIPLE = {
    "id": "brief",
    "definition": "Be brief.",
    "antithesis": "Be long.",
    "verifier": {"check": "word_count", "max": 3},
}


FREE = ("--judge", "{kind: endpoint, model: m, url: 'http://127.0.0.1:9/v1'}")  # needs no principles


def jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Arguments that compare two candidates with a baseline on 12 queries."""
    jsonl(tmp_path / "queries.jsonl", [{"id": f"q{n}", "post": f"What is {n}?"} for n in range(12)])
    for name, text in (("new", "It is {}."), ("newer", "{}!"), ("old", "It is {}, as we will see in a moment.")):
        rows = [{"id": f"q{n}", "constitution": "Be brief.", "response": text.format(n)} for n in range(12)]
        jsonl(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump([PRINCIPLE]))
    return [
        *("--candidate", str(tmp_path / "new.jsonl"), "--candidate", str(tmp_path / "newer.jsonl")),
        *("--baseline", str(tmp_path / "old.jsonl"), "--queries", str(tmp_path / "queries.jsonl"), "--field", "post"),
        *("--output", str(tmp_path / "out")),
    ]


def endpoint(url: str, **more: Any) -> str:
    judge = {"kind": "endpoint", "url": url, "model": "m", "name": "good", "key_variable": "JUDGE_KEY"}
    return json.dumps({**judge, **more})


def know(request: Request) -> None:
    """Finds the response that names the query's number, as calibration asks; else takes the first."""
    lines = request.prompt.splitlines()
    number = next(line for line in lines if line.startswith("Q| ")).removeprefix("Q| What is ").rstrip("?")
    right = [mark for mark in "AB" if any(line.startswith(f"{mark}| It is {number},") for line in lines)]
    request.say(f"Verdict: {right[0] if right else 'A'}")


def test_verifiers_compare_files_of_responses(sami, files, tmp_path):
    arguments = ["judge", *files, "--principles", tmp_path / "principles.yaml", "--judge", "verifier"]
    code, out, _ = sami(*arguments, "--json")
    assert code == 0
    value = json.loads(out)
    assert [(c["candidate"], c["baseline"], c["raw"]["rate"]) for c in value["win_rates"] if c["scope"] == "all"] == [
        ("new", "old", 100.0),
        ("newer", "old", 100.0),
    ]
    assert [(row["policy"], row["responses"], row["words"]) for row in value["lengths"]] == [
        ("old", 12, 10.0),
        ("new", 12, 3.0),
        ("newer", 12, 1.0),
    ]
    assert len(read_verdicts(tmp_path / "out" / "verdicts.jsonl")) == 48
    code, out, err = sami(*arguments)
    assert code == 0
    for words in ("new vs old", "Length of responses", "10.0", "0.30", "All verdicts:"):
        assert words in out
    assert "fewer than 50 queries" in err


def test_a_server_judges_files_after_its_calibration(sami, files, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(know) as server:
        judge = ("--judge", endpoint(server.url))
        code, out, _ = sami("judge", *files, *judge, "--calibrate")
        assert code == 0
        assert "The judge good is right in 100.0 % [100.0, 100.0] of 24 verdicts" in out
        assert not (tmp_path / "out" / "verdicts.jsonl").exists()
        assert len(server.requests) == 24
        code, out, err = sami("judge", *files, *judge, "evaluation.order=random", "--limit", "5")
        assert code == 0, err
        assert len(server.requests) == 34  # what calibration asked is not asked again
        code, out, _ = sami("winrate", tmp_path / "out" / "verdicts.jsonl", "--json")
    [first, _] = json.loads(out)
    assert first["judge_accuracy"]["accuracy"] == 100.0
    assert KEY not in out + err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a[:-2], ["--output"]),
        (lambda a: a[4:], ["--candidate"]),
        (lambda a: ["quickstart", *a], ["quickstart"]),
        (lambda a: [*a, "training.lr=1"], ["training.lr", "no effect"]),
        (lambda a: [*a, "evaluation.ordre=both"], ["evaluation.ordre", "'order'"]),
        (lambda a: [*a, "--judge", "oracle"], ["oracle", "verifier, local, endpoint, human"]),
        (lambda a: [*a, "--judge", "{kind: endpoint, model: m, url: 'http://u:p@h'}"], ["key_variable"]),
        (lambda a: [*a, "--judge", "{kind: endpoint, model: m, budget: 1}"], ["budget has no effect"]),
        (lambda a: [*a, "--judge", "verifier", "--judge", "verifier"], ["two judges", "'verifier'"]),
        (lambda a: [*a, "--judge", "verifier"], ["--principles"]),
        (lambda a: [x.replace("queries.jsonl", "nowhere.jsonl") for x in [*a, *FREE]], ["nowhere.jsonl"]),
        (lambda a: [x.replace("new.jsonl", "nowhere.jsonl") for x in [*a, *FREE]], ["nowhere.jsonl"]),
        (lambda a: [x.replace("new.jsonl", "old.jsonl") for x in [*a, *FREE]], ["given twice", "compared with itself"]),
        (lambda a: [x.replace("new.jsonl", "sub/old.jsonl") for x in [*a, *FREE]], ["both called 'old'", "Rename"]),
    ],
)
def test_bad_input_is_refused(sami, files, change, words):
    refused(sami("judge", *change(files)), *words)


def test_a_recipe_or_files_are_needed_and_options_of_files_have_no_effect_on_a_run(sami):
    refused(sami("judge"), "recipe")
    for option, value in (("--limit", "3"), ("--field", "query")):
        refused(sami("judge", "quickstart", option, value), f"{option} has no effect on a run")


@pytest.mark.parametrize(
    ("definition", "verifier", "words"),
    [
        ("Be short.", {"check": "word_count", "max": 3}, ["12 of 12 responses (100.0 %)", "'Be brief.'", "5 %"]),
        ("Be brief.", None, ["no verdicts", "verifier can judge"]),
    ],
)
def test_an_empty_table_is_an_error(sami, files, tmp_path, definition, verifier, words):
    principle = PRINCIPLE | {"definition": definition, "verifier": verifier}
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump([principle]))
    refused(sami("judge", *files, "--principles", tmp_path / "principles.yaml"), *words)


def test_the_same_responses_under_two_names_are_announced(sami, files, tmp_path):
    (tmp_path / "new.jsonl").write_text((tmp_path / "old.jsonl").read_text())
    code, _, err = sami("judge", *files, "--principles", tmp_path / "principles.yaml", "--json")
    assert code == 0
    assert "new and old contain the same responses" in err
    assert "newer and old" not in err


def test_a_run_that_is_not_evaluated_is_refused(sami, tmp_path, model_folder):
    recipe = write_recipe(tmp_path / "recipe", model_folder("llama", True))
    refused(sami("judge", recipe, "--output", tmp_path / "run"), "score-base", "sami evaluate")


@pytest.mark.skipif(not TLDR.is_dir(), reason=f"the published TL;DR responses are not in {TLDR}")
def test_published_responses_drift_in_length(sami, tmp_path):
    def responses(name):
        return TLDR / "responses" / f"mistral-7b-{name}.jsonl"

    rows = [json.loads(line) for line in responses("base").read_text().splitlines()]
    brief, thorough = sorted({line[3:] for row in rows for line in row["constitution"].split("\n")})
    principles = [
        {"id": "brief", "definition": brief, "antithesis": "x", "verifier": {"check": "word_count", "max": 60}},
        {"id": "thorough", "definition": thorough, "antithesis": "y", "verifier": {"check": "word_count", "min": 20}},
    ]
    (tmp_path / "principles.yaml").write_text(yaml.safe_dump(principles))
    code, out, err = sami(
        "judge",
        *(a for n in (1, 2, 3) for a in ("--candidate", responses(f"sami-{n}"))),
        *("--baseline", responses("base"), "--baseline", responses("instruct")),
        *("--queries", TLDR / "posts.jsonl", "--field", "post", "--principles", tmp_path / "principles.yaml"),
        *("--output", tmp_path / "out", "--json"),
    )
    assert code == 0, err
    value = json.loads(out)
    words = {row["policy"].removeprefix("mistral-7b-"): round(row["words"], 1) for row in value["lengths"]}
    assert words == {"base": 100.2, "instruct": 95.1, "sami-1": 95.1, "sami-2": 60.1, "sami-3": 48.9}
    cells = [c for c in value["win_rates"] if c["scope"] == "all"]
    assert [(c["candidate"][-6:], c["baseline"][11:], c["queries"]) for c in cells] == [
        (f"sami-{n}", baseline, 150) for n in (1, 2, 3) for baseline in ("base", "instruct")
    ]
