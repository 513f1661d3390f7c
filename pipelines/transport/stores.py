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
_OPTIONS = re.compile(r"\?(?=[A-Za-z_]+=)")
_CONNECT_S = 5.0
_CLIENT_TRIES = 3  # for readers that ask the file system themselves; `patiently` tries again around it
_CLIENT_RETRY_S = 5  # the same for Google's client, which counts seconds and would go on for 15 minutes
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
    parts = _split_store_address(uri)
    if scheme == "s3":
        _check_s3_options(parts)
        if not parts.place:
            raise StorageError(f"{redact(uri)} names no bucket; {_ADVICE}")
        return _open_s3(parts.place, parts.user, parts.query), f"{parts.place}{unquote(parts.path)}".rstrip(
            "/"
        )
    try:
        if scheme in ("gs", "gcs"):  # one client a bucket, not one an object
            if not parts.place:
                raise StorageError(f"{redact(uri)} names no bucket; {_ADVICE}")
            root = _encode(parts._replace(path="", query=_with_retry_limit(parts.query)))
            return _open_other(root, scheme)[0], f"{parts.place}{unquote(parts.path)}".rstrip("/")
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
    path = quote(re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", parts.path), safe="/%:@!$&'()*+,;=~")
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme.lower()}://{user}{'@' if user else ''}{parts.place}{path}{query}"


def _with_retry_limit(query: str) -> str:
    if any(name == "retry_limit_seconds" for name, _ in parse_qsl(query, keep_blank_values=True)):
        return query
    return f"{query}&" * bool(query) + f"retry_limit_seconds={_CLIENT_RETRY_S}"


def _split_store_address(uri: str) -> Address:
    """Take an address of a store apart: it has no fragment, and ``?`` begins options only where ``name=`` follows."""
    address, mark, query = uri, "", ""
    if found := _OPTIONS.search(uri):
        address, mark, query = uri[: found.start()], "?", uri[found.end() :]
    parts = split_address(address)
    inside = (
        parts.path
        + (f"?{parts.query}" if parts.query else "")
        + (f"#{parts.fragment}" if parts.fragment else "")
    )
    return parts._replace(path=inside, query=query if mark else "", fragment="")


def _check_s3_options(parts: Address) -> None:
    known = _S3_FLAGS | _S3_TEXTS | _S3_RARE
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if unknown := next((name for name in names if name not in known), None):
        raise StorageError(
            f"s3://{parts.place}{parts.path} has an option {unknown!r} that S3 storage does not know; its options are "
            f"{', '.join(sorted(_S3_FLAGS | _S3_TEXTS))}; write %3F for a ? that belongs to the name"
        )


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
            retries = pafs.AwsStandardS3RetryStrategy(max_attempts=_CLIENT_TRIES)
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


def is_google_store(filesystem: pafs.FileSystem) -> bool:
    """Say whether this is pyarrow's client of Google's store, which differs from its others in two ways.

    A listing leaves out folders that are no objects themselves: only keys below them tell of them. And a file that is
    opened for random access waits for its first byte while no other thread of Python runs; a stream does not.
    """
    return bool(getattr(filesystem, "type_name", "") == "gcs")


def is_object_store(filesystem: pafs.FileSystem) -> bool:
    """Say whether objects appear when their upload is complete, and folders do not exist apart from them."""
    if isinstance(filesystem, pafs.PyFileSystem):
        protocol = filesystem.handler.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return not names & {"file", "local", "sftp", "ssh", "smb", "nfs"}
    return not isinstance(filesystem, pafs.LocalFileSystem)
