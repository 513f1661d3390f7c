"""No secret of an address gets into anything that people read, however the address is written."""

import json
import random
from urllib.parse import quote

import pytest

from pipelines.faults import Failure
from pipelines.sources import ImageRecord
from pipelines.transport.addresses import (
    encode_http,
    file_uri,
    has_secrets,
    host_of,
    join_uri,
    local_path,
    redact,
    scrub,
)

SECRETS = ("S3CR3T", "T0KEN", "SIGN4TURE")
NASTY = [
    ("https://user:S3CR3T@host/a/b.jpg", "https://host/a/b.jpg"),
    ("https://T0KEN@host/a.jpg", "https://host/a.jpg"),
    ("https://user:S3CR3T/x@host/a.jpg", "https://host/a.jpg"),
    ("https://user:S3CR3T#x@host/a.jpg", "https://host/a.jpg"),
    ("https://user:S3CR3T?x@host/a.jpg", "https://host/a.jpg"),
    ("https://user:p@S3CR3T@host/a.jpg", "https://host/a.jpg"),
    ("https://user:S3CR3T%40x@host:8443/a.jpg", "https://host:8443/a.jpg"),
    ("https://user:S3CR3T@[::1]:80/a.jpg", "https://[::1]:80/a.jpg"),
    ("HTTPS://USER:S3CR3T@HOST/a.jpg", "HTTPS://HOST/a.jpg"),
    ("https://host/a.jpg?anything=S3CR3T", "https://host/a.jpg"),
    ("https://host/a.jpg?S3CR3T", "https://host/a.jpg"),
    ("https://host/a@2x.jpg?a=1&b=S3CR3T&X-Amz-Signature=SIGN4TURE", "https://host/a@2x.jpg"),
    ("https://host/a.jpg#T0KEN", "https://host/a.jpg"),
    ("https://host:80/@user/a.jpg?b=S3CR3T", "https://host:80/@user/a.jpg"),
    ("https://host/a.jpg;v=1?a=b?c=S3CR3T", "https://host/a.jpg;v=1"),
    ("s3://KEY:S3CR3T@bucket/a.jpg", "s3://bucket/a.jpg"),
    ("s3://KEY:S3CR3T/+x/y@bucket/a.jpg?region=eu", "s3://bucket/a.jpg"),
    ("s3://KEY:123/S3CR3T@bucket/a.jpg", "s3://bucket/a.jpg"),
    ("s3://bucket/a?access_key=KEY&secret_key=S3CR3T", "s3://bucket/a"),
    (
        "abfss://container@account.dfs.core.windows.net/a.jpg?sig=SIGN4TURE",
        "abfss://container@account.dfs.core.windows.net/a.jpg",
    ),
    ("zip://a.jpg::https://user:S3CR3T@host/b.zip?t=T0KEN", "zip://a.jpg::https://host/b.zip"),
    ("simplecache::s3://KEY:S3CR3T@bucket/a.jpg", "simplecache::s3://bucket/a.jpg"),
    ("https://proxy/get/https://user:S3CR3T@host/a.jpg", "https://proxy/get/https://host/a.jpg"),
    (
        "https://proxy/get/https%3A%2F%2Fuser%3AS3CR3T%40host%2Fa.jpg%3Fsig%3DSIGN4TURE",
        "https://proxy/get/https://host/a.jpg",
    ),
    (
        "https://proxy/get/https%253A%252F%252Fhost%252Fa.jpg%253Fsig%253DSIGN4TURE",
        "https://proxy/get/https://host/a.jpg",
    ),
    ("s3:/KEY:S3CR3T@bucket/a", "s3:***@bucket/a"),
    ("s3:KEY:S3CR3T@bucket/a?x=T0KEN", "s3:***@bucket/a"),
    ("https://user:S3CR3T", "https://"),
]


@pytest.mark.parametrize(("address", "expected"), NASTY)
def test_an_address_keeps_its_path_and_loses_its_secrets(address: str, expected: str) -> None:
    assert redact(address) == expected
    assert redact(redact(address)) == expected


SENTENCES = (
    "cannot open {}",
    "GET '{}': 403, message='Forbidden', url='{}'",
    'Could not connect to the endpoint URL: "{}"',
    "<{}> ({}), [{}]; {}.",
    "{'url': '{}', 'status': 403}",
    "a\nfirst line {} and\n{}",
)


@pytest.mark.parametrize("address", [address for address, _ in NASTY if "://" in address])
def test_a_library_that_repeats_an_address_tells_no_secret(address: str) -> None:
    forms = (address, quote(address), quote(address, safe=""), quote(quote(address, safe=""), safe=""))
    texts = [sentence.replace("{}", form) for sentence in SENTENCES for form in forms]
    texts.append(json.dumps({"url": address}).replace("/", "\\/"))
    shown = [
        told
        for text in texts
        for told in (scrub(text), scrub(text, address), Failure.of("read", OSError(text)).reason)
    ]
    assert [told for told in shown if any(secret in told for secret in SECRETS)] == []


