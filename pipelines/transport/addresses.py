"""Addresses written down without their secrets, and encoded so that what a user types just works.

An address may carry a password, a signature or a token: in its user part, in any value of its query, or behind
``#``. None of that may reach a row, a log or a page, also not by way of a library that repeats the address in its
own message.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

from pipelines.transport.data_address import is_data_address

_HIDDEN = "***"
_BUCKETS = frozenset(
    {"s3", "s3a", "s3n", "gs", "gcs"}
)  # no port stands in their authority: a colon means a password
_CONTAINERS = frozenset({"abfs", "abfss", "wasb", "wasbs"})  # container@account is the place, not a user
_HOSTED = frozenset({"http", "https", "ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs"})
_SERVICES = {"hf": "huggingface.co", "github": "api.github.com"}
_PLAIN_OPTIONS = frozenset({"endpoint_override", "scheme", "region"})
_SHORTEST_SECRET = 4
_CLOSING = "'\")]}>,.;:"
_RESERVED = "%:/?#[]@!$&'()*+,;=~"
_USER = "%:!$&'()*+,;=~"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_ENCODED_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*(?:%(?:25)*3A(?:/|%(?:25)*2F){2}|:(?:%(?:25)*2F){2})\S*", re.IGNORECASE
)
_BARE_QUERY = re.compile(r"(?<=\S)\?[^\s?]*=\S*")
_NAMED_SECRET = re.compile(
    r"\b((?:x-(?:amz|goog)-[\w-]+|aws_?access_?key_?id|(?:aws_)?(?:secret_)?access_key(?:_id)?|secret(?:_key)?|"
    r"(?:session_|access_|auth_?|sas_)?token|sig|signature|pass(?:word|wd)?|pwd|credentials?|api_?key|account_?key)"
    r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&)}\]]+",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"\b(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token)\s+)?|bearer\s+)[^\s\"',;]{6,}", re.I
)
_IMAGE_DATA = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/=]{24,}|[A-Za-z0-9+/=_%-]{160,}|\bb(['\"])(?:[^'\"\\]|\\.){64,}\1"
)
_DATA_ADDRESS = re.compile(r"data:[\w/+.-]*(?:;[\w=.-]+)*,\S+")


class Address(NamedTuple):
    """The pieces of an address as they were written, none decoded."""

    scheme: str
    user: str
    place: str
    path: str
    query: str
    fragment: str


def split_address(uri: str) -> Address:
    """Take an address apart; a password may hold ``/``, ``?`` and ``#`` although no standard allows it."""
    scheme, _, rest = uri.partition("://")
    user, rest = _split_user(scheme.rpartition(":")[2].lower(), rest)
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    place, slash, path = rest.partition("/")
    return Address(scheme, user, place, slash + path, query, fragment)


def _split_user(scheme: str, rest: str) -> tuple[str, str]:
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at:
        return user, rest[len(user) + 1 :]
    name, colon, port = authority.rpartition(":")
    if colon and not name.startswith("[") and (scheme in _BUCKETS or (not port.isdigit() and port)):
        user, at, behind = rest.partition("@")
        return (user, behind) if at else (authority, rest[len(authority) :])
    return "", rest


def redact(uri: str) -> str:
    """Return an address without user, query and fragment, ready to be written down; a path becomes absolute."""
    if is_data_address(uri):
        return uri.partition(",")[0][:100]
    if "://" not in uri:
        if mistyped := re.match(r"[A-Za-z][A-Za-z0-9+]*:/?[^/@]+@", uri):
            return f"{uri.partition(':')[0]}:{_HIDDEN}@{uri[mistyped.end() :].partition('?')[0]}"
        return printable(str(Path(uri).absolute()))
    return printable("::".join(_redact_link(link) for link in uri.split("::")))


def _redact_link(link: str) -> str:
    """Redact one link of an fsspec chain such as ``zip://a.jpg::https://host/b.zip``."""
    if "://" not in link:
        return link
    address = split_address(link)
    container = (
        f"{address.user}@" if address.scheme.lower() in _CONTAINERS and ":" not in address.user else ""
    )
    path = _ENCODED_ADDRESS.sub(_redact_encoded, address.path)
    path = _ADDRESS.sub(lambda match: _redact_link(match.group()), path)
    return f"{address.scheme}://{container if container != '@' else ''}{address.place}{path}"


def _redact_encoded(match: re.Match[str]) -> str:
    text = match.group()
    while "://" not in text and (decoded := unquote(text)) != text:
        text = decoded
    return redact(text)


