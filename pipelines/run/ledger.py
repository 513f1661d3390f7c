"""A memory of which images were being worked on, so that one that kills its worker is found and set aside.

Ray starts a dead worker again and repeats its task for ever. The ledger makes that finite: a stage notes its
images before it works on them and strikes them off afterwards. Images still noted when they come again were in
the hands of a worker that died: they are then worked on one at a time, and an image that has killed
`faults.MAX_DEATHS` workers all by itself becomes a failure row. One ledger serves all stages of a run, reading included.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_ASK_S = 0.5


class AttemptRecord:
    """The plain memory behind the ledger: a few bytes for each image that is being worked on now."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], bool] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._finished: Counter[str] = Counter()
        self._stopping = False

    def begin(self, stage: str, ids: Sequence[str]) -> dict[str, int]:
        """Note images as being worked on together, or alone if it is one.

        Returns:
            Images that were noted before and never struck off, with the number of deaths that each had alone.
        """
        suspects: dict[str, int] = {}
        for image_id in ids:
            key = (stage, image_id)
            if key in self._open:
                self._deaths[key] = self._deaths.get(key, 0) + self._open[key]
                suspects[image_id] = self._deaths[key]
            self._open[key] = False
        return suspects

    def begin_alone(self, stage: str, image_id: str) -> None:
        """Note that a suspect is now the only image its worker works on."""
        self._open[stage, image_id] = True

    def end(self, stage: str, ids: Sequence[str]) -> None:
        """Strike images off."""
        for image_id in ids:
            self._open.pop((stage, image_id), None)
            self._deaths.pop((stage, image_id), None)
        self._finished[stage] += len(ids)

    def finished(self, stage: str) -> int:
        """Return how many images a stage has struck off."""
        return self._finished[stage]

    def stop(self) -> None:
        """Let no further image be begun."""
        self._stopping = True

    def is_stopping(self) -> bool:
        """Say whether no further image is to be begun."""
        return self._stopping

    def noted(self, ids: Sequence[str]) -> dict[str, str]:
        """Return, of some images, those that a stage began and never finished, with that stage."""
        wanted = set(ids)
        return {image_id: stage for stage, image_id in self._open if image_id in wanted}


class AttemptLedger:
    """A handle on the one `AttemptRecord` of a job, which any worker may hold."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._asked, self._stopping = float("-inf"), False

    @classmethod
    def start(cls) -> "AttemptLedger":
        """Start the record as an actor that takes no CPU on the node of the caller."""
        # Ray puts an actor without resources on any node, unless it may be on one alone
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return cls(ray.remote(AttemptRecord).options(**options).remote())

    def begin(self, stage: str, ids: Sequence[str]) -> dict[str, int]:
        """Note images as being worked on; wait until that is certain."""
        suspects: dict[str, int] = ray.get(self._actor.begin.remote(stage, list(ids)))
        return suspects

    def begin_alone(self, stage: str, image_id: str) -> None:
        """Note that a suspect is now alone; wait until that is certain."""
        ray.get(self._actor.begin_alone.remote(stage, image_id))

    def end(self, stage: str, ids: Sequence[str]) -> None:
        """Strike images off, without waiting."""
        self._actor.end.remote(stage, list(ids))

    def finished(self, stage: str) -> int:
        """Return how many images a stage has struck off."""
        count: int = ray.get(self._actor.finished.remote(stage))
        return count

    def stop(self) -> None:
        """Let no further image be begun."""
        ray.get(self._actor.stop.remote())

    def close(self) -> None:
        """End the record; nobody may hold a handle who still needs it."""
        ray.kill(self._actor)

    def is_stopping(self) -> bool:
        """Say whether no further image is to be begun; asked for twice a second at most."""
        if time.monotonic() - self._asked > _ASK_S:
            self._stopping = ray.get(self._actor.is_stopping.remote())
            self._asked = time.monotonic()
        return self._stopping

    def noted(self, ids: Sequence[str]) -> dict[str, str]:
        """Return, of some images, those that a stage began and never finished, with that stage."""
        stages: dict[str, str] = ray.get(self._actor.noted.remote(list(ids)))
        return stages
