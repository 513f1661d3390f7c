"""What can be known to be wrong with a run before anything is loaded: settings, model, vocabulary, descriptions.

Every job and the Python API call `validate` first. It imports neither torch nor open_clip, so that a mistyped name
has its answer at once.
"""

from collections.abc import Iterator, Mapping, Sequence

from ovss_core.clip.architectures import Architecture, find_architecture
from ovss_core.clip.weight_sources import resolve_weights
from ovss_core.config import (
    HEAD_SETTINGS,
    BackgroundPolicy,
    LabelConfig,
    PurificationConfig,
    SegmenterConfig,
)
from ovss_core.errors import ConfigError, nearest
from ovss_core.head_names import require_host
from ovss_core.vocabulary import Vocabulary

Descriptions = Mapping[str, Sequence[str]]
_SHOWN_WARNINGS = 3


def validate(
    config: SegmenterConfig,
    vocabulary: Vocabulary | None = None,
    descriptions: Descriptions | None = None,
) -> list[str]:
    """Refuse settings that cannot work, and name those that can hardly be meant.

    Args:
        vocabulary: The classes; None checks what does not depend on them.
        descriptions: Sentences by class name.

    Returns:
        Warnings, one sentence each, for the caller to say once.

    Raises:
        ConfigError: A setting, or a combination of settings, cannot work.
        ModelError: The architecture is unknown, or ovss cannot take it apart.
        WeightsError: The weights are neither a file nor a tag, or the file holds no weights.
    """
    require_host(config.host)
    architecture = find_architecture(config.model.name)
    resolve_weights(config.model.name, config.model.pretrained)
    if architecture is not None:
        _require_patches(config, architecture)
        _require_blocks(config, architecture)
    warnings: list[str] = []
    if vocabulary is not None:
        policy = background_policy(config, vocabulary)
        require_descriptions(vocabulary, descriptions)
        warnings = vocabulary_warnings(vocabulary, policy)
    idle = [*_idle_settings(config, descriptions), *_idle_probability(config, vocabulary)]
    return [*warnings, f"without effect here: {'; '.join(idle)}"] if idle else warnings


def background_policy(config: SegmenterConfig, vocabulary: Vocabulary) -> BackgroundPolicy:
    """Resolve the background policy "auto" by vocabulary and method.

    Raises:
        ConfigError: The policy needs a background class and the vocabulary has none, or it is "residual"
            without purification.
    """
    policy = config.labels.background
    has_background = vocabulary.background_index is not None
    purifying = config.purification.active
    if policy == "auto":
        if not has_background:
            return "none"
        return "residual" if purifying else "first_class"
    if policy == "residual" and not purifying:
        raise ConfigError(
            'labels.background "residual" needs purification; use --purify freecp or "first_class"'
        )
    if policy == "none" and has_background and len(vocabulary) == 1:
        raise ConfigError(
            'labels.background is "none" but the vocabulary has no other class than "background"; add one'
        )
    if policy != "none" and not has_background:
        raise ConfigError(
            f'labels.background is {policy!r} but the vocabulary has no class "background"; add a line '
            '"background: sky, wall, floor" (or "background:" alone), or set labels.background to "none"'
        )
    return policy


def require_descriptions(vocabulary: Vocabulary, descriptions: Descriptions | None) -> None:
    """Refuse descriptions that belong to no class or hold no sentence.

    Raises:
        ConfigError: Naming the first of them.
    """
    given = descriptions or {}
    unknown = sorted(set(given) - set(vocabulary.names))
    if unknown:
        raise ConfigError(
            f"descriptions name classes that the vocabulary lacks: {', '.join(unknown[:5])}; remove them"
            f"{nearest(unknown[0], vocabulary.names)}"
        )
    for name, sentences in given.items():
        if isinstance(sentences, str) or not sentences or not all(map(_is_sentence, sentences)):
            raise ConfigError(
                f"the description of {name!r} is not a list of sentences; give at least one sentence"
            )


