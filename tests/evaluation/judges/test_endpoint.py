"""A server as a judge, and servers that fail in every way we know."""

import json
import logging
import random
import re
import threading
import time

import pytest

from sami import chat_client
from sami.errors import InputError
from sami.evaluation.ask import ask, requests_of, spent
from sami.evaluation.judges import Given
from sami.evaluation.judges.endpoint import Endpoint
from sami.evaluation.verdicts import read_verdicts
from sami.recipe import EndpointJudge, load_recipe
from tests.support.faulty_server import KEY, serving
from tests.support.judging import pair, pairs


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat_client, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def settings(url, **changes):
    defaults = {"kind": "endpoint", "model": "judge", "url": url, "key_variable": "JUDGE_KEY", "timeout": 2.0}
    return EndpointJudge(**{**defaults, **changes})


def run(url, folder, count=5, limit=100.0, **changes):
    file = folder / "verdicts.jsonl"
    judge = Endpoint(settings(url, **changes), Given(spent=spent(file, "endpoint:judge")))
    return ask(judge, pairs(count), file, unscored_limit=limit)


def short(request):
    """The verdict for the shorter response, which is the candidate's."""
    a, b = (re.findall(rf"^{mark}\| (.*)$", request.prompt, re.MULTILINE) for mark in "AB")
    return "Verdict: A" if len(a[0]) < len(b[0]) else "Verdict: B"


def answer_well(request):
    request.say(short(request))


def test_verdicts_tokens_and_version_are_recorded(tmp_path):
    with serving(answer_well) as server:
        verdicts = run(server.url, tmp_path, prompt_price=10.0, completion_price=100.0, temperature=0.5, seed=3)
    assert [v.score for v in verdicts] == [1.0] * 10
    assert verdicts[0].raw == "Verdict: A"
    assert verdicts[0].cost == pytest.approx(100 * 10e-6 + 4 * 100e-6)
    log = requests_of(tmp_path / "verdicts.jsonl", "endpoint:judge")
    assert [(line["model"], line["prompt_tokens"], line["completion_tokens"]) for line in log] == [
        ("judge-2026-01-01 fp_1", 100, 4)
    ] * 10
    body = server.requests[0].body
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("judge", 0.5, 3, 512)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_requests_in_flight_are_bounded(tmp_path):
    def slowly(request):
        time.sleep(0.05)
        answer_well(request)

    with serving(slowly) as server:
        run(server.url, tmp_path, 12, concurrency=3)
    assert server.most_in_flight == 3


def logprobs(text, at, options):
    def token(word, place):
        top = [{"token": t, "logprob": p, "bytes": None} for t, p in options.items()] if place == at else []
        return {"token": word, "logprob": -0.1, "bytes": None, "top_logprobs": top}

    return {"content": [token(word, place) for place, word in enumerate(text)], "refusal": None}


@pytest.mark.parametrize(
    ("options", "score"),
    [({" A": -0.1, " B": -2.0}, 1.0), ({" A": -2.0, " B": -0.1}, 0.0), ({" A": -2.0, " tie": -0.1}, 0.5), ({}, 1.0)],
)
def test_the_likeliest_label_wins_where_the_server_gives_log_probs(tmp_path, options, score):
    def answer(request):
        words = ["Ver", "dict", ":", " A"]
        request.say("".join(words), logprobs=logprobs(words, 3, options))

    with serving(answer) as server:
        file = tmp_path / "verdicts.jsonl"
        [first, second] = ask(Endpoint(settings(server.url)), [pair()], file)
    assert (first.score, second.score) == (score, 1 - score)
    assert server.requests[0].body["logprobs"] is True


def only(query, fault):
    """Questions about this query get the fault, all others a good answer."""
    return lambda request: fault(request) if query in request.prompt else answer_well(request)


# Temporary faults.


def once(fault):
    """Each prompt fails once, then is answered."""
    seen = set()
    lock = threading.Lock()

    def answer(request):
        with lock:
            new = request.prompt not in seen
            seen.add(request.prompt)
        if new:
            fault(request)
        else:
            answer_well(request)

    return answer


