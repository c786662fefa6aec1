"""The client for servers that speak the OpenAI chat protocol, against servers that refuse, redirect and fail."""

import asyncio
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from sami import chat_client
from sami.chat_client import UNANSWERED, Chat
from sami.errors import InputError
from sami.recipe import Endpoint
from tests.support.faulty_server import KEY, Request, completion, serving

PARAMETERS = {"temperature": 0.0, "seed": 1, "max_tokens": 9, "logprobs": True, "top_logprobs": 5}
Answer = Callable[[Request], None]


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """The seconds that the client wanted to wait before its retries; it does not wait."""
    found = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        found.append(seconds)
        await sleep(0)

    monkeypatch.setattr(chat_client.asyncio, "sleep", record)
    monkeypatch.setenv("CHAT_KEY", KEY)
    return found


def settings(url: str, **changes: Any) -> Endpoint:
    return Endpoint(**{"model": "m", "url": url, "key_variable": "CHAT_KEY", "timeout": 2.0} | changes)


def ask(chat: Chat, *texts: str) -> list[Any]:
    """Ask several questions at a time; failures are returned."""

    async def all_of_them() -> list[Any]:
        async with chat:
            asked = [chat.complete(text, **PARAMETERS) for text in texts]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


def reason(url: str, **changes: Any) -> str:
    """What is shown of the failure of one question."""
    chat = Chat(settings(url, retries=0, **changes), "the judge x")
    [error] = ask(chat, "?")
    assert isinstance(error, UNANSWERED)
    return chat.explain(error)


# Parameters that a server refuses.


def refusing(**refused: Any) -> Answer:
    """A server that refuses some parameters, in the shape that `refused` maps each of them to."""

    def answer(request: Request) -> None:
        for name, body in refused.items():
            if name in request.body:
                request.send(422 if "detail" in json.dumps(body) else 400, body)
                return
        request.say("Fine.")

    return answer


def openai_shape(name: str, code: str = "unsupported_parameter") -> dict[str, Any]:
    return {
        "error": {"message": f"'{name}' is not supported; use 'max_completion_tokens'.", "param": name, "code": code}
    }


EXTRA = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
SHAPES = {
    "OpenAI": (openai_shape("seed"), "'seed' is not supported; use 'max_completion_tokens' (HTTP 400)"),
    "Mistral": ({"object": "error", "message": {"detail": EXTRA}}, "seed: Extra inputs are not permitted (HTTP 422)"),
    "FastAPI": ({"detail": EXTRA}, "seed: Extra inputs are not permitted (HTTP 422)"),
    "older vLLM": (
        {"object": "error", "message": "Unknown parameter: 'seed'."},
        "Unknown parameter: 'seed' (HTTP 400)",
    ),
    "Google": ([{"error": {"code": 400, "message": 'Unknown name "seed".'}}], 'Unknown name "seed" (HTTP 400)'),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_refused_parameter_is_adapted_once_announced_and_remembered(shape, capsys):
    body, words = SHAPES[shape]
    with serving(refusing(seed=body)) as server:
        chat = Chat(settings(server.url), "the judge x")
        assert [c.choices[0].message.content for c in ask(chat, *"abcdef")] == ["Fine."] * 6
        assert [c.choices[0].message.content for c in ask(chat, "g")] == ["Fine."]  # in a later session too
    assert ["seed" in request.body for request in server.requests] == [True] + [False] * 7
    assert chat.adapted == {"seed": None}
    said = " ".join(capsys.readouterr().err.split())
    assert said == f"The judge x: the server refuses seed ({words}); leaving it out from now on."


def test_each_parameter_is_adapted_in_its_own_way():
    refused = {name: openai_shape(name) for name in ("max_tokens", "temperature", "logprobs")}
    with serving(refusing(**refused)) as server:
        chat = Chat(settings(server.url), "the judge x")
        ask(chat, "a", "b")
    plain = {"model", "messages"}
    assert [request.body.keys() - plain for request in server.requests] == [
        {"temperature", "seed", "max_tokens", "logprobs", "top_logprobs"},
        {"temperature", "seed", "max_completion_tokens", "logprobs", "top_logprobs"},
        {"seed", "max_completion_tokens", "logprobs", "top_logprobs"},
        *[{"seed", "max_completion_tokens"}] * 2,
    ]
    assert server.requests[-1].body["max_completion_tokens"] == 9


def test_the_limit_of_an_answer_is_never_dropped():
    """A budget counts on it."""
    both = {name: openai_shape(name) for name in ("max_tokens", "max_completion_tokens")}
    with serving(refusing(**both)) as server:
        assert "'max_completion_tokens' is not supported" in reason(server.url)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 64 tokens; lower max_tokens, which is invalid.",
        "The prompt asks where to plant a seed.",
        "invalid request",
    ],
)
def test_a_refusal_of_something_else_adapts_nothing(message):
    with serving(lambda request: request.fail(400, message)) as server:
        assert message.rstrip(".") in reason(server.url)
    assert len(server.requests) == 1


