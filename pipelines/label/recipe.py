"""A labelling stage as a function over an iterator of batches, which is how Spark and loops of one's own call it.

What is sent to workers is a recipe: settings and the encoded vocabulary, without weights. A process builds the stage
when its first batch comes, and keeps it for all further ones.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow as pa

from ovss_core.api import encode_words
from ovss_core.clip.weights import load_clip
from ovss_core.config import SegmenterConfig
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import Vocabulary
from pipelines.label.batches import as_given
from pipelines.label.label_stage import LabelStage

_STAGES_KEPT = 4
_building = threading.Lock()


def encode_vocabulary(
    config: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: DescriptionChoice = "shipped",
    device: str = "cpu",
) -> bytes:
    """Encode a vocabulary once for all workers, which takes longer than an image.

    Args:
        descriptions: Sentences by class name for the ambiguity step; "shipped" takes those of a shipped vocabulary.
        device: Where the text tower runs.

    Returns:
        What the stages take as ``text``: about 2 kB a phrase with ViT-B.

    Raises:
        ConfigError, WeightsError: The settings or the weights do not fit.
    """
    sentences = choose_descriptions(descriptions, vocabulary, config)
    return encode_words(load_clip(config.model), config, vocabulary, sentences, device).to_bytes()


@dataclass(frozen=True)
class StageRecipe:
    """What a stage is built from; a call takes batches and yields them worked on, every row in one row.

    Each batch may be a `pyarrow.RecordBatch`, a `pyarrow.Table` or a `pandas.DataFrame`, and is given back as such, so
    that a recipe is what ``mapInArrow`` and ``mapInPandas`` of Spark take. It can be pickled.

    Attributes:
        stage: `SegmentStage`, `ProposeStage` or `FinishStage`.
        config: Decides what every image gets.
        text: What `encode_vocabulary` gave.
        rows: Images of one call of the stage; larger batches are cut, so that a batch of thousands takes no more memory.
        options: Further arguments of the stage by name, such as ``image_column`` or ``device``.
    """

    stage: type[LabelStage]
    config: SegmenterConfig
    text: bytes
    rows: int = 32
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> LabelStage:
        """Return the stage of this process, built at the first call."""
        recipe: Any = (self.stage, self.config, self.text, tuple(sorted(self.options.items())))
        with _building:
            return _built(*recipe)

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches with the stage's columns, cut to `rows`; an empty one gives none.

        Raises:
            ConfigError: A batch lacks the stage's column, or it holds something else.
        """
        stage = self.build()
        for batch in batches:
            for start in range(0, len(batch), self.rows):
                yield as_given(stage(_cut(batch, start, self.rows)), batch)

    def output_schema(self, given: pa.Schema) -> pa.Schema:
        """Return the columns that tables of these columns have after the stage; nothing is built for that.

        Raises:
            ConfigError: The stage's column is missing.
        """
        return self.stage.output_schema(given, self.options.get("image_column", "image"))


@lru_cache(_STAGES_KEPT)
def _built(
    stage: Any, config: SegmenterConfig, text: bytes, options: tuple[tuple[str, Any], ...]
) -> LabelStage:
    built: LabelStage = stage(config, text, **dict(options))
    return built


def _cut(batch: Any, start: int, rows: int) -> Any:
    return batch.slice(start, rows) if hasattr(batch, "slice") else batch.iloc[start : start + rows]
