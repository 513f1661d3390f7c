"""What a user may set about the search for over-activated channels."""

from dataclasses import dataclass

from ovss_core.errors import ConfigError


@dataclass(frozen=True)
class ChannelOptions:
    """How over-activated channels are looked for.

    Attributes:
        count: Number of images to look at.
        threshold: A channel dominates a patch when it holds more than this many times an equal share of it.
        least: Share of all patches, blocks counted apart, that a channel must dominate to be listed.
        device: Where to compute: cpu, or cuda for a GPU.
    """

    count: int = 100
    threshold: float = 5.0
    least: float = 0.001
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--count is {self.count}; give at least 1")
        if not self.threshold > 0:
            raise ConfigError(f"--threshold is {self.threshold}; give a number above 0")
        if not 0 < self.least <= 1:
            raise ConfigError(f"--least is {self.least}; give a share above 0, up to 1")
