"""``FineTuneProfile``: what a platform team allows, limits, presets and runs jobs with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator

from finetune_api.document import Document, Duration, Name, Size, Whole
from finetune_api.job import JobSpec
from finetune_api.job.resources import QUALIFIED, LabelKey, LabelValue, device_domain

KIND = "FineTuneProfile"

Glob = Annotated[str, StringConstraints(min_length=1, max_length=512)]
"""A pattern in which ``*`` stands for any text, slashes included."""
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Counted = Annotated[int, Field(ge=0, le=1_000_000)]
ExtraResource = Annotated[
    str,
    StringConstraints(
        pattern=rf"^(ephemeral-storage|hugepages-[1-9][0-9]*(Ki|Mi|Gi)|{QUALIFIED})$",
        max_length=317,
    ),
    device_domain,
]
"""A device, or pages of one size: cpu and memory are the job's to name."""
MethodName = Literal["full", "lora", "houlsby", "prefixTuning", "promptTuning", "pTuning"]


class SelectorRequirement(Document):
    """One expression of a label selector."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[list[LabelValue], Field(max_length=64)] | None = None


class LabelSelector(Document):
    """Which namespaces may use the profile; an empty one admits all."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    match_expressions: Annotated[list[SelectorRequirement], Field(max_length=32)] | None = None


class AllowedToleration(Document):
    """A toleration that jobs may carry; what is absent matches anything."""

    key: LabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Allow(Document):
    """What jobs may name. An absent list allows everything of its kind, an empty one nothing."""

    namespace_selector: LabelSelector | None = None
    """Absent: every namespace."""
    uris: Annotated[list[Glob], Field(max_length=256)] | None = None
    """Models, adapters, tokenizers, data, outputs and claims of workspaces (``pvc://claim/``), such
    as ``hf://Qwen/*``."""
    endpoints: Annotated[list[Glob], Field(max_length=64)] | None = None
    """Mirrors of the hub that a job may name. Absent, and uris or secrets are limited: none but the
    one in ``defaults``, because a mirror decides what ``hf://`` means and is sent the token."""
    secrets: Annotated[list[Glob], Field(max_length=64)] | None = None
    """Names of secrets in the job's namespace."""
    methods: Annotated[list[MethodName], Field(max_length=16)] | None = None
    remote_code: bool = False
    """Whether ``model.remoteCode`` may be true: it runs code that comes with the model."""
    node_selector_keys: Annotated[list[LabelKey], Field(max_length=64)] | None = None
    tolerations: Annotated[list[AllowedToleration], Field(max_length=64)] | None = None
    priority_class_names: Annotated[list[Glob], Field(max_length=64)] | None = None
    queue_names: Annotated[list[Glob], Field(max_length=64)] | None = None


class Limits(Document):
    """Upper bounds of one job; sums over jobs are ResourceQuota's and the queue's."""

    nodes: Annotated[int, Field(ge=1, le=4096)] | None = None
    accelerators: Counted | None = None
    """Of all nodes together."""
    accelerator_hours: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Accelerators times ``activeDeadlineSeconds``; a job then needs a deadline."""
    runtime: Duration | None = None
    """Of ``activeDeadlineSeconds``."""
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] | None = None
    workspace: Size | None = None
    grace_period_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None


class Images(Document):
    """Images by digest, so that what runs cannot change under a job."""

    trainer: (
        Annotated[
            str,
            StringConstraints(
                pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$", min_length=73, max_length=512
            ),
        ]
        | None
    ) = None
    """Absent: the image of the operator's release."""


class PodSecurity(Document):
    """Ids that pods run with; the rest of the security context is not for choice."""

    run_as_user: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    run_as_group: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    fs_group: Id | None = None
    supplemental_groups: Annotated[list[Id], Field(max_length=32)] | None = None
    assigned_by_cluster: bool = False
    """Name no user, group and volume group: the cluster gives them, as OpenShift does."""


class Variable(Document):
    """One environment variable of the training processes."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
    value: Annotated[str, Field(max_length=4096)] = ""


class Price(Document):
    """What an accelerator costs, for reports."""

    per_accelerator_hour: Annotated[float, Field(ge=0, le=1e6)]
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$", max_length=3)] = "EUR"


class ModelCache(Document):
    """A claim that holds materialised models for every job of a namespace."""

    claim_name: Name


class Platform(Document):
    """What pods are made with and users cannot choose."""

    images: Images = Images()
    image_pull_secrets: Annotated[list[Name], Field(max_length=16)] | None = None
    service_account_name: Name | None = None
    """Without rights of its own; pods get no API token."""
    pod_security: PodSecurity = PodSecurity()
    environment: Annotated[list[Variable], Field(max_length=64)] | None = None
    extra_resources: Annotated[dict[ExtraResource, Whole], Field(max_length=16)] | None = None
    """Of every training pod, such as ``rdma/hca: 1``, ``hugepages-2Mi: 5Gi`` or
    ``ephemeral-storage: 20Gi``; the last is asked for by preparation and publishing too."""
    pod_annotations: (
        Annotated[dict[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
        | None
    ) = None
    pod_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=64)] | None = None
    runtime_class_name: Name | None = None
    """Of training pods: ``nvidia`` where that is not the nodes' default runtime."""
    scheduler_name: Name | None = None
    """Of every pod. Absent: the cluster's own."""
    zones: Annotated[list[LabelValue], Field(max_length=32)] | None = None
    """Zones that every phase of a job must stay in, where volumes belong to a zone."""
    network: Literal["Offline", "HubOnly", "Open"] = "HubOnly"
    """HubOnly: preparation may read from the hub. Offline: no pod does. What else pods can reach is
    for a NetworkPolicy to say; Open is not supported yet."""
    model_cache: ModelCache | None = None
    """Not supported yet: models are kept in each job's workspace."""
    preparation_queue_name: LabelValue | None = None
    """Queue for preparation and publishing. Absent: they are not queued."""
    price: Price | None = None
    """Not supported yet: no report says what a job has cost."""


class ProfileSpec(Document):
    """Everything that a profile says."""

    allow: Allow = Allow()
    limits: Limits = Limits()
    defaults: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"partial": "JobSpec"})
    """A part of a job's spec, same names; a job's own words win over it."""
    platform: Platform = Platform()

    @field_validator("defaults")
    @classmethod
    def _part_of_a_spec(cls, defaults: dict[str, Any]) -> dict[str, Any]:
        """Hold the defaults to the schema of a job's spec, with nothing required."""
        try:
            JobSpec.model_validate(defaults)
        except ValidationError as error:
            wrong = [e for e in error.errors(include_url=False) if e["type"] != "missing"]
            if wrong:
                place = ".".join(str(part) for part in wrong[0]["loc"])
                raise ValueError(f"{place}: {wrong[0]['msg']}") from error
        return defaults
