"""Files of responses compared by judges, without a run: each candidate against each baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sami.errors import InputError
from sami.evaluation.calibration import Calibration
from sami.evaluation.comparison import calibrate_all, every_pair, judge_all, lengths, read_policies
from sami.evaluation.pairs import first_queries
from sami.files import write_json
from sami.principles import load_principles
from sami.queries import load_queries
from sami.recipe import Evaluation, VerifierJudge


@dataclass(frozen=True)
class Files:
    """What is compared: one `{"id", "constitution", "response"}` a line in each file of responses."""

    candidates: Sequence[Path]
    baselines: Sequence[Path]
    queries: Path
    field: str
    """Of the queries' text."""
    principles: Path | None
    """With it, constitutions are recognised and verifiers can judge."""
    limit: int | None
    """Only the first so many queries of each file."""


class Comparison:
    """A folder of verdicts about files of responses.

    Raises:
        InputError: a file cannot be read, or two policies answered different queries.
    """

    def __init__(self, files: Files, settings: Evaluation, folder: Path) -> None:
        loaded = load_queries(str(files.queries), field=files.field)
        queries = {query.id: query.text for query in loaded.queries}
        self._principles = load_principles(files.principles) if files.principles else []
        whole = read_policies([*files.baselines, *files.candidates], queries, self._principles)
        self._known = whole[0]
        self._policies = [first_queries(one, files.limit) for one in whole] if files.limit else whole
        count = len(files.baselines)
        self._pairs = every_pair(self._policies[count:], self._policies[:count])
        self._settings = settings
        if not self._principles and any(isinstance(judge, VerifierJudge) for judge in settings.judges):
            raise InputError(
                "Verifiers judge by the principles of a constitution, and none are given: name their file with "
                "--principles, or other judges with --judge."
            )
        self._folder = folder

    def judge(self) -> dict[str, Any]:
        """Ask every judge; returns and writes `summary.json`: win_rates, agreement, judges and lengths."""
        with _Locked(self._folder):
            found = judge_all(self._settings, self._pairs, self._known, self._principles, self._folder)
            value = {**found, "lengths": lengths(self._policies)}
            write_json(self._folder / "summary.json", value)
            return value

    def calibrate(self) -> list[Calibration]:
        """Measure every judge on the first baseline's responses, all of them whatever the limit."""
        with _Locked(self._folder):
            return calibrate_all(self._settings, self._known, self._principles, self._folder)


class _Locked(FileLock):
    """Two processes never write one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / ".lock", timeout=0)

    def __enter__(self) -> "_Locked":
        try:
            self.acquire()
        except Timeout:
            raise InputError(
                f"Another process is writing {Path(self.lock_file).parent}. Wait for it, or give another --output."
            ) from None
        return self
