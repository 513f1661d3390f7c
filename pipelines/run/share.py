"""Which of several independent jobs an image belongs to."""

import re
from dataclasses import dataclass
from hashlib import blake2b

from ovss_core.errors import ConfigError

_SHARE = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Share:
    """One of `jobs` parts of a corpus that are labelled independently, by number from 1."""

    number: int
    jobs: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Read ``2/8``.

        Raises:
            ConfigError: It is something else.
        """
        match = _SHARE.fullmatch(text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(
                f"shard is {text!r}; give I/N, such as 2/8 for the second of eight jobs, with I from 1 to N"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """Name of the folder of this job's output below that of all."""
        return f"shard-{self.number:05d}-of-{self.jobs:05d}"

    def holds(self, name: str) -> bool:
        """Say whether an image or container is this job's."""
        return place_of("", name) % self.jobs == self.number - 1


def place_of(seed: str, name: str) -> int:
    """Return where a name stands among all in the order of a seed, from 0 to 2^64 - 1."""
    data = f"{seed}\0{name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
