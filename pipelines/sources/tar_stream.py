"""The images of one WebDataset shard, read once from front to back, each with its bytes."""

import posixpath
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import BinaryIO

from pipelines.sources.tar_bytes import DamagedShardError, ShardBytes
from pipelines.sources.tar_faults import Notes, cut_short, shown
from pipelines.sources.tar_samples import ImageFields, Samples, split_member
from pipelines.sources.tar_sparse import expand
from pipelines.sources.tar_walk import Member, TarWalk

__all__ = ["ImageFields", "TarEnd", "TarImage", "stream_tar"]

_KEPT_BYTES = 1 << 25
_FIELD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TarImage:
    """One image of a shard.

    Attributes:
        key: Unique in its shard: the member's path up to the first dot of the file name; "#2", "#3", ... are added
            to a key that comes again.
        name: The member's name as stored; bytes that are no UTF-8 are backslash escapes.
        offset: Where its bytes lie in the shard's file; None where they are no range of it (a compressed shard, a
            file with holes).
        length: Bytes of the image.
        data: Its bytes; None where they were not wanted or cannot be had.
        problem: Why it cannot be had.
        beside: Bytes of the sample's other fields that were asked for, by field.
    """

    key: str
    name: str
    offset: int | None
    length: int
    data: bytes | None
    problem: str | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TarEnd:
    """How a shard ended.

    Attributes:
        images: Number of `TarImage` before.
        ignored: Files that were passed over because they are no pictures.
        problem: What is wrong with the shard as a whole or missing from it, in one line; None for a sound one.
    """

    images: int
    ignored: int
    problem: str | None


def every_key(key: str) -> bool:
    """Want every image."""
    return True


def stream_tar(
    stream: BinaryIO, fields: ImageFields, max_bytes: int, wanted: Callable[[str], bool] = every_key
) -> Iterator[TarImage | TarEnd]:
    """Read a shard from front to back.

    Images, keys and their order depend on the shard's bytes and `fields` alone, never on `wanted`. Memory holds one
    image, an index of names and, of shards that cannot be read back (compressed ones and pipes), the last 32 MiB for
    links.

    Args:
        stream: The shard, a tar, plain or compressed whatever its name; it is left open. Errors of reading it are
            raised as they come; faults of its content never are.
        fields: Which field of a sample is its picture.
        max_bytes: An image with more bytes has a problem instead of data.
        wanted: Says by its key whether an image's bytes are asked for.

    Yields:
        The images, then one `TarEnd`.
    """
    notes, samples = Notes(), Samples(fields)
    shard: _Shard | None = None
    images = 0
    try:
        source = ShardBytes(stream)
        shard = _Shard(source, samples, max_bytes, wanted)
        members = TarWalk(source, notes).members()
        found = (
            _with_fields(shard, members, fields.beside)
            if fields.beside
            else chain.from_iterable(map(shard.images, members))
        )
        for image in found:
            images += 1
            yield image
        if fault := samples.fault():
            notes.add(fault)
    except DamagedShardError as error:
        notes.add(str(error))
    for image in shard.dangling() if shard else ():
        images += 1
        yield image
    yield TarEnd(images, samples.ignored, notes.summary())


def _with_fields(shard: "_Shard", members: Iterator[Member], wanted: Sequence[str]) -> Iterator[TarImage]:
    """Yield the images of members, each as soon as its sample ends, with the sample's wanted fields.

    Raises:
        DamagedShardError: The shard cannot be read on; what was held back came before.
    """
    held: list[TarImage] = []
    beside: dict[str, bytes] = {}
    current: str | None = None

    def release() -> Iterator[TarImage]:
        for image in held:
            parts = split_member(image.name)
            mine = parts is not None and parts[0] == current
            yield replace(image, beside=dict(beside)) if mine else image
        held.clear()
        beside.clear()

    try:
        for member in members:
            parts = split_member(member.name)
            if parts is not None and parts[0] != current:
                yield from release()
                current = parts[0]
            held.extend(shard.images(member))
            if parts is not None and parts[1] in wanted and (data := shard.field(member)) is not None:
                beside[parts[1]] = data
    except DamagedShardError:
        yield from release()
        raise
    yield from release()


_Named = tuple[str | None, Member]
"""The key of an image, or None for what is no picture, and the file or link whose name it has."""


