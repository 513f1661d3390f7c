"""What a user may set about the speed benchmark."""

from dataclasses import dataclass, field
from pathlib import Path

from ovss_core.config import ModelConfig


@dataclass(frozen=True)
class BenchmarkConfig:
    """What to measure and how long to take over it.

    Attributes:
        images: Folder of photographs; None draws scenes of 375 x 500 pixels.
        image_count: Pictures of the engine's tables.
        repeats: Turns of each candidate; medians are reported.
        model: The image tower; random weights cost what real ones cost.
        device: Where to compute; None takes a GPU where there is one.
        threads: Threads of torch; None leaves torch's choice.
        window_batch: Windows encoded at once, by the floor too; None takes the engine's choice for the device.
        vocabularies: Numbers of classes of the end-to-end table.
        ray_images: Pictures of the Ray comparison; 0 leaves it out.
        ray_models: Models of the Ray comparison: the first gives `ray_over_engine`; a light one shows Ray's own
            cost best, and the last, which should be one, measures actors and numbers of images.
        scaling: Also measure 1 and 2 actors, many small images, and the driver's memory.
        compiled: Also measure torch.compile, which takes a minute to compile.
    """

    images: Path | None = None
    image_count: int = 4
    repeats: int = 3
    model: ModelConfig = field(default_factory=lambda: ModelConfig("ViT-B-16-quickgelu", "random"))
    device: str | None = None
    threads: int | None = None
    window_batch: int | None = None
    vocabularies: tuple[int, ...] = (21, 60, 150, 1200)
    ray_images: int = 500
    ray_models: tuple[str, ...] = ("ViT-B-16-quickgelu", "demo")
    scaling: bool = True
    compiled: bool = True
