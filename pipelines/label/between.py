"""For a stage of one's own between the two labelling stages: what a proposal says, and setting rows aside."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ovss_core.engine.facts import FACT_COLUMNS, facts_from_columns
from ovss_core.engine.proposal import COLUMNS, size_in
from ovss_core.errors import ConfigError
from pipelines.faults import Failure, clean_reason
from pipelines.label.batches import PREFIX, Batch, as_given
from pipelines.run.schema import FAILURE, PROPOSAL

_PROPOSAL = "proposal"


@dataclass(frozen=True)
class ProposalOutline:
    """What stage 1 found in an image, without maps and crops.

    Attributes:
        height: Of the image in pixels.
        width: Of the image in pixels.
        kept: Positions in the vocabulary of the classes that purification kept, ascending; empty without purification.
        scores: Redundancy score of every class, nan for a background; empty without purification.
        facts: Numbers of `ovss_core.engine.facts.FACTS` by name, as far as the settings give them.
    """

    height: int
    width: int
    kept: tuple[int, ...]
    scores: Float[np.ndarray, " classes"]
    facts: Mapping[str, float]

    @classmethod
    def of(cls, proposal: Mapping[str, Any]) -> "ProposalOutline":
        """Read a value of the column ``proposal``; its maps stay compressed."""
        height, width = size_in(proposal, "size")
        kept, scores = (np.frombuffer(proposal[name], COLUMNS[name]) for name in ("kept", "scores"))
        facts = facts_from_columns(
            {name: [np.frombuffer(proposal[name], kind)] for name, kind in FACT_COLUMNS.items()}
        )
        return cls(
            height,
            width,
            tuple(kept.tolist()),
            scores,
            {name: float(values[0]) for name, values in facts.items()},
        )


def set_aside(batch: Any, reason: Callable[[ProposalOutline], str | None], stage: str) -> Any:
    """Turn rows between the two stages into failures, which the second one hands on: no row is lost.

    Args:
        batch: What `pipelines.label.stages.ProposeStage` gave, in any of its forms.
        reason: Says in one line why an image is not to be labelled, or None where it is.
        stage: Name of your stage, for the column ``failure``; ``error_type`` is "SetAside".

    Returns:
        The batch in the form that it came in; a row that is set aside has lost its proposal. Rows that have failed
        before stay as they are.

    Raises:
        ConfigError: The batch has no proposals.
    """
    rows = Batch.of(batch)
    payload = next((name for name in (PREFIX + _PROPOSAL, _PROPOSAL) if name in rows.names), None)
    own = rows.own_column("failure", chained=True)
    if payload is None or own is None:
        raise ConfigError(
            f"the batch has no proposals (it has {', '.join(map(str, rows.names)) or 'no column'}); set rows aside "
            "between ProposeStage and FinishStage"
        )
    proposals, failures = rows.values(payload), rows.values(own)
    for place, (proposal, failure) in enumerate(zip(proposals, failures, strict=True)):
        if failure is not None or proposal is None:
            continue
        told = reason(ProposalOutline.of(proposal))
        if told is not None:
            proposals[place] = None
            failures[place] = Failure(stage, "SetAside", clean_reason(told)).to_dict()
    return as_given(rows.put({own: (failures, FAILURE), payload: (proposals, PROPOSAL)}), batch)
