"""A run over addresses full of secrets, and everything it leaves behind read for them."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import cli
from ovss_core.errors import StorageError
from pipelines.storage import open_storage
from pipelines.transport import patience
from pipelines.transport.addresses import ScrubbedFormatter
from tests.conftest import encode_image
from tests.pipelines import loopback
from tests.pipelines.loopback import LoopbackServer, free_port, serving

SECRETS = ("S3CR3T", "T0KEN", "SIGN4TURE")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    monkeypatch.setattr(patience, "_FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(loopback, "BODY", encode_image(1))
    with serving() as running:
        yield running


def everything_written(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        if path.suffix in (".parquet", ".pq"):
            names = [name for name in pq.read_schema(path).names if name != "mask"]
            yield path.name, str(pq.read_table(path, columns=names).to_pylist())
        elif path.is_file():
            yield path.name, path.read_bytes().decode("latin-1")


def test_a_run_over_secret_addresses_writes_none_of_them_down(
    ray_session: None, server: LoopbackServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    host = server.host
    addresses = [
        f"http://jo:S3CR3T@{host}/good?X-Amz-Signature=SIGN4TURE&any=T0KEN",
        f"http://jo:S3CR3T@{host}/403.jpg?sig=SIGN4TURE#T0KEN",
        f"http://jo:S3CR3T@{host}/short?sig=SIGN4TURE",
        f"http://jo:S3CR3T@{host}/page?sig=SIGN4TURE",
        f"http://jo:S3CR3T@127.0.0.1:{free_port()}/a.jpg?sig=SIGN4TURE",
        "http://jo:S3CR3T@no-such-host.invalid/a.jpg?sig=SIGN4TURE",
        "http://jo:S3CR3T@[bad/a.jpg?sig=SIGN4TURE",
        "http://jo:S3CR3T/x@h:99999999/a.jpg?sig=SIGN4TURE",
        f"s3://KEY:S3CR3T/x@bucket/a?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=eu&session_token=T0KEN",
        "s3://KEY:S3CR3T@bucket/a?unknown=T0KEN",
        "zip://a.jpg::http://jo:S3CR3T@no-such-host.invalid/b.zip?sig=SIGN4TURE",
        "nosuch://jo:S3CR3T@h/a?sig=SIGN4TURE",
        "ftp://jo:S3CR3T@127.0.0.1:1/a.jpg?sig=SIGN4TURE",
    ]
    (tmp_path / "list.txt").write_text("\n".join(addresses))
    (tmp_path / "words.txt").write_text("cat\ndog\n")
    output = tmp_path / "out"
    flags = f"--images {tmp_path}/list.txt --vocabulary {tmp_path}/words.txt --output {output} --model demo --previews 5"
    flags += " --pretrained random --actors 1 --finish-actors 0 --fetch-timeout-s 1"
    flags += " --windows.size 32 --windows.stride 32 --windows.short_side 32"
    assert cli.main(["label", *flags.split()]) == 0
    printed = capfd.readouterr()
    assert f"{len(addresses)} images: 1 labelled, {len(addresses) - 1} failed" in printed.out
    written = list(everything_written(output))
    assert {"run.json", "summary.json", "index.html", "labels-00000.parquet"} <= {name for name, _ in written}
    for name, text in [*written, ("stdout", printed.out), ("stderr", printed.err)]:
        assert [secret for secret in SECRETS if secret in text] == [], (name, text[:2000])


@pytest.mark.parametrize(
    "flags",
    [
        "--images s3://KEY:S3CR3T@bucket/a?unknown=T0KEN",
        "--images s3:/KEY:S3CR3T@bucket/a?sig=T0KEN",
        "--images nosuch://jo:S3CR3T@h/a?sig=SIGN4TURE",
        "--images http://jo:S3CR3T@h/list.txt?sig=SIGN4TURE",
        "--images http://jo:S3CR3T@h/?sig=SIGN4TURE",
        "--parquet nosuch://jo:S3CR3T@h/a?sig=SIGN4TURE",
        "--webdataset memory://jo:S3CR3T@h/a?sig=SIGN4TURE",
    ],
)
def test_an_error_before_the_start_tells_no_secret(
    ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], flags: str
) -> None:
    command = f"label {flags} --vocabulary voc21 --model demo --output {tmp_path}/out"
    assert cli.main(command.split()) == 2
    printed = capfd.readouterr()
    assert printed.err.splitlines()[-1].startswith("ovss: error: ")
    assert printed.err.count("ovss: error: ") == 1
    assert [secret for secret in SECRETS if secret in printed.out + printed.err] == []


def test_log_lines_and_their_tracebacks_are_scrubbed() -> None:
    with pytest.raises(StorageError) as caught:
        open_storage("nosuch://jo:S3CR3T@h/x?sig=SIGN4TURE")
    broken = (OSError, OSError("cannot reach https://jo:S3CR3T@h/x?sig=SIGN4TURE"), caught.tb)
    record = logging.LogRecord("x", logging.ERROR, "", 1, "at %s", ("s3://K:T0KEN@b/x",), broken)
    told = ScrubbedFormatter().format(record)
    assert told.startswith("at s3://b/x")
    assert "https://h/x" in told
    assert [secret for secret in SECRETS if secret in told] == []
