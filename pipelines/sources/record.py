"""One image as a source lists it: a stable name, and where its bytes lie."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipelines.transport.addresses import scrub

if TYPE_CHECKING:
    from pipelines.sources.fetch import ImageFetcher

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("container", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("member", pa.string()),
        pa.field("carried", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("annotation", pa.string()),
        pa.field("reason", pa.string()),
    ],
    metadata={b"ovss_schema": b"manifest/1"},
)


@dataclass(slots=True)
class ImageRecord:
    """Where one image lies. Nobody changes one; it is not frozen because that doubles what millions of them take to make.

    Attributes:
        image_id: Stable and unique in the run.
        uri: Address for people and for the output; no credentials.
        container: "file" (a whole file of the source), "uri" (a whole file that a table or list names), "listed" (a
            file whose address holds a secret: the address stays in the list `path`, in the bytes `offset` to
            `offset + length`, with its checksum as `row`), "tar" (bytes `offset` to `offset + length`), "parquet"
            (row `row` of row group `row_group`), "broken" (nothing to read: `reason` says why; it becomes a failure
            row), or a word that the source's own fetcher understands.
        path: Path inside the source's file system; for "uri" the address to open.
        annotation: Address of a reference mask, for evaluations.
        member: Name of the image's file in a tar; where a table names the image's address, that table's path, and
            `row_group` and `row` are the image's there.
        carried: What lies beside the image in a tar and is wanted, as a JSON object (`pipelines.sources.carried`).
    """

    image_id: str
    uri: str
    container: str
    path: str | None = None
    offset: int | None = None
    length: int | None = None
    row_group: int | None = None
    row: int | None = None
    annotation: str | None = None
    reason: str | None = None
    member: str | None = None
    carried: str | None = None

    def __post_init__(self) -> None:
        if self.reason:  # it may be a library's, which repeats addresses
            self.reason = scrub(self.reason)


class Source(Protocol):
    """A corpus that can be listed and read.

    Attributes:
        uri: The root its records' paths belong to, credentials included (handed to workers, never written).
        ignored: Files that the last listing passed over because they are no images.
    """

    @property
    def uri(self) -> str:
        """The root that opens the file system of the records' paths."""

    ignored: int

    def describe(self) -> dict[str, Any]:
        """Return what identifies this source, without credentials; part of the run's identity."""

    def fetcher(self, max_bytes: int, timeout_s: float) -> "ImageFetcher":
        """Return what fetches the bytes of its records, in the processes of workers.

        Args:
            max_bytes: A larger file is refused.
            timeout_s: Seconds that one file may take to arrive.
        """

    def containers(self) -> list[str] | None:
        """Return the names of the shards there are now; None where each image is its own file."""

    def records(self, skip: Collection[str] = ()) -> Iterator[ImageRecord]:
        """List the images in a stable order, passing over the shards named in `skip`."""
