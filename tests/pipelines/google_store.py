"""Google's store for tests: what pyarrow asks of its JSON API, with pages, and with faults on request.

It runs in a process of its own (``python -m tests.pipelines.google_store``), which prints its port: a file that pyarrow's
client has opened for random access lets no other thread of Python run until its first byte is there.
"""

import json
import re
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import ThreadingHTTPServer
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote
from urllib.request import Request, urlopen

from tests.pipelines.loopback import Handler

_PATH = re.compile(r"(?:/upload)?/storage/v1/b/(?P<bucket>[^/]+)(?P<objects>/o(?:/(?P<key>[^/]+))?)?")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CONTROL = "/control"
_PIECE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<total>\d+|\*)")


class Stored(NamedTuple):
    """An object: its bytes, what its writer noted beside them, a number that no other has, and its time."""

    data: bytes
    notes: Mapping[str, str]
    generation: int
    updated: str


class Bucket:
    """Objects by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, Stored] = {}
        self._sorted: list[str] | None = None
        self._numbers = count(1)

    def put(self, key: str, data: bytes, notes: Mapping[str, str] | None = None) -> Stored:
        """Store an object, in the place of one that had the key."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self._lock:
            stored = self._objects[key] = Stored(data, notes or {}, next(self._numbers), now)
            self._sorted = None
        return stored

    def get(self, key: str) -> Stored | None:
        """Return an object."""
        return self._objects.get(key)

    def remove(self, key: str) -> bool:
        """Remove an object and say whether it was there."""
        with self._lock:
            self._sorted = None
            return self._objects.pop(key, None) is not None

    def page(
        self, prefix: str, delimiter: str, trailing: bool, token: str, size: int
    ) -> tuple[list[str], list[str], str]:
        """Return the next keys, the next prefixes, and the token of the page after ("" for none).

        Args:
            delimiter: Ends prefixes, which stand for the keys below them; "" lists all keys.
            trailing: List a key that is such a prefix as well.
        """
        with self._lock:
            keys = self._sorted = self._sorted or sorted(self._objects)
        here: list[str] = []
        below: list[str] = []
        at = bisect_left(keys, token or prefix)
        while at < len(keys) and keys[at].startswith(prefix):
            if len(here) + len(below) >= size:
                return here, below, keys[at]
            end = keys[at].find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                here.append(keys[at])
                at += 1
                continue
            below.append(keys[at][: end + 1])
            here += below[-1:] if trailing and keys[at] == below[-1] else []
            at = bisect_left(keys, f"{keys[at][:end]}{chr(ord(delimiter) + 1)}", at)
        return here, below, ""


@dataclass
class _Upload:
    bucket: Bucket
    name: str
    key: str
    notes: Mapping[str, str]
    data: bytearray = field(default_factory=bytearray)


