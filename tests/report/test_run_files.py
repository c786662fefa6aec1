"""Reading a run's folder: finished, stopped anywhere, or damaged."""

import json
import shutil
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.report.run_files import read_run


@pytest.fixture(scope="module")
def finished(report_run: Path) -> Path:
    return report_run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def test_a_finished_run_lacks_nothing(finished: Path) -> None:
    files = read_run(finished)
    assert files.missing == []
    assert files.is_summary_stored
    assert list(files.responses) == ["base", "iteration-1", "iteration-2"]
    assert files.summary == json.loads((finished / "summary.json").read_text())
    assert [len(steps) for steps in files.metrics.values()] == [3, 3]
    assert len(files.verdicts) == 2 * 2 * 48  # iterations, orders, 12 queries with 2 checked principles in 2 polarities


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no recipe\.yaml"):
        read_run(tmp_path)


def test_a_run_stopped_in_training_says_how_far_it_came(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "evaluation" / "verdicts.jsonl").unlink()
    for name in ("responses/iteration-2.parquet", "scores/iteration-2.json"):
        (run / "evaluation" / name).unlink()
    (run / ".steps" / "train-2.json").unlink()
    metrics = run / "iteration-2" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text(lines[0] + "\n" + lines[1][:40])  # killed in the middle of a write
    files = read_run(run)
    assert files.missing == [
        "Iteration 2 is not trained: 1 of 3 steps are recorded.",
        "There is no summary.json, so the run did not come to its end.",
        "No judge has compared the answers, so there are no win rates.",
    ]


def test_a_run_without_summary_has_the_figures_of_what_is_scored(run: Path, finished: Path) -> None:
    (run / "summary.json").unlink()
    (run / "evaluation" / "scores" / "iteration-2.json").unlink()
    files = read_run(run)
    stored = json.loads((finished / "summary.json").read_text())
    assert files.policies == json.loads(json.dumps(stored["policies"][:2]))
    assert files.summary["comparisons"][0]["learned"] == stored["comparisons"][0]["learned"]
    assert not files.is_summary_stored
    assert "iteration-2 has answered and is not scored." in files.missing


def test_a_run_that_has_only_begun_lists_every_step(run: Path) -> None:
    for name in ("evaluation", "iteration-1", "iteration-2", ".steps"):
        shutil.rmtree(run / name)
    (run / "summary.json").unlink()
    assert read_run(run).missing == [
        "base has not answered the held-out queries yet, so there is nothing to compare with.",
        "Iteration 1 has not started: it has no contrasts.",
        "Iteration 2 has not started: it has no contrasts.",
        "There is no summary.json, so the run did not come to its end.",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", b"{"),
        ("summary.json", b"[]"),
        ("evaluation/scores/base.json", b"\xff"),
        ("evaluation/responses/iteration-1.parquet", b"PAR1"),
        ("evaluation/verdicts.jsonl", b'{"query_id": 1}\n'),
        ("iteration-1/metrics.jsonl", b"not json\n"),
        ("principles.yaml", b"- id: ["),
        ("recipe.yaml", b"- a list"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_read(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    files = read_run(run)
    assert any(line.startswith(f"{name} cannot be read: ") for line in files.missing), files.missing
    assert files.responses  # and reading went on


def test_scores_newer_than_the_summary_are_told_of(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["policies"].pop()
    (run / "summary.json").write_text(json.dumps(summary))
    assert "iteration-2 is scored and not in summary.json, which is older." in read_run(run).missing
