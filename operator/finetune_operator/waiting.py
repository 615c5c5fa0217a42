"""Why the pods of a child do not all run yet, in one reason and the platform's own words. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_operator.endings import clean, condition, container_status
from finetune_operator.observed import Waiting
from finetune_operator.resolve.paths import look

Pods = Sequence[Mapping[str, Any]]

IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
ORDER = (
    "ImagePullFailed",
    "WorkspaceUnusable",
    "ContainerConfigInvalid",
    "ContainerNotCreated",
    "ClaimMissing",
    "SecretMissing",
    "VolumeInUse",
    "VolumeNotMounted",
    "QuotaExceeded",
    "ResourcesNotNamed",
    "AdmissionRefused",
    "PodsNotCreated",
    "ClaimNotBound",
    "Gated",
    "VolumeInOtherZone",
    "NoNodeFits",
    "WaitingForRoom",
)
"""What somebody has to mend comes before what mends itself."""
_EVENTS: tuple[tuple[frozenset[str], tuple[tuple[str, str], ...]], ...] = (
    (
        frozenset({"FailedCreate", "FailedCreatePod"}),
        (
            ("QuotaExceeded", r"exceeded quota"),
            ("ResourcesNotNamed", r"failed quota: .*must specify"),
            ("AdmissionRefused", r"violates PodSecurity|denied|is forbidden|is invalid"),
            ("PodsNotCreated", r""),
        ),
    ),
    (
        frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"}),
        (
            ("SecretMissing", r"secret \"[^\"]*\" not found|references non-existent secret key"),
            ("ClaimMissing", r"persistentvolumeclaim \"[^\"]*\" (not found|is being deleted)"),
            ("VolumeInUse", r"Multi-Attach error|already (used|attached)"),
            ("VolumeNotMounted", r""),
        ),
    ),
)
_READ = ("reason", "message", "note", "lastTimestamp", "eventTime", "firstTimestamp")
_OF_CHILD = frozenset({"QuotaExceeded", "ResourcesNotNamed", "AdmissionRefused", "PodsNotCreated"})
"""Said of pods that were not made."""
_UNSCHEDULABLE = (
    ("ClaimMissing", r"persistentvolumeclaim \"[^\"]*\" (not found|is being deleted)"),
    (
        "ClaimNotBound",
        r"unbound immediate PersistentVolumeClaims|find available persistent volumes to bind",
    ),
    ("WaitingForRoom", r""),
)
_NODES = re.compile(r"^0/\d+ nodes are available: (.+?)\.?(?: preemption: .*)?$")
_IN_OTHER_ZONE = re.compile(r"^\d+ node\(s\) had volume node affinity conflict")
_FITS_NOT = re.compile(
    r"^\d+ node\(s\) (didn't match Pod's node affinity/selector"
    # What the cluster itself taints a node with goes away again.
    r"|had untolerated taint\(?s?\)? \{(?!node\.(cloudprovider\.)?kubernetes\.io/))"
)
_PART = re.compile(r", (?=\d+ )")


def queued(queue: str) -> Waiting:
    """Return what a child waits for that was not admitted yet."""
    if queue:
        return Waiting("Queued", f"waiting to be admitted by queue {queue}")
    return Waiting("SuspendedByOthers", "somebody else has suspended it")


def emptied(child: str, field: str) -> Waiting:
    """Return what a child waits for whose size is 0: that is a suspension by another name."""
    text = f"somebody else has set {field} of {child} to 0; training goes on when it is set back,"
    return Waiting("SuspendedByOthers", f"{text} or {child} is deleted")


def why(pods: Pods, expected: int, child_uid: str, events: Pods = ()) -> Waiting | None:
    """Return the gravest reason why not all pods run; None where nothing hinders them.

    Args:
        pods: those that exist and have not ended.
        expected: how many there are to be.
        child_uid: of the child, whose events tell why pods are not made.
        events: of the child and of its pods, in any order; the newest of an object counts.
    """
    found = [reason for pod in pods if (reason := _of_pod(pod)) is not None]
    uids = {str(look(pod, "metadata", "uid")) for pod in pods if not _runs(pod)}
    if len(pods) < expected:
        uids.add(child_uid)
    found += _of_events(events, uids)
    if not found:
        return None
    first = min(found, key=lambda one: (ORDER.index(one.reason), one.message))
    same = sum(one.reason == first.reason for one in found)
    if expected > 1 and same < expected and first.reason not in _OF_CHILD:
        return Waiting(first.reason, clean(f"{same} of {expected} pods: {first.message}"))
    return first


def _of_pod(pod: Mapping[str, Any]) -> Waiting | None:
    status = container_status(pod)
    reason = clean(look(status, "state", "waiting", "reason"))
    message = clean(look(status, "state", "waiting", "message")) or reason
    if reason in IMAGE:
        return Waiting("ImagePullFailed", message)
    if reason == "CreateContainerConfigError":
        unusable = "subPath" in message
        return Waiting("WorkspaceUnusable" if unusable else "ContainerConfigInvalid", message)
    if reason in ("CreateContainerError", "RunContainerError", "PreCreateHookError"):
        return Waiting("ContainerNotCreated", message)
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "False":
        return None
    words = clean(scheduled.get("message"))
    if scheduled.get("reason") == "SchedulingGated":
        return Waiting("Gated", words)
    found = _matched(_UNSCHEDULABLE, words)
    return Waiting(_without_room(words), words) if found.reason == "WaitingForRoom" else found


def _without_room(words: str) -> str:
    """Return why no node takes a pod, by the scheduler's counts of nodes and reasons.

    One reason that may pass (another pod holds what is needed, a node is cordoned) makes it a wait
    for room. Where there is none, only other nodes help.
    """
    told = _NODES.match(words)
    parts = _PART.split(told[1]) if told else []
    elsewhere = [part for part in parts if _IN_OTHER_ZONE.match(part)]
    if not parts or not all(_FITS_NOT.match(part) for part in parts if part not in elsewhere):
        return "WaitingForRoom"
    return "VolumeInOtherZone" if elsewhere else "NoNodeFits"


def _of_events(events: Pods, uids: set[str]) -> list[Waiting]:
    newest: dict[str, Mapping[str, Any]] = {}
    told = [event for event in events if _about(event) in uids and tells(event)]
    for event in sorted(told, key=_time_of):
        newest[_about(event)] = event
    return [
        _matched(_rows(event), clean(event.get("message") or event.get("note")))
        for event in newest.values()
    ]


def tells(event: Mapping[str, Any]) -> bool:
    """Tell whether an event can be why pods do not run."""
    return bool(_rows(event))


def trimmed(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is read of an event: what it is about, when, why, and its words."""
    about = {"uid": _about(event)}
    return {**{name: event[name] for name in _READ if name in event}, "involvedObject": about}


def _about(event: Mapping[str, Any]) -> str:
    about = look(event, "involvedObject", "uid") or look(event, "regarding", "uid")
    return about if isinstance(about, str) else ""


def _rows(event: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """What the message of an event may say; nothing for events that tell no hindrance."""
    reason = event.get("reason")
    if not isinstance(reason, str):
        return ()
    return next((rows for reasons, rows in _EVENTS if reason in reasons), ())


def _matched(rows: Sequence[tuple[str, str]], message: str) -> Waiting:
    reason = next(reason for reason, pattern in rows if re.search(pattern, message))
    return Waiting(reason, message)


def _runs(pod: Mapping[str, Any]) -> bool:
    return look(container_status(pod), "state", "running") is not None


def _time_of(event: Mapping[str, Any]) -> str:
    times = (event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((time for time in times if isinstance(time, str)), "")
