"""What a labelling run is asked before it starts; light, for the command line asks before torch and Ray are there."""

from ovss_core.check import validate
from ovss_core.config import SegmenterConfig
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import Vocabulary
from pipelines.preflight import check_run, require_apart, require_region_maps
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions


def check_label(
    source: SourceOptions,
    run: RunOptions,
    pools: PoolOptions,
    segmenter: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: DescriptionChoice = None,
) -> list[str]:
    """Refuse a labelling run that cannot work; nothing is loaded, started or written.

    Returns:
        Warnings for `say_once`.

    Raises:
        ConfigError, ModelError, WeightsError: As `ovss_core.check.validate`, or options that contradict each other.
    """
    warnings = validate(segmenter, vocabulary, choose_descriptions(descriptions, vocabulary, segmenter))
    waits = check_run(run, pools, source.fetch_timeout_s)
    require_region_maps(source.region_maps, segmenter)
    require_apart({**source.kind.places(), "--region-maps": source.region_maps}, run.output)
    return [*warnings, *waits]
