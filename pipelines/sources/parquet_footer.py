"""The footer of a Parquet file: where the columns of its row groups lie.

pyarrow has the same numbers, but looking at those of one column ends the whole process where the column's
statistics are damaged (pyarrow 26: a C++ exception that its Python layer does not catch).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.sources.parquet_thrift import I32, I64, LIST, STRUCT, Fields, read_struct

_CODECS = {1: "snappy", 2: "gzip", 3: "lzo", 4: "brotli", 5: "lz4_raw", 6: "zstd", 7: "lz4_raw"}


@dataclass(frozen=True)
class Leaf:
    """One column of one row group, as the footer claims; a struct has one a field.

    Attributes:
        index: Place among the columns.
        name: Path of the column, its pieces joined by dots.
        start: Where its first page begins.
        packed: Bytes in the file.
        unpacked: Bytes of all pages when they are unpacked.
        values: Values, nulls and elements of lists included.
        codec: Name for `pyarrow.Codec`; None where pages are not packed.
    """

    index: int
    name: str
    start: int
    packed: int
    unpacked: int
    values: int
    codec: str | None


class Footer:
    """The row groups of a file.

    Args:
        data: The footer's bytes, without length and magic.

    Raises:
        ValueError: The footer is damaged.
    """

    def __init__(self, data: bytes) -> None:
        try:
            fields, _ = read_struct(data)
        except IndexError:
            raise ValueError("the footer is damaged: it goes on behind its end") from None
        self._groups: list[Any] = fields.get((4, LIST), [])

    def leaves(self, group: int, columns: Sequence[str]) -> Iterator[Leaf]:
        """Yield what belongs to columns in a row group.

        Raises:
            ValueError: The footer is damaged.
        """
        row_group = self._groups[group] if group < len(self._groups) else None
        if not isinstance(row_group, dict):
            raise ValueError(f"the footer is damaged: it has no row group {group}")  # noqa: TRY004
        for index, chunk in enumerate(row_group.get((1, LIST), [])):
            facts = chunk.get((3, STRUCT), {}) if isinstance(chunk, dict) else {}
            pieces = facts.get((3, LIST), [])
            name = b".".join(piece for piece in pieces if isinstance(piece, bytes)).decode("utf-8", "replace")
            if any(f"{name}.".startswith(f"{column}.") for column in columns):
                yield _leaf(index, name, facts)


def _leaf(index: int, name: str, facts: Fields) -> Leaf:
    def number(field: int) -> int:
        value: int = facts.get((field, I64), -1)
        return value

    start, dictionary = number(9), number(11)
    if 0 < dictionary < start:  # the rule that pyarrow has
        start = dictionary
    codec = facts.get((4, I32), 0)
    return Leaf(index, name, start, number(7), number(6), number(5), _CODECS.get(codec) if codec else None)
