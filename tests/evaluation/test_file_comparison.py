"""What a folder of verdicts about files keeps between calls."""

from datetime import date
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.evaluation import file_comparison
from sami.evaluation.file_comparison import first_date


class Later(date):
    @classmethod
    def today(cls) -> "Later":
        return cls(2031, 1, 2)


def test_templates_show_the_day_of_the_first_judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = first_date(tmp_path)
    assert began == date.today().isoformat()
    (tmp_path / "verdicts.jsonl").write_text("")
    monkeypatch.setattr(file_comparison, "date", Later)
    assert first_date(tmp_path) == began
    (tmp_path / ".date").write_text("soon")
    with pytest.raises(InputError, match=r"\.date is damaged"):
        first_date(tmp_path)
    (tmp_path / ".date").unlink()  # a folder of an earlier version
    assert first_date(tmp_path) is None
    (tmp_path / "verdicts.jsonl").unlink()
    assert first_date(tmp_path) == "2031-01-02"
