"""What a user may set about a run, apart from what decides the masks; every job takes these."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ovss_core.errors import ConfigError
from pipelines.run.events import LogFormat
from pipelines.sources.kinds import SOURCE_KINDS, SourceKind
from pipelines.sources.kinds.base import offering

if TYPE_CHECKING:
    from pipelines.sources import Source

FETCH_SHARE = 3
"""What share of `no_progress_s` one image may take to arrive: a server that is silent must not end the run."""


@dataclass(frozen=True)
@offering(SOURCE_KINDS)
class SourceOptions:
    """Where the images come from; exactly one kind of source is given, by its first setting.

    Raises:
        ConfigError: None or several of them, or settings that do not go together.

    Attributes:
        max_bytes: Image files with more bytes are refused before they are read.
        fetch_timeout_s: Seconds that one image may take to arrive, tries and waits included; at most a third of
            no_progress_s.
        region_maps: Folder of region maps that a mask generator made: PNGs named as the images' ids, ending in .png,
            whose pixels hold the number of their region, 0 for none (or three channels, as COCO's panoptic files).
    """

    max_bytes: int = 1 << 28
    fetch_timeout_s: float = 60.0
    region_maps: str | None = None

    if TYPE_CHECKING:  # the kinds' settings are fields that only a running program knows

        def __init__(
            self, *, max_bytes: int = ..., fetch_timeout_s: float = ..., **of_kinds: str | None
        ) -> None: ...

    def __post_init__(self) -> None:
        places = [kind.names()[0] for kind in SOURCE_KINDS]
        given = [name for name in places if getattr(self, name)]
        if len(given) != 1:
            flags = [kind.flags()[0] for kind in SOURCE_KINDS]
            raise ConfigError(
                f"give exactly one of {', '.join(flags[:-1])} and {flags[-1]}; got {', '.join(given) or 'none'}"
            )
        for kind in SOURCE_KINDS:
            others = kind.flags()[1:]
            if kind.names()[0] not in given and any(getattr(self, name) for name in kind.names()[1:]):
                verb = "goes" if len(others) == 1 else "go"
                raise ConfigError(
                    f"{' and '.join(others)} {verb} with {kind.flags()[0]}; leave {'it' if verb == 'goes' else 'them'} out here"
                )
        if self.max_bytes < 1:
            raise ConfigError(f"max_bytes is {self.max_bytes}; give at least 1")
        if not self.fetch_timeout_s > 0:
            raise ConfigError(f"fetch_timeout_s is {self.fetch_timeout_s}; give more than 0 seconds")

    @property
    def kind(self) -> SourceKind:
        """The kind of source that was given."""
        chosen = next(kind for kind in SOURCE_KINDS if getattr(self, kind.names()[0]))
        return chosen(**{name: getattr(self, name) for name in chosen.names()})

    @property
    def place(self) -> str:
        """Where the images lie, as it was given."""
        return str(getattr(self, self.kind.names()[0]))

    def open(self) -> "Source":
        """Open the source that was given.

        Raises:
            ConfigError: The settings do not fit it.
            StorageError: Nothing is there.
        """
        return self.kind.open()


@dataclass(frozen=True)
class RunOptions:
    """Where the results go, and what happens if some are there already.

    Attributes:
        output: Folder for everything the run writes; local path or URI. A run that was interrupted goes on.
        overwrite: Remove what an earlier run of ovss wrote into the output folder, and start anew.
        retry_failed: Try the images again that failed before.
        shard_size: Images of one part, the unit in which work is finished.
        file_bytes: Bytes of one file of finished rows, about; parts are put together at the end.
        previews: How many images to show on the page _previews/index.html.
        report: Write the page _report/index.html at the end, as ovss report does.
        address: Ray cluster to join ("auto": the one on this machine); the default starts one here, unless
            RAY_ADDRESS says otherwise.
        cluster_wait_s: Wait up to so many seconds for nodes that are still to join; the workers are planned from
            what is there then.
        no_progress_s: Give up when nothing moves for so many seconds.
        grace_s: Seconds that SIGTERM leaves for storing what is finished; a second signal ends at once.
        progress_s: Seconds between lines that say how far the run is.
        plain: Write lines on a terminal, too, where a live display would be.
        log_format: Whether these lines, and those of the file in the output's folder _log, are text or JSON objects.
        verbose: Show Ray's own messages.
    """

    output: str
    overwrite: bool = False
    retry_failed: bool = False
    shard_size: int = 256
    file_bytes: int = 1 << 28
    previews: int = 0
    report: bool = False
    address: str | None = None
    cluster_wait_s: float = 0.0
    no_progress_s: float = 600.0
    grace_s: float = 25.0
    progress_s: float = 10.0
    plain: bool = False
    log_format: LogFormat = "text"
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.shard_size < 1 or self.previews < 0:
            raise ConfigError(
                f"shard_size is {self.shard_size} and previews {self.previews}; give at least 1 and 0"
            )
        if self.file_bytes < 1:
            raise ConfigError(f"file_bytes is {self.file_bytes}; give at least 1")
        if not self.cluster_wait_s >= 0:
            raise ConfigError(f"cluster_wait_s is {self.cluster_wait_s}; give at least 0 seconds")
        if not self.grace_s >= 0:
            raise ConfigError(f"grace_s is {self.grace_s}; give at least 0 seconds")
        for name in ("no_progress_s", "progress_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give more than 0 seconds")
        if self.overwrite and self.retry_failed:
            raise ConfigError("--overwrite starts anew and --retry-failed goes on; give one of them")


@dataclass(frozen=True)
class PoolOptions:
    """How many workers, and what each may use; the defaults follow from the cluster.

    Attributes:
        actors: Workers of stage 1 (encoder and purification). 4:64 begins with 4 and lets nodes that join add workers up to
            64, as --actors 4 --max-actors 64.
        max_actors: Workers of stage 1 that there may be as nodes join; those of stage 2 grow with them, unless their number
            is given. Unset: their number is fixed.
        finish_actors: Workers of stage 2 (ambiguous regions and masks); 0 lets those of stage 1 do both.
        num_gpus: GPUs of a worker of stage 1, a fraction to share one; 0 computes on CPUs.
        finish_gpus: The same for stage 2.
        num_cpus: Logical CPUs that each worker reserves.
        torch_threads: Threads of a worker on CPUs.
        batch_size: Images that a worker takes at once; larger fills a GPU better and takes more memory.
        device: Where workers compute; "auto" is their GPU where they have one.
    """

    actors: int | None = None
    max_actors: int | None = None
    finish_actors: int | None = None
    num_gpus: float | None = None
    finish_gpus: float | None = None
    num_cpus: float | None = None
    torch_threads: int | None = None
    batch_size: int | None = None
    device: str = "auto"

    @property
    def wants_cpus(self) -> bool:
        """Whether the user asked for workers without GPUs."""
        return self.num_gpus == 0 or self.device.startswith("cpu")

    @property
    def wants_gpus(self) -> bool:
        """Whether the user asked for workers with GPUs by name; left open, they take what there is."""
        return not self.wants_cpus and (bool(self.num_gpus) or self.device.startswith("cuda"))

    def __post_init__(self) -> None:
        for name, least in (
            ("actors", 1),
            ("max_actors", 1),
            ("finish_actors", 0),
            ("num_gpus", 0),
            ("finish_gpus", 0),
            ("num_cpus", 0),
            ("torch_threads", 1),
            ("batch_size", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ConfigError(f"{name} is {value}; give at least {least}")
        if self.max_actors is not None and self.max_actors < (self.actors or 1):
            raise ConfigError(
                f"max_actors is {self.max_actors}, below actors {self.actors}; give as many at least"
            )
