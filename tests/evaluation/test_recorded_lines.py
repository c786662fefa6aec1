"""Files that grow by lines: what was recorded must not change, and what is added may."""

from pathlib import Path

import pytest

from sami.errors import InputError
from sami.evaluation import recorded_lines
from sami.evaluation.ask import ask
from tests.support.command_line import Sami, refused
from tests.support.judging import Scripted, pair, pairs


def judged(folder: Path, count: int = 2) -> Path:
    file = folder / "verdicts.jsonl"
    ask(Scripted(lambda _: 1.0), pairs(count), file)
    return file


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"line": 1}\n{"line": 2}\n')
    recorded_lines.record(file)
    return file


@pytest.mark.parametrize("content", ['{"line": 3}\n{"line": 2}\n', '{"line": 1}\n', "", '{"line": 2}\n{"line": 1}\n'])
def test_a_line_that_changed_moved_or_disappeared_is_refused(recorded: Path, content: str) -> None:
    recorded.write_text(content)
    with pytest.raises(InputError, match=r"lines\.jsonl changed after .* delete .*\.lines\.jsonl\.recorded\.json"):
        recorded_lines.require_unchanged(recorded)


def test_more_lines_a_missing_file_and_a_file_without_record_are_accepted(recorded: Path, tmp_path: Path) -> None:
    recorded.write_text(recorded.read_text() + '{"line": 3}\n')
    recorded_lines.require_unchanged(recorded)
    recorded.unlink()
    recorded_lines.require_unchanged(recorded)
    (tmp_path / "earlier.jsonl").write_text("anything")
    recorded_lines.require_unchanged(tmp_path / "earlier.jsonl")


def test_a_kill_before_or_after_the_content_is_replaced_leaves_a_valid_record(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = recorded.read_text(), '{"line": 2}\n'
    monkeypatch.setattr(recorded_lines, "record", lambda file: None)  # killed before this
    recorded_lines.rewrite(recorded, after)
    for content in (before, after):
        recorded.write_text(content)
        recorded_lines.require_unchanged(recorded)
    recorded.write_text('{"line": 1}\n')
    with pytest.raises(InputError, match="changed after"):
        recorded_lines.require_unchanged(recorded)


def test_a_damaged_record_is_named(recorded: Path) -> None:
    record = recorded.with_name(".lines.jsonl.recorded.json")
    for content in ("{", "[1]", "3"):
        record.write_text(content)
        with pytest.raises(InputError, match=r"record .*\.recorded\.json"):
            recorded_lines.require_unchanged(recorded)


def test_an_edited_verdict_stops_the_next_judging_and_winrate(sami: Sami, tmp_path: Path) -> None:
    file = judged(tmp_path)
    file.write_text(file.read_text().replace('"score": 1.0', '"score": 0.0', 1))
    with pytest.raises(InputError, match=r"verdicts\.jsonl changed after"):
        ask(Scripted(lambda _: 1.0), pairs(3), file)
    assert "verdicts.jsonl changed after" in refused(sami("winrate", file))
    file.with_name(".verdicts.jsonl.recorded.json").unlink()
    assert len(ask(Scripted(lambda _: 1.0), pairs(3), file)) == 6


def test_an_edited_request_stops_the_next_judging(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    log.write_text('{"judge": "scripted", "cost": 1.0}\n')
    judged(tmp_path)
    log.write_text('{"judge": "scripted", "cost": 0.0}\n')
    with pytest.raises(InputError, match=r"requests\.jsonl changed after"):
        judged(tmp_path, count=3)


def test_judging_goes_on_after_its_own_rewriting_and_after_its_file_was_deleted(tmp_path: Path) -> None:
    file = judged(tmp_path, count=1)
    ask(Scripted(lambda _: 0.0, version=2), [pair()], file)  # supersedes both lines
    ask(Scripted(lambda _: 0.0, version=2), pairs(2), file)
    file.unlink()
    judged(tmp_path, count=1)
    recorded_lines.require_unchanged(file)
