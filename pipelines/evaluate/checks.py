"""What an evaluation is asked before it starts; light, for the command line asks before torch and Ray are there."""

from dataclasses import replace

from ovss_core.check import background_policy, validate, vocabulary_warnings
from ovss_core.clip.licenses import license_warning
from ovss_core.config import SegmenterConfig, SfpConfig
from ovss_core.errors import ConfigError
from ovss_core.evaluation.benchmarks import get_benchmark
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import Descriptions, Vocabulary, require_descriptions
from pipelines.evaluate.options import PairOptions
from pipelines.preflight import check_run, require_apart, require_region_maps
from pipelines.run.options import PoolOptions, RunOptions


def check_evaluate(
    pairs: PairOptions,
    run: RunOptions,
    pools: PoolOptions,
    segmenter: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: DescriptionChoice = None,
) -> list[str]:
    """Refuse an evaluation that cannot work; as `pipelines.label.checks.check_label`.

    The rows of a grid choose their own hosts and parts, so only what they share is checked for it.
    """
    if pairs.grid:
        own = None if descriptions == "shipped" else descriptions
        warnings = _check_grid(segmenter, vocabulary, own, own=not pairs.benchmark)
    else:
        warnings = validate(segmenter, vocabulary, choose_descriptions(descriptions, vocabulary, segmenter))
    waits = check_run(run, pools, pairs.fetch_timeout_s)
    if segmenter.labels.min_confidence > 0:
        raise ConfigError(
            "--min-confidence leaves pixels without a label, and a measurement counts all; leave it out here"
        )
    require_region_maps(pairs.region_maps, segmenter)
    if segmenter.regions.min_agreement:
        raise ConfigError(
            "regions.min_agreement ignores pixels, which an evaluation must label; leave it out here"
        )
    inputs = {"--images": pairs.images, "--masks": pairs.masks, "--region-maps": pairs.region_maps}
    require_apart(inputs, run.output)
    if pairs.masks and pairs.benchmark and get_benchmark(pairs.benchmark).ignores_zero:
        warnings = [
            *warnings,
            "the masks are read as positions in the vocabulary, from 0; the data set's own masks, where 0 is ignored, "
            f"want --benchmark {pairs.benchmark} --root instead",
        ]
    return [*warnings, *waits]


def _check_grid(
    segmenter: SegmenterConfig, vocabulary: Vocabulary, descriptions: Descriptions | None, own: bool
) -> list[str]:
    """Check what all rows share; on folders (`own`) they also take the windows and labels that were given."""
    if not own:
        warnings = validate(SegmenterConfig(segmenter.model, segmenter.host, proxy=segmenter.proxy))
        require_descriptions(vocabulary, descriptions)
        return warnings
    purification = replace(segmenter.purification, method="freecp")
    purified = replace(segmenter, purification=purification, sfp=SfpConfig())
    validate(purified, vocabulary, descriptions)
    policy = background_policy(purified, vocabulary)
    return [*license_warning(segmenter.model), *vocabulary_warnings(vocabulary, policy)]
