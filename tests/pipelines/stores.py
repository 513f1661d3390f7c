"""An object store for tests: moto behind a door that can be told to answer with faults."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any

import boto3  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

from tests.pipelines.loopback import Handler, running

_OF_ONE_HOP = {"transfer-encoding", "content-length", "expect", "connection"}
_SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class _Door(Handler):
    server: "Store"

    def do_GET(self) -> None:  # noqa: N802 (a name of the base class)
        body = self.body()
        self.server.asked += 1
        if self.server.status is not None and self.server.faults_left != 0:
            self.server.faults_left -= 1
            if self.server.status == 0:
                self.server.stopped.wait(30)
                self.close_connection = True
                return
            self.answer(self.server.status, _SLOW_DOWN if self.server.status == 503 else b"", {})
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.moto_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        self.answer(reply.status, reply.read(), dict(reply.getheaders()))
        connection.close()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (names of the base class)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        kept = ("etag", "last-modified", "content-type", "content-range", "accept-ranges")
        for name, value in headers.items():
            if name.lower() in kept or name.lower().startswith("x-amz"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Store(ThreadingHTTPServer):
    """The store.

    Attributes:
        status: What it answers while `faults_left` is not 0 (-1: for ever); 0 is silence, None no fault.
    """

    daemon_threads = True

    def __init__(self, moto_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Door)
        self.moto_port = moto_port
        self.status: int | None = None
        self.faults_left = 0
        self.asked = 0
        self.stopped = threading.Event()
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{moto_port}",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def uri(self, path: str = "", bucket: str = "bucket") -> str:
        """Return the address of something in the store."""
        host = f"127.0.0.1:{self.server_address[1]}"
        return f"s3://KEY:S3CR3T/x@{bucket}{path}?endpoint_override={host}&scheme=http&region=us-east-1"

    @contextmanager
    def failing(self, status: int, times: int = -1) -> Iterator[None]:
        """Answer so many requests with a status."""
        self.status, self.faults_left, self.asked = status, times, 0
        try:
            yield
        finally:
            self.status = None
            self.stopped.set()
            self.stopped = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


@contextmanager
def running_store() -> Iterator[Store]:
    """Run the store with an empty bucket named "bucket"."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    _, port = moto.get_host_and_port()
    store = Store(port)
    store.client.create_bucket(Bucket="bucket")
    try:
        with running(store):
            try:
                yield store
            finally:
                store.stopped.set()
    finally:
        moto.stop()
