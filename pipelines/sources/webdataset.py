"""WebDataset tar shards: the shard is the unit, listed by its name alone and streamed once by whoever reads it."""

import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa

from ovss_core.errors import StorageError
from pipelines.sources.listing import list_files
from pipelines.sources.promises import Promises, check_count
from pipelines.sources.record import ImageRecord
from pipelines.sources.tar_samples import ImageFields
from pipelines.sources.tar_stream import TarEnd, TarImage, stream_tar
from pipelines.storage import join_uri, open_seekable, open_storage, redact

_READ_AHEAD = 1 << 22
_SHARD_NAME = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class WebDatasetSource:
    """Images in tar shards, plain or compressed.

    The id of an image is ``shard path/key``; the key is the member's path up to the first dot of its file name,
    as WebDataset defines it. A key that comes again in its shard gets ``#2``, ``#3``, ... A shard that is damaged
    or missing gives the images that can be read and one failure row that names the shard.

    Args:
        pattern: A tar file, a folder of shards, or a glob such as ``train-{0000..0127}.tar``. Every number of such
            a range, and every name of a list such as ``{train,val}``, must be there; those that are not are
            shards without a file. ``.{tar,tgz}``, behind a dot, are alternatives.
        image_field: Field of a sample that is its picture, such as "jpg" or "image.png", or several that samples
            may have instead, as in "jpg;png". None takes the first with an image's extension right behind the key.
    """

    streamed = True

    def __init__(self, pattern: str, image_field: str | None = None) -> None:
        self.pattern = pattern
        self.fields = ImageFields.parse(image_field)
        self.ignored = 0
        check_count(pattern)
        self._root, files = list_files(pattern, is_shard_name)
        shards = [_shown_name(name) for name, _, accepted in files if accepted]
        if not shards:
            raise StorageError(
                f"no tar shard in {redact(pattern)}; give a tar file, a folder of .tar, .tar.gz or .tgz files or a glob"
            )
        below = _pattern_below(pattern, self._root)
        self.missing = () if below in shards else tuple(Promises(below).missing(shards))
        self._shards = sorted({*shards, *self.missing}) if self.missing else shards

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""
        return self._root

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials."""
        field = ";".join(self.fields.names) or None
        return {"kind": "webdataset", "uri": redact(self.pattern), "image_field": field}

    def containers(self) -> list[str]:
        """Return the shards there are, and those in `missing`, which the pattern promises and nobody finds."""
        return list(self._shards)

    def open_shard(self, name: str) -> BinaryIO:
        """Open a shard to be streamed from front to back.

        Raises:
            StorageError: The shard is missing or cannot be opened.
        """
        return open_shard(self._root, name)

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images shard by shard, in the order of the tar files."""
        self.ignored = 0
        known = frozenset(skip)
        for name in self._shards:
            if name not in known:
                yield from self._shard_records(name)

    def _shard_records(self, name: str) -> Iterator[ImageRecord]:
        path = f"{open_storage(self._root)[1].rstrip('/')}/{name}"
        uri = join_uri(redact(self._root), name)
        try:
            with self.open_shard(name) as stream:
                for item in stream_tar(stream, self.fields, 1 << 62, lambda key: False):
                    if isinstance(item, TarImage):
                        yield _record(item, name, uri, path)
                    else:
                        self.ignored += item.ignored
                        yield from _broken(item, name, uri, path)
        except OSError as error:
            yield ImageRecord(name, uri, "broken", path=path, reason=str(error).splitlines()[0])


def open_shard(root: str, name: str) -> BinaryIO:
    """Open the shard `name` below the root of a source, with a buffer that makes few requests of a remote store.

    Raises:
        StorageError: The shard is missing or cannot be opened.
    """
    filesystem, base = open_storage(root)
    shown = join_uri(redact(root), name)
    try:
        return open_seekable(filesystem, f"{base.rstrip('/')}/{name}", _READ_AHEAD)
    except FileNotFoundError as error:
        hint = (
            "; a name that is not valid UTF-8 is shown with escapes: rename such a file"
            if "\\x" in name
            else ""
        )
        raise StorageError(f"the shard is missing: there is no {shown}{hint}") from error
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"the shard {shown} cannot be opened: {str(error).splitlines()[0]}") from error


def is_shard_name(name: str) -> bool:
    """Say whether a file in a folder is taken for a shard."""
    return _SHARD_NAME.search(name) is not None


def _shown_name(name: str) -> str:
    """Return the name as text; a file whose name is none cannot be opened by it, and fails by itself."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _record(image: TarImage, shard: str, uri: str, path: str) -> ImageRecord:
    image_id = f"{shard}/{image.key}"
    if image.problem or image.offset is None:
        reason = (
            image.problem or "its bytes are no range of the shard's file, which is compressed or has holes"
        )
        return ImageRecord(image_id, uri, "broken", path=path, reason=reason)
    return ImageRecord(image_id, uri, "tar", path=path, offset=image.offset, length=image.length)


def _broken(end: TarEnd, shard: str, uri: str, path: str) -> Iterator[ImageRecord]:
    if end.problem:
        reason = f"{end.problem}; {end.images:,} images of it were found"
        yield ImageRecord(shard, uri, "broken", path=path, reason=reason)


def _pattern_below(pattern: str, root: str) -> str:
    """Return the part of a glob that `list_files` looked for below the root; "" for a folder or file."""
    address, start = (text.partition("?")[0] if "://" in text else text for text in (pattern, root))
    if start == "." and not address.startswith("./"):
        return address
    below = address.removeprefix(start).lstrip("/") if address.startswith(start) else ""
    return unquote(below) if "://" in pattern else below