class _Shard:
    """Turns members into images; files are remembered by name for the links that point to them."""

    def __init__(
        self, source: ShardBytes, samples: Samples, max_bytes: int, wanted: Callable[[str], bool]
    ) -> None:
        self._source = source
        self._samples = samples
        self._max_bytes = max_bytes
        self._wanted = wanted
        self._files: dict[str, Member] = {}
        self._waiting: dict[str, list[_Named]] = {}
        self._kept = _LastBytes(0 if source.seekable else _KEPT_BYTES)

    def images(self, member: Member) -> Iterator[TarImage]:
        """Yield the image that a member is, and those of links that have waited for it.

        Raises:
            DamagedShardError: The shard ends within the member.
        """
        key = self._samples.picture_key(member.name, member.archive)
        file = member
        if member.target is not None:
            target = _target(member)
            if target not in self._files:
                self._waiting.setdefault(target, []).append((key, member))
                return
            file = self._files[target]
        named = self._known_as((key, member), file)
        data = self._read(file, named) if file is member else self._read_again(file, named)
        for image_key, entry in named:
            if image_key is not None:
                yield self._image(image_key, entry.name, file, data)

    def field(self, member: Member) -> bytes | None:
        """Return the bytes of a small file at hand, after `images` of it; None for links and what is too large."""
        if (
            member.target is not None
            or member.problem
            or member.sparse is not None
            or member.size > _FIELD_BYTES
        ):
            return None
        if not self._source.seekable:
            return self._kept.get(member.offset)
        self._source.move_to(member.offset)
        data = self._source.read(member.stored)
        return data if len(data) == member.stored else None

    def dangling(self) -> Iterator[TarImage]:
        """Yield the links that point to nothing in the shard, as problems."""
        for links in self._waiting.values():
            for key, link in links:
                if key is not None:
                    kind = "symbolic" if link.symbolic else "hard"
                    problem = f"a {kind} link to {shown(link.target or '')}, which is no file of this shard"
                    yield TarImage(key, link.name, None, 0, None, problem)

    def _known_as(self, first: _Named, file: Member) -> list[_Named]:
        """Remember a file under a name, and under those of the links that waited for it; return all of them."""
        named = [first]
        for _, entry in named:  # grows while it is walked over: a link may wait for a link
            name = posixpath.normpath(entry.name)
            self._files[name] = file
            named.extend(self._waiting.pop(name, ()))
        return named

    def _read(self, file: Member, named: Sequence[_Named]) -> bytes | None:
        """Return the stored bytes of the file at hand if an image needs them; keep them where links could not."""
        asked = self._asked(file, named)
        if not asked and self._source.seekable:
            return None
        if not asked and file.stored > self._kept.limit:
            if not self._source.move_to(file.end):
                raise cut_short(file.name, file.end - self._source.position)
            return None
        data = self._source.read(file.stored)
        if len(data) < file.stored:
            raise cut_short(file.name, file.stored - len(data))
        self._kept.add(file.offset, data)
        return data if asked else None

    def _read_again(self, file: Member, named: Sequence[_Named]) -> bytes | None:
        if not self._asked(file, named):
            return None
        if not self._source.seekable:
            return self._kept.get(file.offset)
        self._source.move_to(file.offset)
        data = self._source.read(file.stored)
        return data if len(data) == file.stored else None

    def _asked(self, file: Member, named: Sequence[_Named]) -> bool:
        if file.problem or file.size > self._max_bytes:
            return False
        return any(key is not None and self._wanted(key) for key, _ in named)

    def _image(self, key: str, name: str, file: Member, data: bytes | None) -> TarImage:
        problem = file.problem
        if file.size > self._max_bytes:
            problem = f"the file has {file.size:,} bytes, more than max_bytes ({self._max_bytes:,})"
        if problem or not self._wanted(key):
            data = None
        elif data is None:
            problem = (
                f"a link to {shown(file.name)}, which lies too far back in a shard that is compressed or piped; "
                "unpack the shard"
            )
        elif file.sparse is not None:
            data = expand(data, file.sparse, file.size)
        plain = self._source.compression is None and file.sparse is None and not file.problem
        return TarImage(key, name, file.offset if plain else None, file.size, data, problem)


class _LastBytes:
    """The bytes of the last files, by position, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data: OrderedDict[int, bytes] = OrderedDict()
        self._total = 0

    def add(self, position: int, data: bytes) -> None:
        if len(data) > self.limit:
            return
        self._data[position] = data
        self._total += len(data)
        while self._total > self.limit:
            self._total -= len(self._data.popitem(last=False)[1])

    def get(self, position: int) -> bytes | None:
        return self._data.get(position)


def _target(link: Member) -> str:
    """Return the name in the shard that a link points to; symbolic links start in their own folder."""
    target = link.target or ""
    return posixpath.normpath(
        posixpath.join(posixpath.dirname(link.name), target) if link.symbolic else target
    )