def scrub(text: str, *addresses: str) -> str:
    """Take the secrets of all addresses out of free text, such as the message of a library, and image data with them.

    Args:
        addresses: Addresses that the text may speak of: their secrets are also found where they stand alone.
    """
    text = text.replace("\\/", "/")
    for address in addresses:
        if "://" in address:
            text = text.replace(address, redact(address))
            for secret in sorted(_secrets(address), key=len, reverse=True):
                text = text.replace(secret, _HIDDEN)
    text = _DATA_ADDRESS.sub(lambda match: f"{match.group().partition(',')[0]},{_HIDDEN}", text)
    text = _ENCODED_ADDRESS.sub(_redact_encoded, text)
    text = _ADDRESS.sub(_redact_token, text)
    text = _BARE_QUERY.sub("", text)
    text = _NAMED_SECRET.sub(rf"\1{_HIDDEN}", text)
    text = _HEADER.sub(rf"\1{_HIDDEN}", text)
    return printable(_IMAGE_DATA.sub(_shorten_data, text))


class ScrubbedFormatter(logging.Formatter):
    """Writes log lines, tracebacks included, without secrets of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return scrub(super().format(record))


def _redact_token(match: re.Match[str]) -> str:
    token = match.group()
    core = token.rstrip(_CLOSING)
    return redact(core) + token[len(core) :] if not core.endswith("//") else token


def _shorten_data(match: re.Match[str]) -> str:
    """Cut what is no path: base64 mixes its three kinds of characters, and a name of a path is shorter."""
    text = match.group()
    shares = [sum(map(kind, text)) / len(text) for kind in (str.isupper, str.islower, str.isdigit)]
    encoded = all(share > least for share, least in zip(shares, (0.15, 0.15, 0.05), strict=True))
    if not encoded and len(text) >= 160 and max(map(len, text.split("/"))) < 160 and match.group(1) is None:
        return text
    return f"{text[:12]}... ({len(text):,} characters)"


def _secrets(address: str) -> Iterator[str]:
    parts = split_address(address)
    values = [parts.fragment, parts.user, *parts.user.split(":", 1)]
    values += [piece.partition("=")[2] for piece in parts.query.split("&") if not _is_plain(piece)]
    values += [value for name, value in parse_qsl(parts.query) if name not in _PLAIN_OPTIONS]
    for value in values:
        for form in {
            value,
            unquote(value),
            quote(value),
            quote(value, safe=""),
            quote(unquote(value), safe=""),
        }:
            if len(form) >= _SHORTEST_SECRET:
                yield form


def _is_plain(piece: str) -> bool:
    return piece.partition("=")[0] in _PLAIN_OPTIONS


def has_secrets(address: str) -> bool:
    """Say whether `redact` would leave something out of an address."""
    if is_data_address(address):
        return True
    if "://" not in address:
        return False
    parts = split_address(address)
    return bool(parts.user or parts.query or parts.fragment)


def host_of(address: str) -> str:
    """Name the other end of an address for messages: a host, a bucket, or "this machine"."""
    if "://" not in address:
        return "this machine"
    parts = split_address(address.rpartition("::")[2])
    scheme = parts.scheme.lower()
    if scheme in _SERVICES or scheme in _HOSTED:
        return _SERVICES.get(scheme, parts.place)
    return "this machine" if scheme in ("file", "local") else f"{scheme}://{parts.place}"


def join_uri(public_root: str, relative: str) -> str:
    """Return the address of a file below a root that `redact` returned; only URIs are percent-encoded."""
    if not relative:
        return public_root
    tail = quote(relative, errors="surrogateescape") if "://" in public_root else printable(relative)
    return f"{public_root.rstrip('/')}/{tail}"


def file_uri(path: str) -> str:
    """Return the ``file://`` URI of a local path, which is text even where the path is not."""
    return f"file://{quote(os.fsencode(path))}"


def local_path(uri: str) -> str | None:
    """Return the path behind a local path or ``file://`` URI, None for any other address.

    ``#`` and ``?`` are part of a local name; ``%`` begins an encoded character where two hexadecimal digits follow.
    """
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != "file":
        return None
    path = rest if rest.startswith("/") else f"/{rest.partition('/')[2]}"
    return os.fsdecode(unquote_to_bytes(path))


def encode_http(address: str) -> str:
    """Encode what a web address may not hold, and nothing else: a signature covers the address as it is written."""
    parts = split_address(address.strip())
    user = f"{quote(parts.user, safe=_USER)}@" if parts.user else ""
    host = parts.place if parts.place.isascii() else parts.place.encode("idna").decode()
    behind = parts.path + (f"?{parts.query}" if parts.query else "")
    behind = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", behind)
    return f"{parts.scheme.lower()}://{user}{host}{quote(behind, safe=_RESERVED)}"


def printable(text: str) -> str:
    """Return text in which bytes that are no UTF-8 are written out."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, as a JSON file may hold it
        return text.encode("utf-8", "backslashreplace").decode()
