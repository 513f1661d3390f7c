"""What a labelling run is asked before it starts; light, for the command line asks before torch and Ray are there."""

from ovss_core.check import background_policy, validate
from ovss_core.config import SegmenterConfig
from ovss_core.errors import ConfigError
from ovss_core.shipped_descriptions import DescriptionChoice, choose_descriptions
from ovss_core.vocabulary import MAX_CLASSES, Vocabulary
from pipelines.label.options import WordOptions
from pipelines.label.word_use import OwnWords, known_words
from pipelines.preflight import check_run, require_apart, require_region_maps
from pipelines.run.options import PoolOptions, RunOptions, SourceOptions


def check_label(
    source: SourceOptions,
    run: RunOptions,
    pools: PoolOptions,
    segmenter: SegmenterConfig,
    vocabulary: Vocabulary,
    descriptions: DescriptionChoice = None,
    words: WordOptions | None = None,
) -> list[str]:
    """Refuse a labelling run that cannot work; nothing is loaded, started or written.

    Returns:
        Warnings for `say_once`.

    Raises:
        ConfigError, ModelError, WeightsError: As `ovss_core.check.validate`, or options that contradict each other.
    """
    sentences = choose_descriptions(descriptions, vocabulary, segmenter)
    own = OwnWords.of(words or WordOptions(), vocabulary)
    if words is not None and own is not None:
        _require_words(segmenter, vocabulary, words, own)
    few = own is not None and len(vocabulary) == 1  # alone it would be a mistake
    warnings = validate(segmenter, None if few else vocabulary, sentences)
    waits = check_run(run, pools, source.fetch_timeout_s)
    require_region_maps(source.region_maps, segmenter)
    require_apart({**source.kind.places(), "--region-maps": source.region_maps}, run.output)
    return [*warnings, *waits]


def _require_words(
    segmenter: SegmenterConfig, vocabulary: Vocabulary, words: WordOptions, own: OwnWords
) -> None:
    known_words(vocabulary, words)
    if segmenter.purification.method == "car":
        raise ConfigError(
            "--purify car reads the words of a run in prompts of its own, beforehand; with words of each image give "
            "--purify freecp or none"
        )
    if own.largest > MAX_CLASSES:
        raise ConfigError(
            f"max_own_words is {own.most}; with the {own.common} classes of the vocabulary an image might have more than "
            f"{MAX_CLASSES}; give fewer"
        )
    # each image's own vocabulary has a background where the common one has
    background_policy(segmenter, vocabulary)