class _Desk(Handler):
    wbufsize = -1
    server: "_Server"

    def handle_expect_100(self) -> bool:
        answered = super().handle_expect_100()
        self.wfile.flush()  # else the client waits for a second
        return answered

    def do_GET(self) -> None:  # noqa: N802 (a name of the base class)
        body = self.body()
        if self.path == _CONTROL:
            self.reply(self.server.control(json.loads(body)))
            return
        self.server.asked.append(f"{self.command} {unquote(self.path)}")
        if self.server.faults:
            self.fail(self.server.faults.pop(0))
            return
        path, _, query = self.path.partition("?")
        if self.command == "POST" and path == "/storage/v1/b":
            self.server.buckets[json.loads(body)["name"]] = Bucket()
            self.reply({"kind": "storage#bucket"})
            return
        found = _PATH.fullmatch(path)
        name = unquote(found["bucket"]) if found else ""
        if found is None or name not in self.server.buckets:
            self.refuse(404)
            return
        options = dict(parse_qsl(query, keep_blank_values=True))
        key = unquote(found["key"]) if found["key"] else None
        if self.command in ("POST", "PUT"):
            self.take(name, options, body)
        elif not found["objects"]:
            self.reply({"kind": "storage#bucket", "id": name, "name": name})
        elif key is None:
            self.list_keys(name, options)
        else:
            self.show(name, key, options)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 (names of the base class)

    def fail(self, status: int) -> None:
        if status:
            self.refuse(status)
            return
        time.sleep(self.server.silence_s)
        self.close_connection = True

    def list_keys(self, name: str, options: Mapping[str, str]) -> None:
        bucket, trailing = self.server.buckets[name], options.get("includeTrailingDelimiter") == "true"
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        size = min(self.server.page_size, int(options.get("maxResults") or self.server.page_size))
        keys, prefixes, token = bucket.page(prefix, delimiter, trailing, options.get("pageToken", ""), size)
        items = [_resource(name, key, stored) for key in keys if (stored := bucket.get(key))]
        self.reply(
            {"kind": "storage#objects", "items": items, "prefixes": prefixes}
            | ({"nextPageToken": token} if token else {})
        )

    def show(self, name: str, key: str, options: Mapping[str, str]) -> None:
        """Describe, read or remove an object."""
        stored = self.server.buckets[name].get(key)
        if stored is None or options.get("generation", str(stored.generation)) != str(stored.generation):
            self.refuse(404)
        elif self.command == "DELETE":
            self.server.buckets[name].remove(key)
            self.answer(204)
        elif options.get("alt") != "media":
            self.reply(_resource(name, key, stored))
        else:
            self.send_data(stored)

    def send_data(self, stored: Stored) -> None:
        with self.server.counted():
            time.sleep(self.server.slow_s)
        data, headers = stored.data, {"X-Goog-Generation": str(stored.generation)}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, data, headers)
        elif int(asked[1]) >= len(data):
            self.refuse(416)
        else:
            first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.answer(206, data[first : last + 1], headers)

    def take(self, name: str, options: Mapping[str, str], body: bytes) -> None:
        """Begin an upload, go on with one, or take an object at once."""
        bucket, kind = self.server.buckets[name], options.get("uploadType")
        if self.command == "PUT":
            self.go_on(self.server.uploads[options["upload_id"]], body)
        elif kind == "media":
            self.reply(_resource(name, options["name"], bucket.put(options["name"], body)))
        elif kind == "resumable":
            number = str(len(self.server.uploads))
            notes = json.loads(body or b"{}").get("metadata", {})
            self.server.uploads[number] = _Upload(bucket, name, options["name"], notes)
            self.answer(
                200, b"", {"Location": f"http://{self.headers['Host']}{self.path}&upload_id={number}"}
            )
        elif kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            pieces: Any = BytesParser().parsebytes(head + body).get_payload()
            facts, data = pieces
            notes = json.loads(facts.get_payload()).get("metadata", {})
            stored = bucket.put(options["name"], data.get_payload(decode=True), notes)
            self.reply(_resource(name, options["name"], stored))
        else:
            self.refuse(501)

    def go_on(self, upload: _Upload, body: bytes) -> None:
        given = _PIECE.fullmatch(self.headers["Content-Range"])
        assert given is not None, self.headers["Content-Range"]
        if given["first"] is not None:
            upload.data[int(given["first"]) :] = body
        if given["total"] == str(len(upload.data)):
            stored = upload.bucket.put(upload.key, bytes(upload.data), upload.notes)
            self.reply(_resource(upload.name, upload.key, stored))
        else:
            there = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
            self.answer(308, b"", there)

    def reply(self, document: Mapping[str, Any]) -> None:
        self.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int) -> None:
        error = {"code": status, "message": self.responses.get(status, ("",))[0], "errors": []}
        self.answer(status, json.dumps({"error": error}).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _resource(bucket: str, key: str, stored: Stored) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{key}/{stored.generation}",
        "bucket": bucket,
        "name": key,
        "generation": str(stored.generation),
        "metageneration": "1",
        "size": str(len(stored.data)),
        "timeCreated": stored.updated,
        "updated": stored.updated,
        "metadata": stored.notes,
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.buckets: dict[str, Bucket] = {}
        self.uploads: dict[str, _Upload] = {}
        self.page_size = 1000
        self.faults: list[int] = []
        self.silence_s = self.slow_s = 0.0
        self.asked: list[str] = []
        self.reading = self.most_reading = 0
        self.lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count who is in the block, and the most that were."""
        with self.lock:
            self.reading += 1
            self.most_reading = max(self.most_reading, self.reading)
        yield
        with self.lock:
            self.reading -= 1

    def control(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change attributes, and return what was asked since the last time and which faults are left."""
        asked, self.asked = self.asked, []
        told = {"asked": asked, "faults": list(self.faults), "most_reading": self.most_reading}
        for name, value in changes.items():
            if name == "fill":
                for number in range(value):
                    self.buckets["corpus"].put(f"photos/{number // 1000:06d}/{number:021d}.jpg", b"")
            else:
                setattr(self, name, value)
        return told

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


class Place:
    """Buckets of a store that listens on a port of this machine, whoever's it is.

    Attributes:
        host: With the port.
    """

    def __init__(self, port: int) -> None:
        self.host = f"127.0.0.1:{port}"

    def uri(self, path: str = "", bucket: str = "corpus") -> str:
        """Return the address that makes pyarrow ask this store."""
        return f"gs://anonymous@{bucket}/{path}?endpoint_override={self.host}&scheme=http"

    def make_bucket(self, name: str = "corpus") -> None:
        """Make an empty bucket."""
        self._post("/storage/v1/b?project=tests", json.dumps({"name": name}).encode(), "application/json")

    def put(self, key: str, data: bytes, bucket: str = "corpus") -> None:
        """Store an object as other tools do, also under a key that ends in a slash."""
        place = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
        self._post(place, data, "application/octet-stream")

    def _post(self, path: str, data: bytes, kind: str) -> Any:
        with urlopen(Request(f"http://{self.host}{path}", data, {"Content-Type": kind})) as answer:
            return json.loads(answer.read())


class GoogleStore(Place):
    """The store of this module."""

    def change(
        self, page_size: int = 1000, faults: Sequence[int] = (), silence_s: float = 0.0, slow_s: float = 0.0
    ) -> None:
        """Say how it answers from now on.

        Args:
            page_size: The most keys and prefixes of one answer to a listing.
            faults: Statuses of the next answers; 0 is silence, and then a closed connection.
            silence_s: Seconds of that.
            slow_s: Seconds before the bytes of an object.
        """
        answers = {"page_size": page_size, "faults": list(faults), "silence_s": silence_s, "slow_s": slow_s}
        self._control(**answers, most_reading=0)

    def fill(self, count: int) -> None:
        """Store so many empty objects below ``photos/``, a thousand in each folder, with keys of 43 letters."""
        self._control(fill=count)

    def asked(self) -> list[str]:
        """Return methods and addresses of the requests since it or `change` was called before."""
        asked: list[str] = self._control()["asked"]
        return asked

    def faults_left(self) -> list[int]:
        """Return the faults that have not been met."""
        faults: list[int] = self._control()["faults"]
        return faults

    def most_reading(self) -> int:
        """Return how many objects were being read at once, at the most since `change`."""
        most: int = self._control()["most_reading"]
        return most

    def _control(self, **changes: Any) -> Any:
        return self._post(_CONTROL, json.dumps(changes).encode(), "application/json")


@contextmanager
def running_google_store() -> Iterator[GoogleStore]:
    """Run the store, without a bucket."""
    command = [sys.executable, "-m", "tests.pipelines.google_store"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield GoogleStore(int(process.stdout.readline()))
        finally:
            process.kill()


def main() -> None:
    """Serve until somebody ends the process."""
    server = _Server()
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