PASSING = {
    "429": lambda r: r.fail(429, "slow down"),
    "500": lambda r: r.fail(500),
    "503 with text": lambda r: r.send(503, b"<html>busy</html>"),
    "stall": lambda r: r.stall(3.0),
    "drip": lambda r: r.stall(9.0, drip=True),
    "dropped": lambda r: r.drop(),
    "truncated": lambda r: r.truncate(),
    "invalid JSON": lambda r: r.send(200, b'{"choices": [{"mess'),
    "another JSON": lambda r: r.send(200, {"ok": True}),
    "no choices": lambda r: r.send(200, {"choices": []}),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_temporary_fault_costs_an_attempt_and_no_verdict(tmp_path, fault):
    timeout = 1.0 if fault in ("stall", "drip") else 30.0
    with serving(once(PASSING[fault])) as server:
        verdicts = run(server.url, tmp_path, 2, timeout=timeout, retries=2)
    assert [v.score for v in verdicts] == [1.0] * 4
    assert len(server.requests) == 8
    assert len(read_verdicts(tmp_path / "verdicts.jsonl")) == 4


# Lasting faults.


@pytest.mark.parametrize(
    ("text", "more", "reason"),
    [
        ("", {}, "the answer is empty"),
        (None, {}, "the answer is empty"),
        ("I like both.", {}, "the answer has no verdict line"),
        ("Response A says:\nVerdict: A", {"finish": "length"}, "the answer was cut off before its verdict"),
        ("Verdict: A", {"finish": "content_filter"}, "the server's content filter stopped the answer"),
    ],
)
def test_an_unreadable_answer_is_unscored_with_its_reason(tmp_path, text, more, reason):
    with serving(only("What is 0?", lambda request: request.say(text, **more))) as server:
        verdicts = run(server.url, tmp_path)
    assert [v.score for v in verdicts] == [None, None] + [1.0] * 8
    assert {v.reason for v in verdicts[:2]} == {reason}
    assert verdicts[0].raw == (text or "")
    assert len(server.requests) == 10  # not asked a second time: it would say the same


def test_a_third_of_all_calls_failing_leaves_every_pair_scored_or_unscored_once(tmp_path):
    rng, lock = random.Random(0), threading.Lock()
    quick = [fault for name, fault in PASSING.items() if name not in ("stall", "drip")]
    faults = [*quick, lambda r: r.say(""), lambda r: r.say("Hm."), lambda r: r.fail(429, Retry_After="0.2")]

    def answer(request):
        with lock:
            fault = rng.choice(faults) if rng.random() < 0.3 else answer_well
        fault(request)

    with serving(answer) as server:
        verdicts = run(server.url, tmp_path, 60, timeout=3.0, retries=4, concurrency=16)
    recorded = read_verdicts(tmp_path / "verdicts.jsonl")
    assert len(verdicts) == len(recorded) == 120
    assert len({(v.query_id, v.order) for v in recorded}) == 120
    assert {v.score for v in recorded} <= {1.0, None}
    unscored = [v for v in recorded if v.score is None]
    assert 0 < len(unscored) < 15
    assert all(v.reason for v in unscored)
    assert len(server.requests) > 140


# The end of judging.


@pytest.mark.parametrize("where", ["models", "answer"])
def test_a_wrong_key_is_said_without_the_key(tmp_path, where, capfd):
    def refuse(request):
        request.fail(401, f"Incorrect API key provided: {request.headers['authorization']}.", "invalid_api_key")

    with serving(refuse) as server:
        if where == "models":
            server.models = refuse
        with pytest.raises(InputError, match=r"refuses the key in JUDGE_KEY: .*\[key\]") as caught:
            run(server.url, tmp_path)
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_question_longer_than_the_judges_context(tmp_path):
    refusal = 400, "This model's maximum context length is 4096 tokens.", "context_length_exceeded"
    said = pytest.raises(InputError, match=r"'q3'.*longer than the context.*4096")
    with serving(only("What is 3?", lambda request: request.fail(*refusal))) as server, said:
        run(server.url, tmp_path, concurrency=1)
    assert len(read_verdicts(tmp_path / "verdicts.jsonl")) == 6


def test_a_parameter_that_the_server_refuses_is_adapted_and_recorded(tmp_path):
    def answer(request):
        if "max_tokens" in request.body:
            request.fail(400, "max_tokens is not supported")
        else:
            answer_well(request)

    with serving(answer) as server:
        assert [v.score for v in run(server.url, tmp_path)] == [1.0] * 10
    assert len(server.requests) == 11
    log = requests_of(tmp_path / "verdicts.jsonl", "endpoint:judge")
    assert {str(line["adapted"]) for line in log} == {"{'max_tokens': 'max_completion_tokens'}"}


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda r: r.fail(404, "No model `judge`.", "model_not_found"), r"does not know the model 'judge'.*No model"),
        (lambda r: r.fail(429, "You exceeded your quota", "insufficient_quota"), "no credit left"),
        (lambda r: r.fail(400, "temperature must be below 1"), r"refuses the request .*below 1 \(HTTP 400\)\. Change"),
    ],
)
def test_a_failure_that_every_question_would_have_ends_at_once(tmp_path, fail, words):
    with serving(fail) as server, pytest.raises(InputError, match=words):
        run(server.url, tmp_path)
    assert len(server.requests) == 1


