"""Fetching one image: every fault of a server is that image's own, told by status and cause, and never for long."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.faults import Failure
from pipelines.sources.fetch import ImageFetcher
from pipelines.transport import patience
from tests.pipelines.loopback import BODY, LoopbackServer, free_port, serving


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT_S", 0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        yield running


def fetch(*addresses: str, source: str = "/", **options: Any) -> list[bytes | Failure]:
    rows = [
        {"image_id": address, "uri": address, "container": "uri", "path": address, "row_group": None}
        for address in addresses
    ]
    with ThreadPoolExecutor(8) as threads:
        return ImageFetcher(source, **{"timeout_s": 5.0, **options}).fetch(rows, threads)


def test_a_reason_from_the_listing_is_made_one_readable_line() -> None:
    row = {
        "container": "broken",
        "reason": "no file a\0b.parquet\nsecond line",
        "path": None,
        "row_group": None,
    }
    with ThreadPoolExecutor(1) as threads:
        [outcome] = ImageFetcher("/").fetch([row], threads)
    assert outcome == Failure("list", "StorageError", "no file a\N{REPLACEMENT CHARACTER}b.parquet")


def failure(address: str, **options: Any) -> Failure:
    [outcome] = fetch(address, **options)
    assert isinstance(outcome, Failure)
    return outcome


@pytest.mark.parametrize("name", ["good", "moved", "chunked", "unframed", "zipped", "busy", "broken"])
def test_what_arrives_is_what_was_sent(server: LoopbackServer, name: str) -> None:
    assert fetch(f"http://{server.host}/{name}") == [BODY]


@pytest.mark.parametrize(
    ("name", "kind", "reason", "tries"),
    [
        ("403.jpg", "PermissionError", "HTTP 403 Forbidden from {host}", 1),
        ("404.jpg", "FileNotFoundError", "HTTP 404 Not Found from {host}", 1),
        ("410.jpg", "FileNotFoundError", "HTTP 410 Gone from {host}", 1),
        ("418.jpg", "HTTPError", "HTTP 418 I'm a Teapot from {host}", 1),
        ("500.jpg", "HTTPError", "HTTP 500 Internal Server Error from {host} (6 tries in ", 6),
        ("504.jpg", "TimeoutError", "HTTP 504 Gateway Timeout from {host} (6 tries in ", 6),
        ("later", "HTTPError", "HTTP 503 Service Unavailable from {host}, which asks to wait 3,600 s", 1),
        ("short", "IncompleteRead", "{host} ended the transfer after 100 of 10,240 bytes (6 tries in ", 6),
        ("cut", "IncompleteRead", "{host} ended the transfer after 3,000 bytes (6 tries in ", 6),
        ("closed", "ConnectionError", "{host} closed the connection without an answer", 6),
        ("loop", "TooManyRedirects", "{host} redirects without end", 10),
        ("unzipped", "ContentEncodingError", "the body from {host} is not encoded as its head says", 1),
    ],
)
def test_a_failure_says_status_and_cause_and_only_what_may_pass_is_tried_again(
    server: LoopbackServer, name: str, kind: str, reason: str, tries: int
) -> None:
    outcome = failure(f"http://{server.host}/{name}")
    assert (outcome.stage, outcome.error_type) == ("read", kind)
    assert outcome.reason.startswith(reason.format(host=server.host))
    assert server.asked[f"/{name}"] >= tries if name == "closed" else server.asked[f"/{name}"] == tries


def test_an_answer_that_is_no_http_is_a_failure(server: LoopbackServer) -> None:
    reason = f"the answer from {server.host} is no HTTP that can be read"
    assert failure(f"http://{server.host}/garbage").reason == reason


def test_a_port_where_nobody_listens_is_named() -> None:
    port = free_port()
    outcome = failure(f"http://127.0.0.1:{port}/a.jpg")
    assert outcome.error_type == "ConnectionRefusedError"
    assert outcome.reason.startswith(f"connection refused by 127.0.0.1:{port} (6 tries in ")


def test_a_host_that_does_not_exist_is_named() -> None:
    outcome = failure("http://no-such-host.invalid/a.jpg", timeout_s=2.0)
    assert outcome.reason.startswith("the name of no-such-host.invalid cannot be resolved")


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    start = time.monotonic()
    outcome = failure("hf://datasets/nobody/nothing/a.jpg", timeout_s=60.0)
    assert outcome.reason == (
        "the name of huggingface.co cannot be resolved (Name or service not known); is this machine online?"
    )
    assert time.monotonic() - start < 40


@pytest.mark.parametrize(("name", "reason"), [("silent", "no answer from"), ("trickle", "sent only")])
def test_a_server_that_is_silent_or_trickles_costs_the_limit_and_no_more(
    server: LoopbackServer, name: str, reason: str
) -> None:
    start = time.monotonic()
    outcome = failure(f"http://{server.host}/{name}", timeout_s=0.8)
    assert 0.7 < time.monotonic() - start < 60.0
    assert outcome.error_type == "TimeoutError"
    assert reason in outcome.reason


def test_a_server_that_trickles_its_head_costs_the_limit_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_trickle_head, args=(listener,), daemon=True).start()
        start = time.monotonic()
        outcome = failure(f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg", timeout_s=0.8)
    assert time.monotonic() - start < 60.0
    assert outcome.error_type == "TimeoutError"


def _trickle_head(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(40):
            time.sleep(0.1)
            try:
                connection.sendall(b"x")
            except OSError:
                return


@pytest.mark.parametrize("name", ["endless", "bomb"])
def test_a_body_without_end_is_read_to_the_limit_of_bytes_and_no_further(
    server: LoopbackServer, name: str
) -> None:
    assert "max_bytes (100,000)" in failure(f"http://{server.host}/{name}", max_bytes=100_000).reason
    time.sleep(0.1)
    assert server.sent < 20_000_000


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(server: LoopbackServer) -> None:
    outcome = failure(f"http://{server.host}/good", max_bytes=1000)
    assert outcome.reason == "the file has 10,240 bytes, more than max_bytes (1,000)"
    assert fetch(f"http://{server.host}/good", f"http://{server.host}/chunked", max_bytes=10_240) == [
        BODY,
        BODY,
    ]


def test_many_fetches_at_once_keep_their_order_and_their_own_faults(server: LoopbackServer) -> None:
    names = ["good", "404.jpg", "chunked", "short"] * 10
    outcomes = fetch(*(f"http://{server.host}/{name}" for name in names))
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [False, True, False, True] * 10
    assert all(outcome == BODY for outcome in outcomes[::2])


def test_an_address_is_sent_as_it_is_written_apart_from_what_no_address_may_hold(
    server: LoopbackServer,
) -> None:
    signed = "/odd?a=%2Fx%2b%20&X-Amz-Signature=a%2Fb+c=&e=~'()"
    assert fetch(f"http://{server.host}{signed}", f"http://{server.host}/odd?ü a%&b=ä") == [BODY, BODY]
    assert sorted(server.targets[-2:]) == sorted([signed, "/odd?%C3%BC%20a%25&b=%C3%A4"])


def test_what_follows_a_hash_is_told_where_the_file_is_missing(server: LoopbackServer) -> None:
    assert "write %23" in failure(f"http://{server.host}/404.jpg#2.jpg").reason


@pytest.mark.parametrize(
    "address",
    [
        "http://[bad/a.jpg",
        "http:///a.jpg",
        "http://h:99999999/a.jpg",
        "http://\ud800/a.jpg",
        "nosuch://a/b",
        "://",
    ],
)
def test_an_address_that_no_parser_takes_is_a_failure_of_its_own(address: str) -> None:
    assert failure(address).reason


def test_an_image_inside_a_data_address_is_decoded_and_never_repeated() -> None:
    assert fetch("data:image/png;base64,aGVsbG8=", "Data:;base64,aGVs%0AbG8%3D") == [b"hello", b"hello"]
    broken = "data:image/png;base64," + "iVBORw0KGgo!" * 40
    assert failure(broken).reason == "the data: address is no valid base64 (Only base64 data is allowed)"


def test_text_that_is_taken_for_a_path_is_cut_short() -> None:
    picture = "/9j/" + "4AAQSkZJRgABAQEAYABgAAD2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwg" * 40
    for address in (picture, picture.replace("/", "_")):
        outcome = failure(address)
        assert outcome.reason.startswith(("no such file: ", "file name too long: "))
        assert len(outcome.reason) < 150


def test_fifos_sockets_devices_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.jpg"))
        start = time.monotonic()
        reasons = [
            outcome.reason if isinstance(outcome, Failure) else ""
            for outcome in fetch(*(str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")), "/dev/zero")
        ]
    assert reasons == [
        f"this is {kind}, not a file" for kind in ("a FIFO (named pipe)", "a folder", "a socket", "a device")
    ]
    assert time.monotonic() - start < 60


def test_local_files_with_odd_names_and_without_a_size_are_read(tmp_path: Path) -> None:
    for name in ("a#1.jpg", "b?x=1.jpg", "100%.jpg", "c d ü.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    addresses = [f"file://{tmp_path}/a%231.jpg", f"file://{tmp_path}/a#1.jpg", f"{tmp_path}/b?x=1.jpg"]
    addresses += [
        f"file://{tmp_path}/b?x=1.jpg",
        f"file://{tmp_path}/100%.jpg",
        f"file://{tmp_path}/c d ü.jpg",
    ]
    expected = ["a#1.jpg", "a#1.jpg", "b?x=1.jpg", "b?x=1.jpg", "100%.jpg", "c d ü.jpg"]
    assert fetch(*addresses) == [name.encode() for name in expected]
    [status] = fetch("/proc/self/status")
    assert isinstance(status, bytes)
    assert status.startswith(b"Name:")


def test_a_local_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert failure(f"{tmp_path}/no.jpg") == Failure(
        "read", "FileNotFoundError", f"no such file: {tmp_path}/no.jpg"
    )


def test_a_mistake_of_our_own_is_no_failure_of_an_image(
    monkeypatch: pytest.MonkeyPatch, server: LoopbackServer
) -> None:
    monkeypatch.delattr("pipelines.transport.http._Transfer.take")
    with pytest.raises(AttributeError, match="take"):
        fetch(f"http://{server.host}/good")


@pytest.mark.parametrize(
    ("address", "package"),
    [
        ("gcs2://b/x.jpg", "Protocol not known"),
        ("az://b/x.jpg", "adlfs"),
        ("dropbox://b/x.jpg", "dropbox"),
        ("sftp://h/x", "paramiko"),
    ],
)
def test_a_protocol_whose_package_is_missing_names_it_in_one_line(address: str, package: str) -> None:
    reason = failure(address).reason
    assert package in reason
    assert "\n" not in reason
