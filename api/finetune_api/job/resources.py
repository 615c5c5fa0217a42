"""``spec.resources``: machines, and nothing that would give a user rights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticKnownError

from finetune_api.document import SUBDOMAIN, Document, Name, Quantity, filled


def domain_up_to(most: int) -> AfterValidator:
    """Hold the part before the slash to its own bound, which no pattern of its labels can."""

    def hold(key: str) -> str:
        domain = key.rpartition("/")[0]
        if len(domain) > most:
            beside = len(key) - len(domain)
            raise PydanticKnownError("string_too_long", {"max_length": most + beside})
        return key

    return AfterValidator(hold)


LONGEST_DOMAIN = 253
QUALIFIED = rf"{SUBDOMAIN}/[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?"
QUOTA = "requests."
"""What quotas put before the name of a device, so that no name may begin so itself."""
device_domain = domain_up_to(LONGEST_DOMAIN - len(QUOTA))

LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=rf"^({SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$",
        max_length=317,
    ),
    domain_up_to(LONGEST_DOMAIN),
]
ExtendedResource = Annotated[
    str, StringConstraints(pattern=rf"^{QUALIFIED}$", max_length=317), device_domain
]
"""``domain/name``: a container cannot ask for any other name, and cpu or memory are no devices."""
LabelValue = Annotated[
    str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)
]


class Accelerator(Document):
    """What one node gives."""

    resource: ExtendedResource = "nvidia.com/gpu"
    """The extended resource to request."""
    per_node: Annotated[int, Field(ge=0, le=64)] = 1
    device: Literal["cuda", "cpu"] = "cuda"
    """What the ranks compute on. It is never changed to the CPU silently."""
    memory: Quantity | None = None
    """Of one accelerator, for the verdict before it is requested."""


class Toleration(Document):
    """A taint that the pods may ignore; a key is needed, and node.kubernetes.io/* is refused."""

    key: LabelKey
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class CpuResources(Document):
    """CPU and memory of a stage that needs no accelerator."""

    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(Document):
    """Where and with how much the job runs."""

    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    min_nodes: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Run on fewer nodes when there is no room. Absent: always on ``nodes``."""
    accelerator: Accelerator = Accelerator()
    processes_per_node: Annotated[int, Field(ge=1, le=64)] = filled()
    """Ranks of one node. Absent: one an accelerator, one on a CPU."""
    cpu: Quantity | None = None
    memory: Quantity | None = None
    shared_memory: Quantity | None = None
    """Size of /dev/shm. Absent: 16Gi with an accelerator, 1Gi without."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = None
    priority_class_name: Name | None = None
    preparation: CpuResources | None = None
    publishing: CpuResources | None = None

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.processes_per_node
