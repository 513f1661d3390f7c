"""The files of a manifest: numbered Parquet parts, one listing a shard, and a file that says what there is.

A part is the unit of everything that follows: one list of images, one output file, one completion marker, all
named alike. Images that are listed before the work are in ``part-00003``; a shard that is listed by the worker
that streams it is cut into chunks: images ``i`` of shard 3 with ``i // shard_size == 1`` are ``part-00003-00001``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ovss_core.errors import OutputMismatchError
from pipelines.run.state_files import DamagedFileError, read_json, read_table, write_json
from pipelines.sources.record import MANIFEST_SCHEMA, ImageRecord
from pipelines.storage import Folder

FOLDER = "_manifest"
COMPLETE = f"{FOLDER}/complete.json"
PART = re.compile(r"part-(\d{5,})(?:-(\d{5,}))?")
_VERSION = 2
_COLUMNS = [entry.name for entry in fields(ImageRecord)]
_values = attrgetter(*_COLUMNS)
LISTS = b"ovss_part"
"""Key in a list's metadata: the part whose images it lists, so that a list in the place of another is found out."""


@dataclass(frozen=True)
class ShardListing:
    """What ``_manifest/shard-00003.json`` says once a worker has listed that shard to its end.

    Attributes:
        shard: The shard's name.
        bytes: Size of its file; another size means that it was replaced. None where the storage did not say.
        chunks: Images of each chunk by its number, the shard's own failure row included.
        ignored: Members that are no images.
        problem: What is missing, if it could not be read to its end.
    """

    shard: str
    bytes: int | None
    chunks: Mapping[int, int]
    ignored: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Which images a run has, as far as they are listed.

    Attributes:
        parts: Images of each part by its name, in order.
        containers: Names of the shards or tables that the images come from (empty for plain files).
        streamed: The containers are shards that the workers list; shard n is ``containers[n]``.
        listings: What is known of the shards that are listed, by number.
        ignored: Files that were passed over because they are no images.
        appended: What the last listing added to an existing manifest: images, or shards where those are streamed; None
            where there was no manifest before.
        gone: What it did not find again: images of plain files, or shards; None where that is not known.
        digests: What `digest_of_list` gives for each part that was listed before the work.
        partial: Only some images were to be listed, so that the source may hold more (plain files and tables only).
        fresh: All of it was listed in this start, of plain files; nothing can be done or damaged yet.
    """

    parts: Mapping[str, int]
    containers: tuple[str, ...] = ()
    streamed: bool = False
    listings: Mapping[int, ShardListing] | None = None
    ignored: int = 0
    appended: int | None = None
    gone: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    fresh: bool = False

    @property
    def images(self) -> int:
        """Images of all parts that are listed."""
        return sum(self.parts.values())

    @property
    def unlisted(self) -> tuple[int, ...]:
        """Numbers of the shards whose images are not all known yet."""
        listed = self.listings or {}
        return tuple(n for n in range(len(self.containers)) if n not in listed) if self.streamed else ()


def part_name(number: int, chunk: int | None = None) -> str:
    """Return the name that a part has in every folder of an output, without the file's ending."""
    return f"part-{number:05d}" if chunk is None else f"part-{number:05d}-{chunk:05d}"


def shard_of(part: str) -> int | None:
    """Return the number of the shard that a part is a chunk of; None for a part that was listed before the work."""
    match = PART.fullmatch(part)
    return int(match[1]) if match and match[2] else None


def part_file(part: str) -> str:
    """Return the path of a part's list of images."""
    return f"{FOLDER}/{part}.pq"


