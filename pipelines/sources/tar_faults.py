"""What is wrong with a shard, in words that say which bytes are at fault and what is missing."""

from dataclasses import dataclass, field

from pipelines.sources.tar_bytes import BLOCK, DamagedShardError

_NOTES = 3


@dataclass(slots=True)
class Notes:
    """What is wrong with a shard as a whole: the first faults in words, the others counted."""

    texts: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, text: str) -> None:
        """Note one fault."""
        if len(self.texts) < _NOTES:
            self.texts.append(text)
        else:
            self.more += 1

    def summary(self) -> str | None:
        """Return all faults in one line; None where there are none."""
        rest = [f"and {self.more:,} more faults"] if self.more else []
        return "; ".join([*self.texts, *rest]) or None


def cut_short(name: str, missing: int) -> DamagedShardError:
    """Return the error for a shard that ends `missing` bytes before the end of a member."""
    return DamagedShardError(
        f"the shard cannot be read to its end: the last {missing:,} bytes of {shown(name)} are missing, and all "
        "that followed"
    )


def shown(name: str) -> str:
    """Return a member's name as it may stand in a message: one line, not too long."""
    short = name if len(name) <= 100 else f"...{name[-97:]}"
    return short if short.isprintable() else repr(short)


def no_tar(block: bytes) -> DamagedShardError:
    """Return the error for a file that begins with no header and holds none anywhere."""
    begins = f"it begins with {block[:16]!r}"
    if len(block) < BLOCK:
        return DamagedShardError(
            f"the shard cannot be read to its end: its {len(block)} bytes are less than a header of a tar ({begins})"
        )
    if block[257:262] == b"ustar":
        return DamagedShardError(
            "the shard cannot be read: its first header is damaged, and no sound one follows"
        )
    return DamagedShardError(f"the shard cannot be read: it is no tar ({begins})")


def no_header(start: int, length: int, found: bool, ended: bool) -> str:
    """Say what bytes are that stand where a header should.

    Args:
        start: Position of the first of them.
        length: How many there are before the next sound header or the end.
        found: Whether a sound header follows.
        ended: Whether they stand behind an end mark.
    """
    if ended:
        text = f"{length:,} bytes behind the end of the tar at byte {start:,} are no tar"
        return f"{text}; what follows them was read" if found else text
    if found:
        return (
            f"the header at byte {start:,} is damaged; the next sound one is at byte {start + length:,}, and what "
            "lies between is lost"
        )
    if length < BLOCK:
        return (
            f"the shard cannot be read to its end: it is cut inside the header at byte {start:,}, of which "
            f"{length:,} bytes are there"
        )
    return (
        f"the shard cannot be read to its end: the header at byte {start:,} is damaged, and no sound one is in the "
        f"{length:,} bytes from there on"
    )
