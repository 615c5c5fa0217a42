"""The enforced security of every pod: restricted Pod Security and more, applied after all else."""

from __future__ import annotations

from finetune_api.problem import Problem
from finetune_api.profile import PodSecurity
from finetune_operator.render import Object

DEFAULT_ID = 65532
"""User, group and volume group where the profile names none: nobody on usual systems."""
HOST = ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "hostAliases", "hostname")
CONFINEMENT = (
    "container.apparmor.security.beta.kubernetes.io/",
    "container.seccomp.security.alpha.kubernetes.io/",
    "seccomp.security.alpha.kubernetes.io/",
)
"""Annotations that older servers read as a part of the security context."""


def secured(template: Object, ids: PodSecurity) -> Object:
    """Return a pod template with the security block set, whatever stood there before."""
    metadata = template.get("metadata", {})
    annotations = {
        key: value
        for key, value in metadata.get("annotations", {}).items()
        if not key.startswith(CONFINEMENT)
    }
    spec = {key: value for key, value in template["spec"].items() if key not in HOST}
    spec["securityContext"] = _of_pod(ids)
    spec["automountServiceAccountToken"] = False
    spec["enableServiceLinks"] = False
    for kind in ("containers", "initContainers"):
        if kind in spec:
            spec[kind] = [{**one, "securityContext": of_container()} for one in spec[kind]]
    return {**template, "metadata": {**metadata, "annotations": annotations}, "spec": spec}


def problems(ids: PodSecurity) -> list[Problem]:
    """Return one problem for each id that a profile names although the cluster is to give it."""
    named = {"runAsUser": ids.run_as_user, "runAsGroup": ids.run_as_group, "fsGroup": ids.fs_group}
    return [
        Problem(
            code="id-assigned-by-cluster",
            field=f"spec.platform.podSecurity.{name}",
            message=f"{name} is named, and assignedByCluster leaves it to the cluster",
            fix="remove one of the two",
        )
        for name, value in named.items()
        if ids.assigned_by_cluster and value is not None
    ]


def _of_pod(ids: PodSecurity) -> Object:
    named: Object = {
        "runAsUser": DEFAULT_ID if ids.run_as_user is None else ids.run_as_user,
        "runAsGroup": DEFAULT_ID if ids.run_as_group is None else ids.run_as_group,
        "fsGroup": DEFAULT_ID if ids.fs_group is None else ids.fs_group,
    }
    context: Object = {
        "runAsNonRoot": True,
        # A cluster that gives each namespace ids of its own refuses all others.
        **({} if ids.assigned_by_cluster else named),
        # A large workspace is not walked through again at every attempt.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if ids.supplemental_groups:
        context["supplementalGroups"] = list(ids.supplemental_groups)
    return context


def of_container() -> Object:
    """Return the security context of a container; nobody chooses anything in it."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
