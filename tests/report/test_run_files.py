"""Reading a run's folder: finished, stopped anywhere, or damaged."""

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from sami.errors import InputError
from sami.evaluation import recorded_lines
from sami.evaluation.verdicts import append_verdict
from sami.evaluation.win_rate import win_rates
from sami.files import write_json
from sami.loop.directory import content_hash
from sami.report.run_files import read_run
from tests.support.report_runs import make_run

UNFINISHED = "summary.json is missing, so the run did not finish."


@pytest.fixture
def run(report_run, tmp_path):
    return shutil.copytree(report_run, tmp_path / "run")


def test_a_finished_run_lacks_nothing(report_run):
    files = read_run(report_run)
    assert files.missing == []
    assert files.is_summary_stored
    assert list(files.responses) == ["base", "iteration-1", "iteration-2"]
    assert files.summary.as_json() == json.loads((report_run / "summary.json").read_text())
    assert [len(steps) for steps in files.metrics.values()] == [3, 3]
    assert len(files.verdicts) == 2 * 2 * 48  # iterations, orders, 12 queries with 2 checked principles in 2 polarities


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"not a run folder: recipe\.yaml is missing"):
            read_run(folder)


def test_a_run_stopped_in_training_shows_how_far_it_came(run):
    (run / "summary.json").unlink()
    (run / "evaluation" / "verdicts.jsonl").unlink()
    for name in ("responses/iteration-2.parquet", "scores/iteration-2.json"):
        (run / "evaluation" / name).unlink()
    (run / ".steps" / "train-2.json").unlink()
    metrics = run / "iteration-2" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text(lines[0] + "\n" + lines[1][:40])  # killed in the middle of a write
    assert read_run(run).missing == [
        "Iteration 2 is not trained: 1 of 3 steps are recorded.",
        UNFINISHED,
        "No judge has compared the answers, so there are no win rates.",
    ]


def test_a_run_without_a_summary_has_the_figures_of_what_is_scored(run, report_run):
    (run / "summary.json").unlink()
    (run / "evaluation" / "scores" / "iteration-2.json").unlink()
    files, finished = read_run(run), read_run(report_run)
    assert files.policies == finished.policies[:2]
    assert files.summary.comparisons == finished.summary.comparisons[:1]
    assert not files.is_summary_stored
    assert "iteration-2 has answered and is not scored." in files.missing


def test_an_unfinished_run_judges_with_the_slope_samples_and_seed_of_its_recipe(tmp_path):
    settings = {"evaluation": {"bootstrap_samples": 101, "seed": 3, "slope": "shared"}}
    run = make_run(tmp_path / "run", settings=settings)
    finished = read_run(run)
    (run / "summary.json").unlink()
    files = read_run(run)
    assert files.summary.win_rates == finished.summary.win_rates
    assert files.summary.verdict == finished.summary.verdict
    shown = [one.as_json() for one in files.summary.win_rates]
    for other in ({"samples": 102}, {"seed": 0}, {"slope": "policy"}):
        assert shown != win_rates(files.verdicts, **({"samples": 101, "seed": 3, "slope": "shared"} | other))


def test_an_unfinished_run_knows_what_its_judges_are_worth(run):
    (run / "summary.json").unlink()
    (run / "evaluation" / "calibration").mkdir()
    for n, verdict in enumerate(read_run(run).verdicts[:8]):
        right = replace(verdict, candidate="right", baseline="wrong-query", score=float(n > 0))
        append_verdict(run / "evaluation" / "calibration" / "verdicts.jsonl", right)
    accuracies = {one.judge_accuracy.accuracy for one in read_run(run).summary.win_rates if one.judge_accuracy}
    assert accuracies == {87.5}


def test_a_run_that_has_only_begun_lists_every_step(run):
    for name in ("evaluation", "iteration-1", "iteration-2", ".steps"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    assert read_run(run).missing == [
        "base has not answered the held-out queries yet, so there is nothing to compare with.",
        "Iteration 1 has not started: it has no contrasts.",
        "Iteration 2 has not started: it has no contrasts.",
        UNFINISHED,
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b"[]"),
        ("summary.json", b'{"policies": [{"name": "base"}]}'),
        ("evaluation/scores/base.json", b"\xff"),
        ("evaluation/responses/iteration-1.parquet", b"PAR1"),
        ("iteration-1/metrics.jsonl", b"not json\n"),
        ("principles.yaml", b"- id: ["),
        ("recipe.yaml", b"- a list"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_read(run, name, content):
    (run / name).write_bytes(content)
    files = read_run(run)
    assert any(line.startswith(f"{name} cannot be read: ") for line in files.missing), files.missing
    assert files.responses


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("evaluation/scores/base.json", "score-base"),
        ("evaluation/responses/iteration-1.parquet", "respond-iteration-1"),
        ("iteration-2/metrics.jsonl", "train-2"),
        ("evaluation/verdicts.jsonl", None),
        ("evaluation/calibration/verdicts.jsonl", None),
    ],
)
def test_a_file_that_changed_after_it_was_recorded_is_refused(run, name, step):
    file = run / name
    if not file.exists():
        file.parent.mkdir()
        shutil.copy(run / "evaluation" / "verdicts.jsonl", file)
    if step is None:
        recorded_lines.record(file)
    else:
        write_json(run / ".steps" / f"{step}.json", {"inputs": {}, "result": {}, "outputs": {name: content_hash(file)}})
    read_run(run)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} changed after"):
        read_run(run)


@pytest.mark.parametrize(("key", "value"), [("training", 3), ("invented", {}), ("sampling", [2])])
def test_a_recipe_of_another_version_is_named_and_the_rest_is_read(run, key, value):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {key: value}))
    files = read_run(run)
    assert files.missing[0].startswith(f"recipe.yaml does not fit this version of sami: {key}: ")
    assert files.summary.policies


def test_scores_newer_than_the_summary_are_named(run):
    summary = json.loads((run / "summary.json").read_text())
    summary["policies"].pop()
    (run / "summary.json").write_text(json.dumps(summary))
    assert "iteration-2 is scored but not in summary.json, which is older." in read_run(run).missing
