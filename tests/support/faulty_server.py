"""An OpenAI-compatible server on loopback that answers, or fails, as a function decides."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret-5f2e"


Answer = dict[str, Any]


def completion(text: str | None, *, finish: str = "stop", logprobs: Any = None) -> Answer:
    """The body of a chat completion."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "judge-2026-01-01",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 4, "total_tokens": 104},
    }


@dataclass
class Request:
    """What a client sent, and ways to answer it."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    time: float
    handler: BaseHTTPRequestHandler

    @property
    def prompt(self) -> str:
        return str(self.body["messages"][0]["content"])

    def send(self, status: int, body: Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(content)

    def say(self, text: str | None, **more: Any) -> None:
        self.send(200, completion(text, **more))

    def fail(self, status: int, message: str = "no", code: str | None = None, **headers: str) -> None:
        self.send(status, {"error": {"message": message, "code": code}}, **headers)

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.handler.connection.shutdown(socket.SHUT_RDWR)

    def truncate(self) -> None:
        """Announce a whole body and send half of it."""
        content = json.dumps(completion("Verdict: A")).encode()
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", "application/json")
        self.handler.send_header("Content-Length", str(len(content)))
        self.handler.end_headers()
        self.handler.wfile.write(content[: len(content) // 2])
        self.handler.wfile.flush()
        self.drop()

    def stall(self, seconds: float, drip: bool = False) -> None:
        """Say nothing for a while, or a byte now and then."""
        if drip:
            self.handler.send_response(200)
            self.handler.send_header("Content-Type", "application/json")
            self.handler.end_headers()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            if drip:
                try:
                    self.handler.wfile.write(b" ")
                    self.handler.wfile.flush()
                except OSError:
                    return
        self.drop()


@dataclass
class Server:
    url: str
    answer: Callable[[Request], None]
    requests: list[Request] = field(default_factory=list)
    models: Callable[[Request], None] = lambda request: request.send(200, {"object": "list", "data": []})
    in_flight: int = 0
    most_in_flight: int = 0


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that closes its connection early is not a fault of a test."""


@contextmanager
def serving(answer: Callable[[Request], None]) -> Iterator[Server]:
    """A server for the duration of the block; `answer` is called in a thread for each question."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.models(
                Request(0, {}, {name.lower(): value for name, value in self.headers.items()}, time.monotonic(), self)
            )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                request = Request(
                    len(server.requests),
                    body,
                    {name.lower(): value for name, value in self.headers.items()},
                    time.monotonic(),
                    self,
                )
                server.requests.append(request)
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                server.answer(request)
            except OSError:
                self.close_connection = True
            finally:
                with lock:
                    server.in_flight -= 1

        def log_message(self, *_: Any) -> None:
            pass

    inner = _Quiet(("127.0.0.1", 0), Handler)
    inner.daemon_threads = True
    inner.block_on_close = False
    server = Server(f"http://127.0.0.1:{inner.server_port}/v1", answer)
    thread = threading.Thread(target=inner.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        inner.shutdown()
        inner.server_close()