@pytest.mark.parametrize(
    "text",
    [
        "HTTPConnectionPool(host='h', port=80): Max retries exceeded with url: /a.jpg?sig=S3CR3T&b=T0KEN (Caused by x)",
        "endpoint?access_key=S3CR3T",
        "secret_access_key=S3CR3T, session_token: 'T0KEN'",
        '{"password": "S3CR3T"}',
        "Authorization: Bearer S3CR3T.T0KEN",
        "{'Authorization': 'Basic S3CR3T'}",
        "X-Amz-Signature=SIGN4TURE&X-Amz-Credential=T0KEN",
        "AccountKey=S3CR3T; api_key=T0KEN",
    ],
)
def test_secrets_without_an_address_are_known_by_their_names(text: str) -> None:
    assert not any(secret in scrub(text) for secret in SECRETS), scrub(text)


def test_secrets_that_a_library_tells_apart_from_their_address_are_found_when_the_address_is_known() -> None:
    address = "https://jo:S3CR3T%2Fx@host/a.jpg?mine=T0KEN%20y#SIGN4TURE"
    text = "login jo / S3CR3T/x failed, S3CR3T%2Fx, value 'T0KEN y' (T0KEN%20y), SIGN4TURE"
    assert not any(secret in scrub(text, address) for secret in SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "HTTP 403 Forbidden from host:80",
        "no such file: /data/key=5/split=train/a.jpg",
        "the name of huggingface.co cannot be resolved (Name or service not known); is this machine online?",
        "5,120 x 4,000 is 20,480,000 pixels, more than max_pixels (1,000); raise it?",
        "/data/" + "a-folder-with-a-name/" * 12 + "image.jpg",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert scrub(text) == text


def test_image_data_is_cut_out_of_messages() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    encoded = "".join(random.Random(0).choices(letters, k=4000))
    for text in (
        encoded,
        f"/data/{encoded}",
        f"data:image/png;base64,{encoded}",
        f"iVBORw0KGgo{encoded[:60]}",
        f"{b'abc' * 40!r}",
    ):
        shown = scrub(f"no such file: {text} (errno 2)")
        assert len(shown) < 120
        assert shown.endswith(" (errno 2)") or "data:" in shown
    assert redact(f"data:image/png;base64,{encoded}") == "data:image/png;base64"


def test_files_of_a_root_are_encoded_in_uris_only() -> None:
    assert join_uri("s3://bucket/folder", "a b/ü#?%.jpg") == "s3://bucket/folder/a%20b/%C3%BC%23%3F%25.jpg"
    assert join_uri("/data", "a b.jpg") == "/data/a b.jpg"
    assert join_uri("/data", "a\udcff.jpg") == "/data/a\\xff.jpg"


def test_local_addresses_lead_to_their_paths() -> None:
    assert local_path("a b#?.jpg") == "a b#?.jpg"
    assert local_path("file:///a%20b/c#1?x=1.jpg") == "/a b/c#1?x=1.jpg"
    assert local_path("file://localhost/a%FF.jpg") == "/a\udcff.jpg"
    assert local_path("s3://bucket/a") is None
    assert local_path(file_uri("/a \udcff#%.jpg")) == "/a \udcff#%.jpg"


def test_web_addresses_are_encoded_once() -> None:
    assert encode_http("http://h/a%20b.jpg?s=%2F+~'()") == "http://h/a%20b.jpg?s=%2F+~'()"
    assert encode_http(" http://h/ü b/100%.jpg ") == "http://h/%C3%BC%20b/100%25.jpg"
    assert encode_http("http://jo:a/b@bücher.example/x#y") == "http://jo:a%2Fb@xn--bcher-kva.example/x"


def test_the_other_end_is_named() -> None:
    assert host_of("https://u:p@h:80/x") == "h:80"
    assert host_of("s3://k:s@bucket/x?region=a") == "s3://bucket"
    assert host_of("hf://datasets/a/b") == "huggingface.co"
    assert host_of("/data") == "this machine"
    assert [has_secrets(text) for text in ("http://h/a", "http://h/a?b", "http://u@h/a", "/a?b#c")] == [
        False,
        True,
        True,
        False,
    ]


def test_a_record_that_says_why_there_is_nothing_to_read_tells_no_secret() -> None:
    record = ImageRecord("a", "b", "broken", reason="GET https://jo:S3CR3T@h/x?sig=SIGN4TURE failed")
    assert record.reason == "GET https://h/x failed"
