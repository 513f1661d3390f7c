"""Opening the file system behind an address: local disks, what pyarrow knows, and any fsspec protocol.

Addresses are taken as people write them: spaces, ``%``, ``#`` and letters of any language are encoded here, and a
``?`` begins options only where options of that store follow.
"""

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import fsspec
import pyarrow.fs as pafs

from ovss_core.errors import StorageError
from pipelines.transport.addresses import Address, local_path, redact, split_address
from pipelines.transport.causes import TransferError, blamed_on

_ARROW_SCHEMES = {"gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"}
_S3_FLAGS = frozenset(
    {
        *("allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open", "force_virtual_addressing"),
        *("check_directory_existence_before_creation", "anonymous", "background_writes"),
    }
)
_S3_TEXTS = frozenset(
    {"access_key", "secret_key", "session_token", "region", "scheme", "endpoint_override", "tls_ca_file_path"}
)
_S3_RARE = frozenset({"smart_defaults", "tls_verify_certificates", "sse_customer_key"})
_CONNECT_S = 5.0
_ADVICE = "give a path, or a URI such as s3://bucket/folder"


def open_storage(uri: str) -> tuple[pafs.FileSystem, str]:
    """Open the file system behind a local path or URI.

    Args:
        uri: A local path, ``file://``, ``s3://``, ``gs://`` and what else pyarrow knows (options such as
            ``?endpoint_override=127.0.0.1:5000&scheme=http`` go in the query), or any other fsspec protocol.

    Returns:
        The file system, one a bucket and process, and the path inside it.

    Raises:
        StorageError: No file system for that URI, or one that only one process can see.
    """
    path = local_path(uri)
    if path is not None:
        return pafs.LocalFileSystem(), os.path.abspath(path)  # noqa: PTH100 (Path would resolve "..")
    scheme = uri.partition("://")[0].lower()
    if scheme == "memory":
        raise StorageError(
            f"{redact(uri)} lies in the memory of one process, which the workers of a job do not share; give a "
            "folder, or a bucket of an object store"
        )
    if scheme == "s3":
        parts = _without_mistaken_options(split_address(uri))
        if not parts.place:
            raise StorageError(f"{redact(uri)} names no bucket; {_ADVICE}")
        return _open_s3(parts.place, parts.user, parts.query), f"{parts.place}{unquote(parts.path)}".rstrip(
            "/"
        )
    parts = split_address(uri)
    try:
        if scheme in ("gs", "gcs"):  # one client a bucket, not one an object
            root = _encode(parts._replace(path="", fragment=""))
            return _open_other(root, scheme)[0], f"{parts.place}{unquote(_whole_path(parts))}".rstrip("/")
        return _open_other(_encode(parts) if scheme in _ARROW_SCHEMES else uri, scheme)
    except TransferError as error:
        raise _cannot_open(uri, error) from error


def _cannot_open(uri: str, error: TransferError) -> TransferError:
    told = error.transient or error.error_type in ("ImportError", "ModuleNotFoundError", "ConnectionError")
    advice = "" if told else f"; {_ADVICE}"
    return TransferError(
        f"cannot open {redact(uri)}: {error}{advice}", error.error_type, error.transient, error.retry_after_s
    )


@lru_cache(maxsize=64)
def _open_other(uri: str, scheme: str) -> tuple[pafs.FileSystem, str]:
    with blamed_on(uri):
        if scheme in _ARROW_SCHEMES:
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return filesystem, path
        handler, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(handler)), path


def _encode(parts: Address) -> str:
    """Write a URI as pyarrow's strict parser wants it; a user or password may hold any character."""
    user = ":".join(quote(unquote(piece), safe="") for piece in parts.user.split(":", 1))
    path = quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", _whole_path(parts)), safe="/%:@!$&'()*+,;=~")
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme.lower()}://{user}{'@' if user else ''}{parts.place}{path}{query}"


def _whole_path(parts: Address) -> str:
    return parts.path + (f"#{parts.fragment}" if parts.fragment else "")  # no store knows fragments


def _without_mistaken_options(parts: Address) -> Address:
    """Take ``?`` as part of a key where no options of S3 follow, and ``#`` always."""
    names = [piece.partition("=")[0] for piece in parts.query.split("&")] if parts.query else []
    if all(name in _S3_FLAGS | _S3_TEXTS | _S3_RARE for name in names):
        return parts._replace(path=_whole_path(parts), fragment="")
    if all("=" in piece for piece in parts.query.split("&")):
        unknown = next(name for name in names if name not in _S3_FLAGS | _S3_TEXTS | _S3_RARE)
        raise StorageError(
            f"{redact('s3://' + parts.place + parts.path)} has an option {unknown!r} that S3 storage does not know; "
            f"its options are {', '.join(sorted(_S3_FLAGS | _S3_TEXTS))}; write %3F for a ? that belongs to the name"
        )
    return parts._replace(path=f"{parts.path}?{parts.query}", query="", fragment="")


@lru_cache(maxsize=64)
def _open_s3(bucket: str, user: str, query: str) -> pafs.FileSystem:
    """Open one bucket.

    Built here and not by `FileSystem.from_uri`, whose client asks a store that is overloaded again every 200 ms.
    """
    options = dict(parse_qsl(query, keep_blank_values=True))
    public = f"s3://{bucket}"
    if options.keys() & _S3_RARE:
        with blamed_on(public):
            filesystem, _ = pafs.FileSystem.from_uri(_encode(Address("s3", user, bucket, "", query, "")))
        return filesystem
    key, _, secret = (unquote(piece) for piece in user.partition(":"))
    arguments: dict[str, Any] = {name: options[name] for name in _S3_TEXTS if options.get(name)}
    arguments |= {name: _flag(name, options[name]) for name in _S3_FLAGS & options.keys()}
    if key and secret:
        arguments |= {"access_key": key, "secret_key": secret}
    _take_endpoint(arguments, os.environ)
    try:
        with blamed_on(public):
            if not arguments.get("region") and not arguments.get("endpoint_override"):
                arguments["region"] = pafs.resolve_s3_region(bucket)
            retries = pafs.AwsStandardS3RetryStrategy(max_attempts=3)
            return pafs.S3FileSystem(connect_timeout=_CONNECT_S, retry_strategy=retries, **arguments)
    except TransferError as error:
        raise _cannot_open(public, error) from error


def _take_endpoint(arguments: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Fill in an endpoint from the variables that AWS's own tools read, and cut a scheme off an endpoint."""
    endpoint = (
        arguments.get("endpoint_override")
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
    )
    if endpoint:
        scheme, mark, host = endpoint.rpartition("://")
        arguments["endpoint_override"] = host.rstrip("/")
        if mark:
            arguments["scheme"] = scheme


def _flag(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise StorageError(f"the option {name} of an s3:// address is {value!r}; give true or false")
    return value.lower() in ("true", "1")


def is_object_store(filesystem: pafs.FileSystem) -> bool:
    """Say whether objects appear when their upload is complete, and folders do not exist apart from them."""
    if isinstance(filesystem, pafs.PyFileSystem):
        protocol = filesystem.handler.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return not names & {"file", "local", "sftp", "ssh", "smb", "nfs"}
    return not isinstance(filesystem, pafs.LocalFileSystem)
