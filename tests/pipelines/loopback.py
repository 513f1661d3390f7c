"""A web server on the loopback that does what servers of the world do."""

import gzip
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 40


class Handler(BaseHTTPRequestHandler):
    """What the servers of these tests share: connections that stay open, answers that leave at once, and no log."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits 40 ms for the client to say that it has the headers

    def log_message(self, *arguments: object) -> None:
        pass

    def body(self) -> bytes:
        """Read what the client sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)


class _Handler(Handler):
    server: "LoopbackServer"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked[path] += 1
        self.server.targets.append(self.path)
        getattr(self, path.strip("/").split(".")[0], self.missing)()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def missing(self) -> None:
        self.reply(int(self.path[1:4]) if self.path[1:4].isdigit() else 404)

    def good(self) -> None:
        self.reply(200, BODY)

    def moved(self) -> None:
        self.reply(302, Location="/good")

    def loop(self) -> None:
        self.reply(302, Location="/loop")

    def silent(self) -> None:
        self.server.stopped.wait(20)

    def trickle(self) -> None:
        self.reply(200, Content_Length="1000")
        while not self.server.stopped.wait(0.1):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def short(self) -> None:
        self.reply(200, BODY[:100], Content_Length=str(len(BODY)))
        self.close_connection = True

    def closed(self) -> None:
        self.close_connection = True

    def chunked(self) -> None:
        self.reply_in_chunks([BODY[:3000], BODY[3000:]])

    def cut(self) -> None:
        self.reply_in_chunks([BODY[:3000]], end=False)
        self.close_connection = True

    def reply_in_chunks(self, chunks: list[bytes], end: bool = True) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def endless(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.stopped.is_set():
            try:
                self.wfile.write(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
                self.server.sent += 65536
            except OSError:
                return

    def unframed(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(BODY)
        self.close_connection = True

    def zipped(self) -> None:
        self.reply(200, gzip.compress(BODY), Content_Encoding="gzip")

    def bomb(self) -> None:
        self.reply(200, gzip.compress(b"\0" * 50_000_000), Content_Encoding="gzip")

    def unzipped(self) -> None:
        self.reply(200, BODY, Content_Encoding="gzip")

    def page(self) -> None:
        self.reply(200, b"<!doctype html><title>Log in</title>", Content_Type="text/html")

    def busy(self) -> None:
        first = self.server.asked["/busy"] == 1
        self.reply(429, Retry_After="0") if first else self.good()

    def later(self) -> None:
        self.reply(503, Retry_After="3600")

    def broken(self) -> None:
        self.good() if self.server.asked["/broken"] > 2 else self.reply(500)

    def garbage(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\nBad\0Header: x\r\n\r\n")
        self.close_connection = True

    def odd(self) -> None:
        self.good()


class LoopbackServer(ThreadingHTTPServer):
    """Counts what it is asked, and says where it is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.targets: list[str] = []
        self.stopped = threading.Event()
        self.sent = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Let a server answer in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving() -> Iterator[LoopbackServer]:
    """Run the server in a thread."""
    server = LoopbackServer()
    with running(server):
        try:
            yield server
        finally:
            server.stopped.set()


_HELD: list[socket.socket] = []


def free_port() -> int:
    """Return a port on which nobody listens, nor will while this process lives."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))  # without listening, so that who connects is refused
    _HELD.append(held)
    return int(held.getsockname()[1])


def seconds_of(call: object) -> float:
    """Return how long a call takes."""
    start = time.monotonic()
    call()  # type: ignore[operator]
    return time.monotonic() - start
