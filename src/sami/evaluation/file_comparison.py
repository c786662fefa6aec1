"""Files of responses compared by judges, without a run: each candidate against each baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sami.console import say
from sami.errors import InputError, quoted
from sami.evaluation.calibration import Calibration
from sami.evaluation.comparison import calibrate_all, every_pair, judge_all, lengths
from sami.evaluation.judges import judge_class
from sami.evaluation.pairs import Policy
from sami.evaluation.response_files import aligned, check_matches, first_queries, from_file
from sami.files import replacing, write_json
from sami.principles import Principle, load_principles
from sami.queries import load_queries
from sami.recipe import Evaluation

ANY_LENGTH = 10**9  # characters of a query: the responses are there already, so a long query is not a problem


@dataclass(frozen=True)
class Files:
    """What is compared: one `{"id", "constitution", "response"}` per line in each file of responses."""

    candidates: Sequence[Path]
    baselines: Sequence[Path]
    queries: Path
    field: str
    """The field of the queries' text."""
    principles: Path | None
    """With principles, constitutions are recognized and verifiers can judge."""
    limit: int | None
    """Only the first queries of each file, this many."""


class Comparison:
    """A folder of verdicts about files of responses.

    Raises:
        InputError: a file cannot be read, two policies answered different queries, a policy is compared with itself,
            or too many constitutions are not made of the principles.
    """

    def __init__(self, files: Files, settings: Evaluation, folder: Path) -> None:
        if files.principles is None and any(judge_class(judge.kind).needs_principles for judge in settings.judges):
            raise InputError(
                "Verifiers judge by the principles of a constitution, and there are none. Name their file with "
                "--principles, or use other judges with --judge."
            )
        principles = load_principles(files.principles) if files.principles else []
        whole = _policies(files, principles)
        self._policies = [first_queries(one, files.limit) for one in whole] if files.limit else whole
        count = len(files.baselines)
        baselines, candidates = self._policies[:count], self._policies[count:]
        self._pairs = every_pair(candidates, baselines)
        if files.principles:
            check_matches(list(baselines[0].responses), files.principles, settings.unscored_limit)
        _announce_equals(candidates, baselines)
        self._known, self._principles = whole[0], principles
        self._settings, self._folder = settings, folder

    def judge(self) -> dict[str, Any]:
        """Ask every judge. Returns and writes `summary.json`: win_rates, agreement, judges and lengths."""
        with _Locked(self._folder):
            day = first_date(self._folder)
            found = judge_all(self._settings, self._pairs, self._known, self._principles, self._folder, day)
            value = {**found, "lengths": lengths(self._policies)}
            write_json(self._folder / "summary.json", value)
            return value

    def calibrate(self) -> list[Calibration]:
        """Measure every judge on all of the first baseline's responses, whatever the limit."""
        with _Locked(self._folder):
            day = first_date(self._folder)
            return calibrate_all(self._settings, self._known, self._principles, self._folder, day)


def first_date(folder: Path) -> str | None:
    """The day of the first judging in a folder, which judges' chat templates show on later days too.

    Folders of earlier versions recorded no date and keep none.

    Raises:
        InputError: the record is damaged.
    """
    file = folder / ".date"
    if not file.is_file():
        if (folder / "verdicts.jsonl").exists():
            return None
        with replacing(file) as temporary:
            temporary.write_text(date.today().isoformat(), encoding="utf-8")
    try:
        return date.fromisoformat(file.read_text(encoding="utf-8").strip()).isoformat()
    except ValueError:
        raise InputError(f"The file {file} is damaged: it must contain the date of the first judging.") from None


def _policies(files: Files, principles: Sequence[Principle]) -> list[Policy]:
    """The baselines, then the candidates."""
    paths = [*files.baselines, *files.candidates]
    _refuse_same_names(paths)
    loaded = load_queries(str(files.queries), field=files.field, max_chars=ANY_LENGTH)
    queries = {query.id: query.text for query in loaded.queries}
    return aligned([from_file(file, queries, principles, dropped=loaded.dropped()) for file in paths])


def _refuse_same_names(paths: Sequence[Path]) -> None:
    first: dict[str, Path] = {}
    for path in paths:
        other = first.setdefault(path.stem, path)
        if other is path:
            continue
        if other.resolve() == path.resolve():
            raise InputError(f"{path} is given twice, and a policy cannot be compared with itself. Give another file.")
        raise InputError(
            f"{other} and {path} are both called {quoted(path.stem)}, and the name of a file is the name of its policy "
            f"in verdicts. Rename one of them."
        )


def _announce_equals(candidates: Sequence[Policy], baselines: Sequence[Policy]) -> None:
    for candidate in candidates:
        for baseline in baselines:
            if candidate.responses == baseline.responses:
                say(
                    f"warning: {candidate.name} and {baseline.name} contain the same responses, so that every pair is "
                    f"a tie. Check that the two files are of different policies."
                )


class _Locked(FileLock):
    """Two processes never write to one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / ".lock", timeout=0)

    def __enter__(self) -> "_Locked":
        try:
            self.acquire()
        except Timeout:
            raise InputError(
                f"Another process is writing to {Path(self.lock_file).parent}. Wait for it, or give another --output."
            ) from None
        return self
