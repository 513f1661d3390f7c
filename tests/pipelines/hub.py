"""A hub of models for tests: what `huggingface_hub` asks for to read one file, with faults on request."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from http.server import ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

from tests.pipelines.loopback import Handler, running

_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
_COMMIT = "0" * 40


class _Desk(Handler):
    server: "Hub"

    def do_GET(self) -> None:  # noqa: N802 (a name of the base class)
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if self.server.faults:
            status = self.server.faults.pop(0)
            if status == 0:
                time.sleep(self.server.silence_s)
                self.close_connection = True
                return
            self.answer(status, b"", {})
        elif found := _INFO.fullmatch(path):
            known = found[1] == self.server.repository and found[2] in (None, "main")
            info: dict[str, object] = {
                "id": found[1],
                "sha": _COMMIT,
                "private": False,
                "tags": [],
                "siblings": [],
            }
            missing = {"X-Error-Code": "RepositoryNotFound"}
            self.answer(200 if known else 404, json.dumps(info).encode(), {} if known else missing)
        elif found := _TREE.fullmatch(path):
            self.answer(200, json.dumps(self.server.entries(found[3] or "")).encode(), {})
        elif (found := _FILE.fullmatch(path)) and found[3] in self.server.files:
            self.send_file(self.server.files[found[3]])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815 (names of the base class)

    def send_file(self, data: bytes) -> None:
        headers = {
            "ETag": f'"{sha256(data).hexdigest()}"',
            "X-Repo-Commit": _COMMIT,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(200, data, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self.answer(206, data[first : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cut if "ETag" in headers else None
            self.close_connection = cut is not None
            self.wfile.write(body[:cut])
            self.server.sent += len(body)


class Hub(ThreadingHTTPServer):
    """The hub, with one repository.

    Attributes:
        files: Contents by path.
        faults: Statuses of the next answers; 0 is silence for `silence_s`, and then a closed connection.
        asked: Paths that were asked for.
        cut: Bytes after which every answer with a file is cut off; None for none.
        sent: Bytes of bodies.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.repository = f"nobody/clip-{self.server_address[1]}"  # libraries remember repositories by name
        self.files: dict[str, bytes] = {}
        self.faults: list[int] = []
        self.silence_s = 0.0
        self.asked: list[str] = []
        self.cut: int | None = None
        self.sent = 0

    def entries(self, folder: str) -> list[dict[str, object]]:
        """Return what lies in a folder, as the hub writes it."""
        inside = f"{folder}/" if folder else ""
        files = {name: data for name, data in self.files.items() if name.startswith(inside)}
        below = {name[len(inside) :].partition("/")[0] for name in files if "/" in name[len(inside) :]}
        folders = [{"type": "directory", "oid": "0", "size": 0, "path": inside + name} for name in below]
        return folders + [
            {"type": "file", "oid": sha1(data).hexdigest(), "size": len(data), "path": name}
            for name, data in files.items()
            if "/" not in name[len(inside) :]
        ]

    def uri(self, path: str) -> str:
        """Return the address of a file."""
        return f"hf://{self.repository}/{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the test."""


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a hub, and let `huggingface_hub` of this process ask it."""
    hub = Hub()
    endpoint = f"http://127.0.0.1:{hub.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    with running(hub):
        yield hub
