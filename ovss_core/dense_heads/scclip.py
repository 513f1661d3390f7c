"""scclip: outliers by local outlier factor, similarity-guided attention, two streams (SC-CLIP, Bai et al. 2024)."""

from jaxtyping import Float
from torch import Tensor

from ovss_core.clip.tower import ImageEncoder
from ovss_core.clip.trace import EncoderTrace, TraceRequest
from ovss_core.dense_heads.base import DenseHead
from ovss_core.dense_heads.similarity_guided import SimilarityLayers, guide, two_streams
from ovss_core.feature_purification.outliers import local_outlier_factor_outliers


class ScClipHead(DenseHead):
    """Half softmax(s k k^T), half similarity attention; no residual, no feed-forward."""

    name = "scclip"
    can_scope = True
    classless = True

    def request(self, depth: int) -> TraceRequest:
        """Ask for the semantic and the spatial layer and the sum of the middle ones."""
        return SimilarityLayers.of(depth).request()

    def features(
        self, encoder: ImageEncoder, trace: EncoderTrace
    ) -> Float[Tensor, "windows patches features"]:
        """Repair, aggregate, attend, aggregate again, add the second stream."""
        outliers = local_outlier_factor_outliers(trace.patches_of(trace.tokens))
        guidance = guide(trace, SimilarityLayers.of(encoder.depth), outliers, attend_before_cut=True)
        patches = guidance.semantic.apply(guidance.patches)
        return two_streams(encoder, trace, guidance, patches, ("key",), ("key",))
