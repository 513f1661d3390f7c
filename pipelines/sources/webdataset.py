"""WebDataset tar shards: the shard is the unit, listed by its name alone and streamed once by whoever reads it."""

import io
import re
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

import pyarrow as pa

from ovss_core.errors import StorageError
from pipelines.sources.fetch import ImageFetcher
from pipelines.sources.listing import list_files
from pipelines.sources.promises import Promises, check_count
from pipelines.sources.record import ImageRecord
from pipelines.sources.tar_samples import ImageFields
from pipelines.sources.tar_stream import TarImage, stream_tar
from pipelines.storage import redact
from pipelines.transport.addresses import printable
from pipelines.transport.patient_stream import PatientStream

_BUFFER = 1 << 20
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
        # a name that is no text cannot be opened as it is shown, and fails by itself
        shards = [printable(name) for name, _, accepted in files if accepted]
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

    def fetcher(self, max_bytes: int, timeout_s: float) -> ImageFetcher:
        """Return what fetches the bytes of its records."""
        return ImageFetcher(self.uri, max_bytes=max_bytes, timeout_s=timeout_s)

    def containers(self) -> list[str]:
        """Return the shards there are, and those in `missing`, which the pattern promises and nobody finds."""
        return list(self._shards)

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """Yield nothing: the images of a shard are listed by the worker that streams it."""
        return iter(())


def count_images(source: Any, shard: str) -> int:
    """Count the images of a shard by reading it to its end; a shard that cannot be read counts as one, its failure."""
    max_bytes = 1 << 28
    try:
        with io.BufferedReader(PatientStream(source.uri, shard, 60.0), _BUFFER) as stream:
            items = stream_tar(cast(BinaryIO, stream), source.fields, max_bytes, lambda key: False)
            return sum(isinstance(item, TarImage) for item in items)
    except (OSError, ValueError, ImportError, pa.ArrowException):
        return 1


def is_shard_name(name: str) -> bool:
    """Say whether a file in a folder is taken for a shard."""
    return _SHARD_NAME.search(name) is not None


def _pattern_below(pattern: str, root: str) -> str:
    """Return the part of a glob that `list_files` looked for below the root; "" for a folder or file."""
    address, start = (text.partition("?")[0] if "://" in text else text for text in (pattern, root))
    if start == "." and not address.startswith("./"):
        return address
    below = address.removeprefix(start).lstrip("/") if address.startswith(start) else ""
    return unquote(below) if "://" in pattern else below