def test_a_server_that_goes_away_stops_the_judging_and_a_second_call_continues(tmp_path):
    def answer(request):
        if request.number < 6:
            answer_well(request)
        else:
            request.drop()

    with serving(answer) as server:
        with pytest.raises(InputError, match="5 questions in a row"):
            run(server.url, tmp_path, 20, retries=1, concurrency=2)
        before = [v for v in read_verdicts(tmp_path / "verdicts.jsonl") if v.score is not None]
        assert len(before) == 6
        server.answer = answer_well
        server.requests.clear()
        verdicts = run(server.url, tmp_path, 20, concurrency=2)
    assert [v.score for v in verdicts] == [1.0] * 40
    assert len(server.requests) == 34
    assert len(read_verdicts(tmp_path / "verdicts.jsonl")) == 40


def test_a_budget_is_never_passed_and_a_larger_one_continues(tmp_path):
    # 100 prompt tokens at 10 a million and 4 at 100 a million are 0.0014; max_tokens 4 keeps the reserve close.
    prices = {"prompt_price": 10.0, "completion_price": 100.0, "max_tokens": 4}
    with serving(answer_well) as server:
        with pytest.raises(InputError, match=r"budget of 0\.02.*run the same command again to continue"):
            run(server.url, tmp_path, 20, budget=0.02, **prices)
        asked = len(server.requests)
        used = spent(tmp_path / "verdicts.jsonl", "endpoint:judge")
        assert used == pytest.approx(0.0014 * asked)
        assert asked > 3
        assert used <= 0.02
        with pytest.raises(InputError, match=r"budget of 0\.02"):  # what was spent counts in the next call
            run(server.url, tmp_path, 20, budget=0.02, **prices)
        assert spent(tmp_path / "verdicts.jsonl", "endpoint:judge") <= 0.02
        verdicts = run(server.url, tmp_path, 20, budget=1.0, **prices)
    assert [v.score for v in verdicts] == [1.0] * 40
    assert len(server.requests) == 40


def test_the_key_appears_nowhere(tmp_path, caplog, capfd):
    """With all logs on, and a server that repeats the key wherever it can."""
    caplog.set_level(logging.DEBUG)

    def answer(request):
        secret = request.headers["authorization"]
        match request.number % 4:
            case 0:
                request.fail(500, f"failed for {secret}")
            case 1:
                request.say(f"You sent {secret}.")
            case 2:
                request.fail(400, f"refused for {secret}")
            case _:
                request.say(f"{secret}\n{short(request)}")

    with serving(answer) as server:
        run(server.url, tmp_path, 20, retries=0, concurrency=1)
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("Bearer [key]" in text for text in files)
    assert not any(KEY in text for text in [*files, caplog.text, *capfd.readouterr()])


def test_settings_hold_no_place_for_a_key():
    for url in ("http://user:pass@host/v1", "http://host/v1?api_key=1", "host:80"):
        with pytest.raises(ValueError, match="url"):
            settings(url)
    with pytest.raises(ValueError, match="key"):
        settings("http://host/v1", key=KEY)


def test_a_key_in_the_wrong_place_of_a_recipe_is_not_repeated():
    for place in ("key_variable", "key", "api_key"):
        judge = json.dumps({"kind": "endpoint", "model": "m", place: KEY})
        with pytest.raises(InputError, match=place) as caught:
            load_recipe("quickstart", [f"evaluation.judges=[{judge}]"])
        assert KEY not in str(caught.value)


def test_the_identity_covers_sampling_and_template_but_not_how_it_is_asked(monkeypatch):
    def identity(**changes):
        return json.dumps(Endpoint(settings("http://host/v1", **changes)).identity())

    plain = identity()
    for change in ({"model": "x"}, {"temperature": 1.0}, {"seed": 1}, {"max_tokens": 9}, {"log_probs": False}):
        assert identity(**change) != plain
    assert identity(concurrency=1, retries=0, timeout=1.0, prompt_price=1.0, budget=1.0) == plain
    monkeypatch.setattr("sami.evaluation.judges.prompt.PROMPT", "another {a}{b}")
    assert identity() != plain
