"""sfp: outlier mitigation, attention enhancement and attention integration (SFP, ICCV 2025), paper or released."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.config import SfpConfig
from ovss_core.dense_heads.base import DenseHead, HeadOptions, class_and_patches, self_attention
from ovss_core.dense_heads.region_scope import patch_scope, token_scope
from ovss_core.dense_heads.similarity_guided import (
    SimilarityLayers,
    attend_guided,
    guide,
    second_stream,
    two_streams,
)
from ovss_core.feature_purification.attention_enhancement import enhance_attention
from ovss_core.feature_purification.attention_integration import integrate_attention
from ovss_core.feature_purification.mitigation import MitigationNotes, OutlierMitigation, repair_tokens
from ovss_core.feature_purification.outliers import (
    attention_outliers,
    local_outlier_factor_outliers,
    norm_outliers,
)

RELEASED_FACTOR = 1.5
RELEASED_LIMIT = 10


class SfpHead(DenseHead):
    """SFP with any of its parts; with all three off it is clearclip, the base of the paper's Table 2."""

    name = "sfp"
    can_scope = True
    classless = True

    def __init__(self, options: HeadOptions) -> None:
        super().__init__(options)
        self.settings = options.settings if isinstance(options.settings, SfpConfig) else SfpConfig()

    def request(self, depth: int) -> TraceRequest:
        """Ask for what the variant and its active parts need."""
        sfp = self.settings
        if sfp.variant == "released":
            statistics = frozenset({depth - 1}) if self._detects_by_attention else frozenset[int]()
            layers = SimilarityLayers.of(depth).request()
            return TraceRequest(layers.hidden, layers.hidden_sum, attention_statistics=statistics)
        start = min(sfp.integration_start, depth - 1) if sfp.attention_integration else None
        return TraceRequest(
            observer=OutlierMitigation(
                self._factor, self._limit, repair=self._detects_by_attention, integrate_from=start
            )
        )

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Run the chosen variant."""
        if self.settings.variant == "released":
            return self._released(encoder, trace)
        return self._paper(encoder, trace)

    def _released(self, encoder: ImageEncoder, trace: EncoderTrace) -> Tensor:
        sfp = self.settings
        # 1. Outliers of block L-1 are repaired in its own output and in block 9's, whose cosines S (those below the
        #    cut are 0) guide all that follows: a token that attends to everything would look like everything.
        guidance = guide(
            trace, SimilarityLayers.of(encoder.depth), self._outliers(trace), attend_before_cut=False
        )
        patches = guidance.patches
        if sfp.attention_integration:
            # 2. Patches become averages of those that are like them in block 9, where semantics are sharpest.
            patches = guidance.semantic.apply(patches)
            if sfp.attention_enhancement:
                # 3 to 5 at once, because a GPU can share their products: the same sums as below.
                return two_streams(encoder, trace, guidance, patches, terms=("key", "query"), second_terms=())
        # 3. The last block on patches alone: keys attend to keys, queries to queries, and all along S.
        if sfp.attention_enhancement:
            class_token = trace.class_token_of(trace.tokens)
            attended = attend_guided(
                *(encoder, patches, class_token, ("key", "query"), guidance.attention, guidance.visible)
            )
        else:
            attended = _clearclip_attention(encoder, trace, patches)
        if sfp.attention_integration:
            # 4. Averages again, by block 4's cosines, which know where things end.
            # 5. The second stream: blocks 4 to L-2 added up, through the same value projection, along S alone.
            attended = guidance.spatial.apply(attended) + second_stream(encoder, trace, guidance, terms=())
        # 6. The final norm, and the projection into the space that images share with words.
        return encoder.project(attended)

    def _paper(self, encoder: ImageEncoder, trace: EncoderTrace) -> Tensor:
        sfp = self.settings
        # SOM, eq. 4 and 5. By attention it has repaired inside the tower, after every block (`request`); the other
        # rules look at block L-1 alone.
        patches = trace.patches_of(trace.tokens)
        if sfp.outlier_mitigation and not self._detects_by_attention:
            patches = repair_tokens(patches, self._outliers(trace), trace.grid)
        # SAE, eq. 6 and 7, in the place of the last block.
        if sfp.attention_enhancement:
            enhanced = enhance_attention(encoder.blocks[-1], patches, sfp, patch_scope(trace))
        else:
            enhanced = _clearclip_attention(encoder, trace, patches)
        # HAI, eq. 8 to 11. Columns of outliers are left out of the layers' sum even where SOM is off: they are what
        # the sum would be drawn to.
        notes: MitigationNotes = trace.observed
        if notes.filtered_attention is None:
            return encoder.project(enhanced)
        if sfp.integrate_after_projection:
            projected = encoder.project(enhanced)
            return integrate_attention(notes.filtered_attention, projected, sfp.integration_rounds)
        integrated = integrate_attention(notes.filtered_attention, enhanced, sfp.integration_rounds)
        return encoder.project(integrated)

    @property
    def _detects_by_attention(self) -> bool:
        return self.settings.outlier_mitigation and self.settings.outlier_rule == "attention"

    @property
    def _factor(self) -> float:
        given = self.settings.outlier_factor
        return given if given is not None else RELEASED_FACTOR if self.settings.variant == "released" else 1.0

    @property
    def _limit(self) -> int | None:
        given, released = self.settings.max_outliers, self.settings.variant == "released"
        return RELEASED_LIMIT if given is None and released else given

    def _outliers(self, trace: EncoderTrace) -> Bool[Tensor, "windows patches"]:
        """Find the outliers of block L-1 by the chosen rule; none where mitigation is off."""
        patches = trace.patches_of(trace.tokens)
        if not self.settings.outlier_mitigation:
            return torch.zeros(patches.shape[:2], dtype=torch.bool, device=patches.device)
        if self.settings.outlier_rule == "norm":
            return norm_outliers(patches)
        if self.settings.outlier_rule == "local_outlier_factor":
            return local_outlier_factor_outliers(patches)
        layer = max(trace.class_attention)  # block L-1, the last that a trace can hold
        return attention_outliers(
            trace.class_attention[layer], trace.self_attention[layer], self._factor, self._limit
        )


def _clearclip_attention(
    encoder: ImageEncoder, trace: EncoderTrace, patches: Tensor
) -> Float[Tensor, "windows patches width"]:
    query, _, value = encoder.blocks[-1].query_key_value(class_and_patches(trace, patches))
    attended = self_attention(encoder.blocks[-1], query, value, token_scope(trace))
    return trace.patches_of(encoder.blocks[-1].output(attended))
