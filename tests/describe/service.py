"""A service that speaks OpenAI's chat protocol on this machine, and misbehaves as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | bytes | float
"""Content of an answer; a status to refuse with; a body that is no JSON; seconds to sleep before breaking off."""


@dataclass
class Service:
    """What was asked, and what is answered.

    Attributes:
        answer: Gives the reply to the class that is asked about, for the nth request (from 1) about it.
        asked: The classes of all requests that were answered or refused.
        bodies: Their bodies.
        keys: Their authorization headers.
    """

    answer: Callable[[str, int], Reply]
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(answer: Callable[[str, int], Reply]) -> Iterator[Service]:
    """Serve until the block ends."""
    service = Service(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["messages"][1]["content"].splitlines()[0].removeprefix("Class: ").partition(" (")[0]
            service.asked.append(name)
            service.bodies.append(body)
            service.keys.append(self.headers["Authorization"])
            reply = (
                service.answer(name, service.asked.count(name))
                if self.path == "/v1/chat/completions"
                else 404
            )
            if isinstance(reply, float):
                threading.Event().wait(reply)
                self.connection.close()
                return
            status = reply if isinstance(reply, int) else 200
            self._send(status, reply if isinstance(reply, bytes) else _body(reply))

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def _body(reply: str | int | float) -> bytes:
    if not isinstance(reply, str):
        return json.dumps(
            {"error": {"message": f"refused; key sk-secret-of-the-test, status {reply}"}}
        ).encode()
    message = {"role": "assistant", "content": reply}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    ).encode()
