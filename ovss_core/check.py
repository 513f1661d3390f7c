"""What can be known to be wrong with a run before anything is loaded: settings, model, vocabulary, descriptions.

Every job and the Python API call `validate` first. It imports neither torch nor open_clip, so that a mistyped name
has its answer at once; only whether several hosts can be read together is asked of the heads themselves.
"""

from collections.abc import Collection, Iterator

from ovss_core.clip.architectures import Architecture, find_architecture
from ovss_core.clip.channels import require_channels
from ovss_core.clip.licenses import license_warning
from ovss_core.clip.weight_sources import resolve_weights
from ovss_core.config import (
    HEAD_SETTINGS,
    REFINER_SETTINGS,
    BackgroundPolicy,
    CarConfig,
    LabelConfig,
    ProxyConfig,
    PurificationConfig,
    SegmenterConfig,
)
from ovss_core.errors import ConfigError
from ovss_core.head_names import (
    classless_hosts,
    proxy_hosts,
    require_host,
    require_refiner,
    scope_hosts,
)
from ovss_core.proxy_families.registry import TowerChoice, find_tower, license_notice, tower_names
from ovss_core.proxy_families.weight_sources import require_proxy_weights
from ovss_core.vocabulary import Descriptions, Vocabulary, require_descriptions

_SHOWN_WARNINGS = 3
_USUAL_DEPTH = 12
_MANY_WORDS = 60


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
    for host in config.hosts:
        require_host(host)
    tower = _require_tower(config)
    require_refiner(config.refine)
    _require_scope(config)
    architecture = find_architecture(config.model.name)
    resolve_weights(config.model.name, config.model.pretrained)
    _require_more_than_votes(config)
    if "rfclip" in config.hosts:
        require_channels(config.model, config.rfclip.channels)
    if architecture is not None:
        _require_patches(config, architecture)
        _require_blocks(config, architecture)
        require_class_token(config, architecture.class_token)
    _require_company(config, architecture)
    warnings = license_warning(config.model)
    if tower is not None and (notice := license_notice(tower)):
        warnings.append(notice)
    if vocabulary is not None:
        policy = background_policy(config, vocabulary)
        require_descriptions(vocabulary, descriptions)
        warnings += [*vocabulary_warnings(vocabulary, policy), *_many_pictures(config, vocabulary)]
    if config.purification.active and config.purification.thresholds == "auto":
        warnings.append(
            'purification.thresholds "auto" is now called "distractors": it compares with words from elsewhere, and keeps '
            "more than one absent word an image where these look like what is there"
        )
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
    if policy == "auto":
        if not has_background:
            return "none"
        return "first_class" if config.purification.own_scores else "residual"
    if policy == "residual" and config.purification.own_scores:
        raise ConfigError(
            'labels.background "residual" needs purification; use --purify freecp (not in its form "filter"), or '
            '"first_class"'
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


def _require_more_than_votes(config: SegmenterConfig) -> None:
    filters = config.purification.method != "none" and config.purification.own_scores
    if filters and "cliptrase" in config.hosts and config.cliptrase.clustering:
        raise ConfigError(
            "cliptrase.clustering gives a patch to one word, which leaves purification nothing to filter; use another "
            "form of --purify or --variant, or turn clustering off"
        )


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


def _require_tower(config: SegmenterConfig) -> TowerChoice | None:
    """Look up the second tower that a head needs; None where it needs none.

    Raises:
        ConfigError: It needs one and none is named, no tower has that name, or it does not fit scale and windows.
        WeightsError: The tower's weights are no file of weights.
    """
    proxy = config.proxy
    choice = None if proxy.name is None else find_tower(proxy.name)
    if not config.needs_proxy:
        return None
    if choice is None:
        raise ConfigError(
            f"host {_first_in(config, proxy_hosts())!r} needs a second tower beside CLIP; give --proxy, such as vit_base_patch16_224.dino (or "
            f"one of {', '.join(tower_names())})"
        )
    require_proxy_weights(proxy)
    if choice.patch_size % proxy.scale:
        raise ConfigError(
            f"proxy.scale {proxy.scale} does not divide the patches of {choice.name}, {choice.patch_size} pixels; give 1, "
            "2 or another divisor"
        )
    if config.windows.size < choice.patch_size // proxy.scale:
        raise ConfigError(
            f"windows of {config.windows.size} pixels are smaller than the patches of {choice.name}; give a larger "
            "windows.size"
        )
    return choice


def _require_scope(config: SegmenterConfig) -> None:
    others = set(config.hosts) - scope_hosts()
    if config.regions.scope and others:
        raise ConfigError(
            f"host {_first_in(config, others)!r} cannot keep patches inside their region (regions.scope); give one of "
            f"{', '.join(sorted(scope_hosts()))}"
        )


def _require_company(config: SegmenterConfig, architecture: Architecture | None) -> None:
    """Refuse hosts that one pass through the tower cannot serve together."""
    if len(config.hosts) > 1:
        # imported here: one host, the usual case, does not wait for torch
        from ovss_core.engine.heads import build_heads, request_together

        request_together(build_heads(config), _USUAL_DEPTH if architecture is None else architecture.depth)


def _first_in(config: SegmenterConfig, names: Collection[str]) -> str:
    """Return the first of the hosts that is among some names."""
    return next(host for host in config.hosts if host in names)


def _require_blocks(config: SegmenterConfig, architecture: Architecture) -> None:
    sfp, last = config.sfp, architecture.depth - 1
    summed = "sfp" in config.hosts and sfp.variant == "paper" and sfp.attention_integration
    if summed and sfp.integration_start > last:
        raise ConfigError(
            f"sfp.integration_start is {sfp.integration_start}, but of the {architecture.depth} blocks of "
            f"{architecture.name} 1 to {last} are summed; give a number from 1 to {last}"
        )


def require_class_token(config: SegmenterConfig, has_class_token: bool) -> None:
    """Refuse what reads a class token on a tower that has none.

    Raises:
        ConfigError: The head does, or a part of SFP that is on.
    """
    if has_class_token:
        return
    if others := set(config.hosts) - classless_hosts():
        raise ConfigError(
            f"host {_first_in(config, others)!r} reads the class token, and the image tower of {config.model.name} has none; give one of "
            f"{', '.join(sorted(classless_hosts()))}"
        )
    if "clipsurgery" in config.hosts and config.clipsurgery.feature_surgery:
        raise ConfigError(
            "clipsurgery.feature_surgery weighs words by the class token, and the image tower of "
            f"{config.model.name} has none; give false"
        )
    if "cliptrase" in config.hosts and config.cliptrase.clustering:
        raise ConfigError(
            "cliptrase.clustering compares patches with the class token, and the image tower of "
            f"{config.model.name} has none; give false"
        )
    if config.purification.in_rounds:
        raise ConfigError(
            f"--purify car judges by the class token, and the image tower of {config.model.name} has none; give freecp "
            "or none"
        )
    sfp = config.sfp
    if "sfp" in config.hosts and sfp.variant == "paper":
        raise ConfigError(
            "sfp.variant paper finds outliers in every block by the attention of the class token, and the image tower of "
            f"{config.model.name} has none; give released"
        )
    if "sfp" in config.hosts and sfp.outlier_mitigation and sfp.outlier_rule == "attention":
        raise ConfigError(
            "sfp.outlier_rule attention compares with the attention of the class token, and the image tower of "
            f"{config.model.name} has none; give norm or local_outlier_factor, or sfp.outlier_mitigation false"
        )


def vocabulary_warnings(vocabulary: Vocabulary, policy: BackgroundPolicy) -> list[str]:
    """Name classes that can never win, and the one that always does.

    Args:
        policy: As `background_policy` resolves it; phrases of a background that does not compete take nothing.
    """
    return [*_shared_phrases(vocabulary, policy == "first_class"), *_lonely_class(vocabulary, policy)]


def _many_pictures(config: SegmenterConfig, vocabulary: Vocabulary) -> list[str]:
    words = len(vocabulary) - (vocabulary.background_index is not None)
    if not config.purification.in_rounds or words <= _MANY_WORDS:
        return []
    return [
        f"--purify car encodes a picture for each of {words} words of every image in its first round; --purify freecp "
        "decides the same without"
    ]


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
    if not purification.own_scores:
        acting = {
            name: getattr(config.labels, name) for name in ("background", "confidence", "min_confidence")
        }
        changed = _changed(config.labels, LabelConfig(**acting), "labels")
        yield from (f"{name} (it goes with --purify none, or --variant filter)" for name in changed)
    if purification.method == "car":
        read = PurificationConfig(
            "car",
            redundancy=purification.redundancy,
            score_scale=purification.score_scale,
            box_threshold=purification.box_threshold,
        )
        changed = _changed(purification, read, "purification")
        yield from (f"{name} (it goes with --purify freecp)" for name in changed)
    elif purifying:
        if purification.by_distractors and purification.redundancy_threshold is not None:
            yield "purification.redundancy_threshold (it goes with purification.thresholds published or fixed)"
        if purification.variant != "paper" and purification.consistency != PurificationConfig().consistency:
            yield "purification.consistency (it goes with --variant paper)"
    else:
        changed = _changed(purification, PurificationConfig(method="none"), "purification")
        yield from (f"{name} (it goes with --purify freecp)" for name in changed)
    if not purification.in_rounds:
        yield from (
            f"{name} (it goes with --purify car)" for name in _changed(config.car, CarConfig(), "car")
        )
    if not config.needs_proxy:
        changed = _changed(config.proxy, ProxyConfig(), "proxy")
        hosts = ", ".join(sorted(proxy_hosts()))
        yield from (f"{name} (it goes with --host {hosts})" for name in changed)
    for head in sorted(HEAD_SETTINGS - set(config.hosts)):
        settings = getattr(config, head)
        changed = _changed(settings, type(settings)(), head)
        yield from (f"{name} (it goes with --host {head})" for name in changed)
    for refiner in sorted(REFINER_SETTINGS - {config.refine}):
        settings = getattr(config, refiner)
        changed = _changed(settings, type(settings)(), refiner)
        yield from (f"{name} (it goes with --refine {refiner})" for name in changed)
    if descriptions and not (purifying and purification.ambiguity):
        yield "descriptions (they go with --purify freecp and purification.ambiguity)"


def _idle_probability(config: SegmenterConfig, vocabulary: Vocabulary | None) -> Iterator[str]:
    if vocabulary is None or not config.purification.own_scores or config.labels.min_probability == 0:
        return
    if vocabulary.background_index is None:
        yield "labels.min_probability (the vocabulary has no background class)"
    elif config.labels.background == "none":
        yield 'labels.min_probability (labels.background is "none")'


def _changed(settings: object, defaults: object, prefix: str) -> list[str]:
    """Name the fields in which settings differ from their defaults."""
    return [f"{prefix}.{name}" for name, value in vars(settings).items() if value != getattr(defaults, name)]