def read_part(output: Folder, part: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the list of one part; columns as in `MANIFEST_SCHEMA`.

    Raises:
        DamagedFileError: The list is gone, cut, or something else.
    """
    return read_table(output, part_file(part), MANIFEST_SCHEMA, columns)


def write_part(output: Folder, part: str, rows: Sequence[ImageRecord]) -> None:
    """Write the list of one part.

    Raises:
        ValueError: An id comes twice; it would get two rows.
    """
    ids = [row.image_id for row in rows]
    if len(set(ids)) != len(ids):
        raise ValueError(f"an image id comes twice in {part}")
    columns = dict(zip(_COLUMNS, zip(*map(_values, rows), strict=True), strict=True))
    sink = pa.BufferOutputStream()
    schema = MANIFEST_SCHEMA.with_metadata({**(MANIFEST_SCHEMA.metadata or {}), LISTS: part.encode()})
    options = {"compression": "zstd", "write_page_checksum": True, "write_statistics": False}
    # nearly every value is new in its column, and a dictionary of each makes the file larger and slower to write
    pq.write_table(pa.table(columns, schema=schema), sink, use_dictionary=["container"], **options)
    output.write(part_file(part), sink.getvalue().to_pybytes())


def shard_file(shard: int) -> str:
    """Return the path of a shard's listing."""
    return f"{FOLDER}/shard-{shard:05d}.json"


def read_listing(output: Folder, shard: int) -> ShardListing:
    """Read what a worker found in a shard.

    Raises:
        DamagedFileError: The listing is cut, or something else.
    """
    kinds: dict[str, Any] = {"shard": str, "bytes": (int, type(None)), "chunks": dict, "ignored": int}
    values = read_json(output, shard_file(shard), kinds)
    if not all(name.isdigit() and _is_count(count) for name, count in values["chunks"].items()):
        raise DamagedFileError(output, shard_file(shard), "its member 'chunks' holds something else")
    chunks = {int(name): count for name, count in values["chunks"].items()}
    return ShardListing(values["shard"], values["bytes"], chunks, values["ignored"], values.get("problem"))


def write_listing(output: Folder, shard: int, listing: ShardListing) -> None:
    """Say that a shard is listed to its end; its parts must be written before."""
    write_json(output, shard_file(shard), asdict(listing))


def read_complete(output: Folder) -> Manifest:
    """Read which parts and containers there are; streamed shards come without what the workers listed.

    Raises:
        DamagedFileError: The file is gone, cut, or something else.
    """
    values = read_json(output, COMPLETE, {"containers": list, "ignored": int})
    if "version" not in values:  # the first layout numbered the parts
        counts = read_json(output, COMPLETE, {"counts": list})["counts"]
        parts = {part_name(number): count for number, count in enumerate(counts)}
    else:
        parts = read_json(output, COMPLETE, {"parts": dict, "streamed": bool})["parts"]
    sound = all(PART.fullmatch(name) and _is_count(count) for name, count in parts.items())
    digests = values.get("digests", {})  # older versions wrote none
    if (
        not sound
        or not isinstance(digests, dict)
        or not all(isinstance(name, str) for name in values["containers"])
    ):
        raise DamagedFileError(output, COMPLETE, "its parts or containers are something else")
    if values.get("version", _VERSION) != _VERSION:
        raise OutputMismatchError(
            f"{COMPLETE} of {output.public_uri} is of another version of ovss; give another --output, or "
            "--overwrite to replace what is there"
        )
    streamed = values.get("streamed", False)
    return Manifest(
        parts,
        tuple(values["containers"]),
        streamed,
        None,
        values["ignored"],
        digests=digests,
        partial=values.get("partial") is True,
    )


def write_complete(output: Folder, manifest: Manifest, identity: str | None) -> None:
    """Say which parts and containers there are; the parts must be written before.

    Args:
        identity: Digest of what the run is, so that it is known if ``run.json`` is damaged.
    """
    values: dict[str, Any] = {
        "version": _VERSION,
        "identity": identity,
        "images": None if manifest.streamed else manifest.images,
        "streamed": manifest.streamed,
        "parts": {} if manifest.streamed else dict(manifest.parts),
        "digests": {} if manifest.streamed else dict(manifest.digests),
        "containers": list(manifest.containers),
        "ignored": 0 if manifest.streamed else manifest.ignored,
        **({"partial": True} if manifest.partial else {}),
    }
    write_json(output, COMPLETE, values)


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def digest(image_id: str) -> bytes:
    """Return the 16 bytes that stand for an id where many are kept."""
    return blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def digest_of_list(digests: bytes) -> str:
    """Return a short text that differs where a list holds other ids, from their digests one after the other."""
    return blake2b(digests, digest_size=8).hexdigest()


def digest_of_ids(ids: Iterable[str]) -> str:
    """Return `digest_of_list` of ids."""
    return digest_of_list(b"".join(map(digest, ids)))