def _is_sentence(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _require_patches(config: SegmenterConfig, architecture: Architecture) -> None:
    patch, crops = architecture.patch_size, config.purification
    if config.windows.size < patch:
        raise ConfigError(
            f"windows of {config.windows.size} pixels are smaller than the model's patches of {patch}; give a larger "
            "windows.size"
        )
    if crops.needs_crops and crops.crop_size < patch:
        raise ConfigError(
            f"crops of {crops.crop_size} pixels are smaller than the model's patches of {patch}; give a larger "
            "purification.crop_size"
        )


def _require_blocks(config: SegmenterConfig, architecture: Architecture) -> None:
    sfp, last = config.sfp, architecture.depth - 1
    summed = config.host == "sfp" and sfp.variant == "paper" and sfp.attention_integration
    if summed and sfp.integration_start > last:
        raise ConfigError(
            f"sfp.integration_start is {sfp.integration_start}, but of the {architecture.depth} blocks of "
            f"{architecture.name} 1 to {last} are summed; give a number from 1 to {last}"
        )


def vocabulary_warnings(vocabulary: Vocabulary, policy: BackgroundPolicy) -> list[str]:
    """Name classes that can never win, and the one that always does.

    Args:
        policy: As `background_policy` resolves it; phrases of a background that does not compete take nothing.
    """
    return [*_shared_phrases(vocabulary, policy == "first_class"), *_lonely_class(vocabulary, policy)]


def _shared_phrases(vocabulary: Vocabulary, background_competes: bool) -> list[str]:
    """Name phrases that stand for two classes: the text tower reads no case, so one of them can never win."""
    first: dict[str, int] = {}
    found = []
    for phrase, index in zip(vocabulary.phrases, vocabulary.phrase_class.tolist(), strict=True):
        if index == vocabulary.background_index and not background_competes:
            continue
        owner = first.setdefault(" ".join(phrase.split()).casefold(), index)
        if owner != index:
            names = vocabulary.names[owner], vocabulary.names[index]
            found.append(
                f"the phrase {phrase!r} stands for the classes {names[0]!r} and {names[1]!r}, whose scores are then "
                f"equal: {names[1]!r} can never win by it; give it to one of them"
            )
    more = len(found) - _SHOWN_WARNINGS
    return (
        [*found[:_SHOWN_WARNINGS], f"{more} more phrases stand for two classes each"] if more > 0 else found
    )


def _lonely_class(vocabulary: Vocabulary, policy: BackgroundPolicy) -> list[str]:
    rivals = [name for index, name in enumerate(vocabulary.names) if index != vocabulary.background_index]
    if policy != "none" or len(rivals) > 1:
        return []
    return [
        f"every pixel will be {rivals[0]!r}: the vocabulary has no other class and no background; add a class, or the "
        'line "background: sky, wall, floor"'
    ]


def _idle_settings(config: SegmenterConfig, descriptions: Descriptions | None) -> Iterator[str]:
    """Yield the settings that were changed and that nothing of this run will read."""
    purification, purifying = config.purification, config.purification.active
    if purifying:
        acting = {
            name: getattr(config.labels, name) for name in ("background", "confidence", "min_confidence")
        }
        changed = _changed(config.labels, LabelConfig(**acting), "labels")
        yield from (f"{name} (it goes with --purify none)" for name in changed)
        if purification.thresholds == "auto":
            given = PurificationConfig().redundancy_threshold
            if purification.redundancy_threshold != given:
                yield "purification.redundancy_threshold (it goes with purification.thresholds fixed)"
    else:
        changed = _changed(purification, PurificationConfig(method="none"), "purification")
        yield from (f"{name} (it goes with --purify freecp)" for name in changed)
    for head in sorted(HEAD_SETTINGS - {config.host}):
        settings = getattr(config, head)
        changed = _changed(settings, type(settings)(), head)
        yield from (f"{name} (it goes with --host {head})" for name in changed)
    if descriptions and not (purifying and purification.ambiguity):
        yield "descriptions (they go with --purify freecp and purification.ambiguity)"


def _idle_probability(config: SegmenterConfig, vocabulary: Vocabulary | None) -> Iterator[str]:
    if vocabulary is None or config.purification.active or config.labels.min_probability == 0:
        return
    if vocabulary.background_index is None:
        yield "labels.min_probability (the vocabulary has no background class)"
    elif config.labels.background == "none":
        yield 'labels.min_probability (labels.background is "none")'


def _changed(settings: object, defaults: object, prefix: str) -> list[str]:
    """Name the fields in which settings differ from their defaults."""
    return [f"{prefix}.{name}" for name, value in vars(settings).items() if value != getattr(defaults, name)]