def test_what_the_server_accepted_once_is_not_adapted_later():
    def answer(request):
        request.fail(400, "'seed' is not supported") if request.number else request.say("Fine.")

    with serving(answer) as server:
        first, second = ask(Chat(settings(server.url, retries=0), "the judge x"), "a", "b")
    assert first.choices[0].message.content == "Fine."
    assert isinstance(second, UNANSWERED)


# What an answer says.


def parts(*texts: str) -> list[dict[str, Any]]:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    return [thinking, *({"type": "text", "text": text} for text in texts)]


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "Fine."}, "stop", ("Fine.", None)),
        ({"content": parts("Fine", ".")}, "stop", ("Fine.", None)),
        ({"content": None}, "stop", ("", None)),
        (
            {"content": None, "refusal": "I cannot help."},
            "stop",
            ("I cannot help.", "the model refused to answer: I cannot help"),
        ),
        ({"content": ""}, "content_filter", ("", "the server's content filter stopped the answer")),
    ],
)
def test_text_parts_and_refusals_are_read(message, finish, expected):
    def answer(request):
        body = completion("", finish=finish)
        body["choices"][0]["message"] = {"role": "assistant", **message}
        request.send(200, body)

    with serving(answer) as server:
        chat = Chat(settings(server.url), "the judge x")
        [found] = ask(chat, "?")
    assert chat.answer(found) == expected


# Failures.


def test_a_timeout_and_a_body_that_is_not_json_are_explained():
    with serving(lambda request: request.stall(2.0)) as server:
        assert reason(server.url, timeout=0.2) in ("no answer within 0.2 seconds", "Request timed out.")
    with serving(lambda request: request.send(400, b"<html>\n  no such page </html>")) as server:
        assert reason(server.url) == "<html> no such page </html> (HTTP 400)"


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honored(form, waits):
    def answer(request):
        later = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
        if request.number == 0:
            request.fail(429, Retry_After="90" if form == "seconds" else later)
        else:
            request.say("Fine.")

    with serving(answer) as server:
        ask(Chat(settings(server.url), "the judge x"), "?")
    assert len(server.requests) == 2
    assert waits == [pytest.approx(90, abs=30)]


def test_waits_double_up_to_a_limit_without_retry_after(waits):
    with serving(lambda request: request.fail(503)) as server:
        reason_of = Chat(settings(server.url, retries=8), "the judge x")
        ask(reason_of, "?")
    least = [min(0.5 * 2**n, 20.0) for n in range(8)]
    assert all(low <= wait <= low + 0.5 for low, wait in zip(least, waits, strict=True))


def test_a_server_that_wants_to_be_left_alone_for_an_hour_is_not_waited_for(waits):
    with serving(lambda request: request.fail(429, "later", Retry_After="3600")) as server:
        [error] = ask(Chat(settings(server.url), "the judge x"), "?")
    assert isinstance(error, UNANSWERED)
    assert (len(server.requests), waits) == (1, [])


# Where requests go.


@pytest.mark.parametrize("where", ["models", "answer"])
def test_a_redirect_to_another_host_is_not_followed(where):
    with serving(lambda request: request.say("Fine.")) as other:

        def redirect(request):
            request.send(307, b"", Location=f"{other.url}/chat/completions")

        with serving(redirect) as server:
            if where == "models":
                server.models = redirect
            chat = Chat(settings(server.url), "the judge x")
            with pytest.raises(InputError, match=f"redirects to another host: {other.url}.*The judge x does not"):
                raise ask(chat, "?")[0]
    assert other.requests == []


def test_a_redirect_on_the_same_host_is_followed():
    def answer(request):
        if request.number == 0:
            request.send(307, b"", Location="/v1/elsewhere")
        else:
            request.say("Fine.")

    with serving(answer) as server:
        [found] = ask(Chat(settings(server.url), "the judge x"), "?")
    assert found.choices[0].message.content == "Fine."


def test_an_address_without_a_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(InputError, match=f"No server answers at {url}, the address of the judge x"):
        ask(Chat(settings(url), "the judge x"), "?")


def test_the_public_server_needs_a_key(monkeypatch):
    monkeypatch.delenv("CHAT_KEY")
    with pytest.raises(InputError, match="CHAT_KEY, which is not set"):
        Chat(settings("https://api.openai.com/v1"), "the judge x")
