"""The members of a tar shard in order: past joined archives and damaged headers, and never a silent end.

Python's `tarfile` stops without a word at a damaged header and at the zeros between joined archives, and recurses
over extended headers; where counts must be exact, each of these has to be known.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.sources.tar_bytes import BLOCK, DamagedShardError, ShardBytes, foreign_format
from pipelines.sources.tar_faults import Notes, cut_short, no_header, no_tar
from pipelines.sources.tar_headers import Extension, Header, number_of, read_pax, sound_header, text_of
from pipelines.sources.tar_sparse import (
    SparseMap,
    SparseMapError,
    fits,
    natural,
    old_sparse_map,
    pax_sparse_map,
    sparse_map_in_data,
)

_EXTENDED = frozenset(b"xXgLK")
_MOST_EXTENDED = 1 << 22
_MOST_NAME = 1 << 16
_MOST_ZEROS = 1 << 22


@dataclass(frozen=True, slots=True)
class Member:
    """One file or link of a tar.

    Attributes:
        name: As stored; bytes that are no UTF-8 are backslash escapes.
        archive: Which of the joined archives it belongs to, from 0.
        offset: Position of its data.
        stored: Bytes of its data in the tar.
        size: Bytes of the file; more than `stored` where holes are left out.
        target: What a link points to, as stored; None for a file.
        symbolic: Whether a link is a symbolic one.
        sparse: Where the stored bytes belong, for a file with holes.
        problem: Why its content cannot be had although the tar can be read on.
    """

    name: str
    archive: int
    offset: int
    stored: int
    size: int
    target: str | None = None
    symbolic: bool = False
    sparse: SparseMap | None = None
    problem: str | None = None

    @property
    def end(self) -> int:
        """Position behind its data."""
        return self.offset + self.stored


class TarWalk:
    """Walks over the members of a shard; between two of them the caller may read the data of the first.

    Args:
        source: The shard.
        notes: Where the faults of the shard are noted.
    """

    def __init__(self, source: ShardBytes, notes: Notes) -> None:
        self._source = source
        self._notes = notes
        self._first = source.position
        self._archive = 0
        self._ended = False
        self._dangling = False
        self._next = Extension()
        self._all = Extension()

    def members(self) -> Iterator[Member]:
        """Yield the files and links of all archives of the shard.

        Raises:
            DamagedShardError: The shard cannot be read on.
        """
        source = self._source
        while True:
            start = source.position
            block = source.read(BLOCK)
            header = sound_header(block)
            if not block.strip(b"\0"):
                if self._reaches_end(start, block):
                    return
            elif header is None:
                if not self._finds_header(start, block):
                    return
            else:
                if self._ended:
                    self._archive, self._ended, self._all = self._archive + 1, False, Extension()
                if header.kind in _EXTENDED:
                    self._extend(header, start)
                else:
                    yield from self._member(header)

    def _reaches_end(self, start: int, block: bytes) -> bool:
        """Pass over zeros and note what they mean in this place; True if nothing follows."""
        if self._dangling:
            self._notes.add(f"the member that an extended header before byte {start:,} announces is missing")
            self._next, self._dangling = Extension(), False
        if not block:
            if start == self._first:
                raise DamagedShardError("the shard cannot be read: the file is empty")
            if not self._ended:
                self._notes.add(
                    f"the shard has no end mark behind byte {start:,}: it was cut between two members or never "
                    "finished, and what may have followed is missing"
                )
            return True
        self._ended = True
        zeros, follows = len(block), False
        for piece in self._source.pieces():
            blank = len(piece) - len(piece.lstrip(b"\0"))
            zeros += blank
            if blank < len(piece):
                self._source.unread(piece[blank // BLOCK * BLOCK :])
                follows = True
                break
        if zeros > _MOST_ZEROS:
            self._notes.add(
                f"{zeros:,} zero bytes stand behind byte {start:,}, more than a tar ends with: perhaps a transfer "
                "that was never finished"
            )
        return not follows

    def _finds_header(self, start: int, block: bytes) -> bool:
        """Note a block that is no header and go on to the next sound one; False if there is none."""
        first = start == self._first
        if first and (words := foreign_format(block)):
            raise DamagedShardError(f"the shard cannot be read: it is no tar but {words}")
        found = self._search()
        if first and not found:
            raise no_tar(block)
        self._notes.add(no_header(start, self._source.position - start, found, self._ended))
        self._next, self._dangling = Extension(), False
        return found

    def _search(self) -> bool:
        for piece in self._source.pieces():
            place = piece.find(b"ustar")
            while place >= 0:
                head = place - 257
                if head >= 0 and head % BLOCK == 0 and sound_header(piece[head : head + BLOCK]):
                    self._source.unread(piece[head:])
                    return True
                place = piece.find(b"ustar", place + 1)
        return False

    def _extend(self, header: Header, start: int) -> None:
        source, kind = self._source, chr(header.kind)
        most = _MOST_NAME if kind in "LK" else _MOST_EXTENDED
        data = source.read(header.size) if header.size <= most else None
        end = start + BLOCK + header.size
        if not source.move_to(end):
            raise DamagedShardError(
                f"the shard cannot be read to its end: it is cut inside the extended header at byte {start:,}"
            )
        source.move_to(end + -header.size % BLOCK)
        if data is None:
            self._notes.add(
                f"the extended header at byte {start:,} is not read: {header.size:,} bytes are too many"
            )
        elif kind == "L":
            self._next.name = text_of(data.split(b"\0", 1)[0])
        elif kind == "K":
            self._next.target = text_of(data.split(b"\0", 1)[0])
        elif not read_pax(data, self._all if kind == "g" else self._next):
            self._notes.add(f"the extended header at byte {start:,} is damaged")
        self._dangling = self._dangling or kind != "g"

    def _member(self, header: Header) -> Iterator[Member]:
        source, start = self._source, self._source.position
        extension = self._next.over(self._all)
        self._next, self._dangling = Extension(), False
        size = header.size if extension.size is None else extension.size
        kind = chr(header.kind)
        name = extension.name or header.name
        data = size if kind not in "123456" or (kind == "1" and size and self._data_follows()) else 0
        member: Member | None = Member(name, self._archive, start, data, data)
        if kind in "3456DNV" or name.endswith("/"):
            member = None
        elif kind in "12" and not data:
            target = extension.target or header.target
            member = Member(name, self._archive, start, 0, 0, target, kind == "2")
        elif kind == "M":
            problem = "it is the rest of a file that begins in an earlier volume of the tar"
            member = Member(name, self._archive, start, data, data, problem=problem)
        elif kind == "S" or extension.sparse:
            member = self._with_holes(header, extension, Member(name, self._archive, start, data, data))
        end = member.end if member else start + data
        if member and (source.size is None or end <= source.size):
            yield member
        if not source.move_to(end):
            raise cut_short(name, end - source.position)
        source.move_to(end + -(end - self._first) % BLOCK)

    def _data_follows(self) -> bool:
        """Say whether a hard link has data of its own: POSIX allows it, others keep a size without data."""
        block = self._source.read(BLOCK)
        self._source.unread(block)
        return bool(block.strip(b"\0")) and sound_header(block) is None

    def _with_holes(self, header: Header, extension: Extension, member: Member) -> Member:
        source = self._source
        name = extension.sparse_value("name") or member.name
        old = header.kind == ord("S")
        size = header.real_size if old else natural(extension.sparse_value("realsize", "size") or "")
        sparse: SparseMap | None = None
        try:
            if old:
                sparse = old_sparse_map(header.block, source, number_of)
            elif extension.sparse_value("major") == "1":
                sparse = sparse_map_in_data(source, member.stored)
            else:
                sparse = pax_sparse_map(extension.sparse)
        except SparseMapError:
            pass
        offset = source.position
        stored = member.stored if old else max(0, member.end - offset)
        problem = None
        if sparse is None or size is None or not fits(sparse, stored, size):
            problem, sparse = "the map of its holes is damaged", None
        return Member(name, member.archive, offset, stored, size or stored, None, False, sparse, problem)
