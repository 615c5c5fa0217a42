"""Why a gang does not run: what is read off pods that wait and off events."""

from __future__ import annotations

from typing import Any

import pytest

from harness.children import CHILD_UID, at, child, pod, read


def unschedulable(kind: str, index: int, message: str) -> dict[str, Any]:
    one = pod(kind, index, "pending")
    one["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        }
    ]
    return one


def container(kind: str, index: int, reason: str, message: str = "") -> dict[str, Any]:
    one = pod(kind, index, "pending")
    state = {"waiting": {"reason": reason, "message": message}}
    one["status"]["containerStatuses"] = [{"name": "pytorch", "state": state}]
    return one


def event(uid: str, reason: str, message: str, second: int = 1) -> dict[str, Any]:
    return {
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": message,
        "lastTimestamp": at(second),
    }


ROOM = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
P = "PyTorchJob"
WAITS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], str | None, str]] = {
    "no room": (
        [unschedulable(P, 0, ROOM), unschedulable(P, 1, ROOM)], [], "WaitingForRoom", ROOM,
    ),
    "a selector that no node fits": (
        [unschedulable(P, 0, "0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."), pod(P, 1)],
        [], "NoNodeFits", "1 of 2 pods: 0/3 nodes are available: 1 node(s) had untolerated taint {gpu: yes}, 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.",
    ),
    "a volume where no node fits": (
        [unschedulable(P, 0, "0/5 nodes are available: 2 node(s) had volume node affinity conflict, 3 node(s) didn't match Pod's node affinity/selector."), pod(P, 1)],
        [], "VolumeInOtherZone", "1 of 2 pods: 0/5 nodes are available: 2 node(s) had volume node affinity conflict, 3 node(s) didn't match Pod's node affinity/selector.",
    ),
    "a volume, and room that may come": (
        [unschedulable(P, 0, "0/5 nodes are available: 2 node(s) had volume node affinity conflict, 3 Insufficient nvidia.com/gpu."), pod(P, 1)],
        [], "WaitingForRoom", "1 of 2 pods: 0/5 nodes are available: 2 node(s) had volume node affinity conflict, 3 Insufficient nvidia.com/gpu.",
    ),
    "a node that is away": (
        [unschedulable(P, 0, "0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) were unschedulable."), pod(P, 1)],
        [], "WaitingForRoom", "1 of 2 pods: 0/2 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }, 1 node(s) were unschedulable.",
    ),
    "all nodes away": (
        [unschedulable(P, 0, "0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."), pod(P, 1)],
        [], "WaitingForRoom", "1 of 2 pods: 0/2 nodes are available: 2 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.",
    ),
    "a taint with commas": (
        [unschedulable(P, 0, "0/2 nodes are available: 2 node(s) had untolerated taints {team: a, 5 b}."), pod(P, 1)],
        [], "WaitingForRoom", "1 of 2 pods: 0/2 nodes are available: 2 node(s) had untolerated taints {team: a, 5 b}.",
    ),
    "room for one": ([pod(P, 0), unschedulable(P, 1, ROOM)], [], "WaitingForRoom", "1 of 2 pods: " + ROOM),
    "claim missing": (
        [unschedulable(P, 0, 'persistentvolumeclaim "data" not found'), pod(P, 1)], [],
        "ClaimMissing", '1 of 2 pods: persistentvolumeclaim "data" not found',
    ),
    "claim not bound": (
        [unschedulable(P, 0, "pod has unbound immediate PersistentVolumeClaims"), pod(P, 1)], [],
        "ClaimNotBound", "1 of 2 pods: pod has unbound immediate PersistentVolumeClaims",
    ),
    "image, beside no room": (
        [container(P, 0, "ImagePullBackOff", "Back-off pulling image x"), unschedulable(P, 1, ROOM)],
        [], "ImagePullFailed", "1 of 2 pods: Back-off pulling image x",
    ),
    "secret key": (
        [container(P, 0, "ContainerCreating"), container(P, 1, "ContainerCreating")],
        [
            event("pod-0", "FailedMount", 'MountVolume.SetUp failed: secret "hf" not found', 3),
            event("pod-1", "FailedMount", 'MountVolume.SetUp failed: secret "hf" not found', 3),
            event("elsewhere", "FailedMount", "x"),
        ],
        "SecretMissing", 'MountVolume.SetUp failed: secret "hf" not found',
    ),
    "the folder in the workspace": (
        [container(P, 0, "CreateContainerConfigError", "failed to create subPath directory for volumeMount"), pod(P, 1)],
        [], "WorkspaceUnusable", "1 of 2 pods: failed to create subPath directory for volumeMount",
    ),
    "quota": (
        [],
        [event(CHILD_UID, "FailedCreatePod", 'pods "bot-1-worker-0" is forbidden: exceeded quota: q')],
        "QuotaExceeded", 'pods "bot-1-worker-0" is forbidden: exceeded quota: q',
    ),
    "admission": (
        [],
        [event(CHILD_UID, "FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"')],
        "AdmissionRefused", 'pods "x" is forbidden: violates PodSecurity "restricted"',
    ),
    "a quota that asks for what the job does not name": (
        [],
        [event(CHILD_UID, "FailedCreate", 'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: trainer')],
        "ResourcesNotNamed", 'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: trainer',
    ),
    "a quota that was in the way": (
        [pod(P, 0), unschedulable(P, 1, ROOM)],
        [event(CHILD_UID, "FailedCreatePod", "exceeded quota: q")],
        "WaitingForRoom", "1 of 2 pods: " + ROOM,
    ),
    "held by another node": (
        [container(P, 0, "ContainerCreating"), pod(P, 1)],
        [event("pod-0", "FailedAttachVolume", 'Multi-Attach error for volume "pv"')],
        "VolumeInUse", '1 of 2 pods: Multi-Attach error for volume "pv"',
    ),
    "only starting": ([container(P, 0, "ContainerCreating"), pod(P, 1)], [], None, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", WAITS)
def test_why_a_gang_does_not_run(name: str) -> None:
    pods, events, reason, message = WAITS[name]
    found = read(P, child(P, "Created"), pods, events=events).waiting
    assert (found.reason if found else None) == reason
    assert (found.message if found else "") == message


def test_the_words_of_a_cluster_cannot_write_to_a_terminal() -> None:
    pods = [unschedulable(P, 0, "no \x1b[31mroom\n" + "x" * 9000), pod(P, 1)]
    found = read(P, child(P, "Created"), pods).waiting
    assert found is not None
    assert found.message.startswith("1 of 2 pods: no [31mroom xxx")
    assert len(found.message) <= 512
