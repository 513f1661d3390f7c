"""The settings of a training, apart from the training itself: reading them needs no torch."""

from dataclasses import dataclass

from ovss_core.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig:
    """How the demonstration model is trained.

    Attributes:
        scenes: Number of scenes drawn for training.
        word_steps: Steps of the text tower alone, before the others.
        small_steps: Steps on crops of 112 pixels, the first part.
        small_batch: Crops a step in the first part.
        large_steps: Steps on windows of 224 pixels, the second part; every fourth stays at 112 pixels.
        large_batch: Windows a step in the second part.
        learning_rate: Peak of the learning rate; it rises over `warmup_steps`, stays, and falls to zero over the second part.
        warmup_steps: Steps over which the learning rate rises.
        weight_decay: Weight decay of the towers' matrices.
        seed: Seed of the initial weights and of every draw.
        lanes: Parts of a batch that are computed side by side, one thread each; their gradients are averaged.
        checkpoint_every: Steps between checkpoints.
        check_every: Steps between quick measurements.
        check_scenes: Held-out scenes of a quick measurement; 0 for none.
        workers: Processes that draw scenes; None for one a core.
    """

    scenes: int = 8_000
    word_steps: int = 100
    small_steps: int = 4200
    small_batch: int = 32
    large_steps: int = 3700
    large_batch: int = 12
    learning_rate: float = 1e-3
    warmup_steps: int = 150
    weight_decay: float = 0.02
    seed: int = 0
    lanes: int = 2
    checkpoint_every: int = 100
    check_every: int = 500
    check_scenes: int = 16
    workers: int | None = None

    def __post_init__(self) -> None:
        wrong = [
            name
            for name in ("scenes", "small_batch", "large_batch", "lanes", "checkpoint_every", "check_every")
            if getattr(self, name) < 1
        ]
        if wrong or self.small_steps < 0 or self.large_steps < 0 or self.steps == 0:
            raise ConfigError(
                f"a training needs at least one scene, step and crop a step, got {self}; raise {', '.join(wrong) or 'the steps'}"
            )

    @property
    def steps(self) -> int:
        """Steps of both parts."""
        return self.small_steps + self.large_steps
