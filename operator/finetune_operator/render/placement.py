"""Where and as whom a job's pods run: what a profile and a queue say, resolved for each attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.names import LABEL_PRIORITY, LABEL_QUEUE
from finetune_api.profile import Platform


@dataclass(frozen=True)
class Placement:
    """What may differ between two attempts of one job; what training means is not in it."""

    platform: Platform = field(default_factory=Platform)
    queue_name: str | None = None
    """Queue of the training child; it is then created suspended."""
    priority_class: str | None = None
    """Priority of its workload in the queue."""

    @classmethod
    def of(cls, platform: Platform, labels: Mapping[str, str]) -> Placement:
        """Take the queue from the labels of the FineTuneJob."""
        return cls(platform, labels.get(LABEL_QUEUE) or None, labels.get(LABEL_PRIORITY) or None)

    def queue_labels(self) -> dict[str, str]:
        """Labels of a queued training child; none where the job is not queued."""
        return _queue(self.queue_name, self.priority_class)

    def preparation_queue_labels(self) -> dict[str, str]:
        """Labels of preparation and publishing; none unless the profile names a queue for them."""
        return _queue(self.platform.preparation_queue_name, self.priority_class)


def _queue(name: str | None, priority: str | None) -> dict[str, str]:
    if name is None:
        return {}
    return {LABEL_QUEUE: name, **({LABEL_PRIORITY: priority} if priority else {})}
