"""A finished run whose answers try to act as markup, script or control characters."""

from pathlib import Path

import pytest

from tests.support.hostile import HOSTILE
from tests.support.report_runs import make_run


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One iteration; the answers to query n start with `HOSTILE[n % 10]`. Health limits are broken, with examples."""

    def write(query: str, iteration: int, principle: str, positive: bool) -> str:
        return f"{HOSTILE[int(query[6:-1]) % len(HOSTILE)]} {iteration}"

    limits = {"health": {"loops": 0.0, "distinct_2_ratio": 1.0}}
    return make_run(tmp_path_factory.mktemp("report-runs") / "hostile", write=write, iterations=1, settings=limits)
