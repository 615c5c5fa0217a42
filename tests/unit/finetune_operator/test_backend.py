"""What is read off children and their pods: who runs, who ended, what is waited for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.backend import BACKENDS, CPU_STAGES, choose, remains
from finetune_operator.failures import classify
from finetune_operator.observed import ChildState

UID, CHILD_UID = "8c7f5e0a-4b1d-4c59-9e55-0d2f6a1b3c4d", "child-1"
KINDS = ("PyTorchJob", "Job")


def at(second: int) -> str:
    return f"2026-03-01T12:{second // 60:02d}:{second % 60:02d}Z"


def moment(second: int) -> datetime:
    return datetime(2026, 3, 1, 12, second // 60, second % 60, tzinfo=UTC)


def child(
    kind: str,
    *conditions: str,
    nodes: int = 2,
    suspended: bool = False,
    queue: str | None = None,
    started: int | None = 5,
    **metadata: Any,
) -> dict[str, Any]:
    """A child as its controller leaves it; ``conditions`` hold."""
    spec: dict[str, Any] = {
        "PyTorchJob": {
            "runPolicy": {"suspend": suspended},
            "pytorchReplicaSpecs": {"Worker": {"replicas": nodes}},
        },
        "Job": {"suspend": suspended, "parallelism": nodes, "completions": nodes},
    }[kind]
    held: list[dict[str, Any]] = [{"type": one, "status": "True"} for one in conditions]
    held.append({"type": "Restarting", "status": "False"})
    return {
        "metadata": {
            "name": "bot-1",
            "uid": CHILD_UID,
            "creationTimestamp": at(0),
            "labels": {"kueue.x-k8s.io/queue-name": queue} if queue else {},
            **metadata,
        },
        "spec": spec,
        "status": {
            "conditions": held,
            **({"startTime": at(started)} if started is not None else {}),
        },
    }


def pod(
    kind: str,
    index: int,
    state: str = "running",
    *,
    uid: str = "",
    code: int = 0,
    how: str = "Error",
    begins: int = 10,
    ends: int = 60,
    told: int | None = None,
    target: str | None = None,
    owner: str = CHILD_UID,
    **more: Any,
) -> dict[str, Any]:
    """A pod; ``state``: pending, running or ended."""
    label = {
        "PyTorchJob": "training.kubeflow.org/replica-index",
        "Job": "batch.kubernetes.io/job-completion-index",
    }[kind]
    metadata: dict[str, Any] = {
        "name": f"bot-1-worker-{index}" if kind == "PyTorchJob" else f"bot-1-{index}-abcde",
        "uid": uid or f"pod-{index}",
        "creationTimestamp": at(begins),
        "labels": {label: str(index), "finetune.dev/job-uid": UID},
        "ownerReferences": [{"uid": owner, "controller": True}],
    }
    if told is not None:
        metadata |= {"deletionTimestamp": at(told + 150), "deletionGracePeriodSeconds": 150}
    status: dict[str, Any] = {"phase": "Running", "conditions": []}
    if state == "pending":
        status["phase"] = "Pending"
    elif state == "running":
        running = {"running": {"startedAt": at(begins)}}
        status["containerStatuses"] = [{"name": "pytorch", "state": running}]
    else:
        ended = {
            "exitCode": code,
            "reason": how if code else "Completed",
            "startedAt": at(begins),
            "finishedAt": at(ends),
        }
        status["phase"] = "Failed" if code else "Succeeded"
        status["containerStatuses"] = [{"name": "pytorch", "state": {"terminated": ended}}]
    if target:
        status["conditions"].append(
            {"type": "DisruptionTarget", "status": "True", "reason": target, "message": "make room"}
        )
    return {"metadata": metadata, "status": {**status, **more}}


def read(kind: str, one: dict[str, Any], pods: Sequence[dict[str, Any]], **more: Any) -> ChildState:
    return BACKENDS[kind].read(one, pods, **more)


def cause(found: ChildState) -> str | None:
    named = classify("train", found.ends)
    return named.class_ if named else None


@pytest.mark.parametrize("kind", KINDS)
def test_a_gang_that_runs(kind: str) -> None:
    found = read(kind, child(kind, "Running"), [pod(kind, 0), pod(kind, 1, begins=12)])
    assert found.name == "bot-1"
    assert found.uid == CHILD_UID
    assert (found.processes, found.running, found.ends) == (2, 2, ())
    assert (found.over, found.ran, found.waiting, found.stopped_at) == (False, True, None, None)
    assert found.active_since == moment(5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_worker_that_runs_is_no_gang_that_runs(kind: str) -> None:
    found = read(kind, child(kind, "Running"), [pod(kind, 0), pod(kind, 1, "pending")])
    assert (found.running, found.ran, found.over) == (1, False, False)


@pytest.mark.parametrize("kind", KINDS)
def test_success_needs_all(kind: str) -> None:
    pods = [pod(kind, 0, "ended"), pod(kind, 1)]
    found = read(kind, child(kind, "Running"), pods)
    assert found.over is False
    assert [end.exit_code for end in found.ends] == [0]
    pods[1] = pod(kind, 1, "ended")
    found = read(kind, child(kind, "Running"), pods)
    assert (found.over, found.ran, cause(found), len(found.ends)) == (True, True, None, 2)


def test_what_succeeded_did_so_even_if_its_pods_are_gone() -> None:
    done = child("Job", "Complete")
    done["status"]["completionTime"] = at(70)
    found = read("Job", done, [pod("Job", 1, "ended")])
    assert found.over
    assert [(end.exit_code, end.at) for end in found.ends] == [(0, moment(70)), (0, moment(60))]
    deleted = pod("Job", 0, "running", told=65)
    assert cause(read("Job", done, [pod("Job", 1, "ended")], gone=[deleted])) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_preempted_pod_takes_the_gang_with_it(kind: str) -> None:
    """The victim first, the other told by the controller; both save and end 143."""
    pods = [
        pod(kind, 0, told=30, target="PreemptionByScheduler"),
        pod(kind, 1, told=31),
    ]
    found = read(kind, child(kind, "Failed"), pods)
    assert (found.over, found.running, found.ends) == (False, 2, ())
    assert found.stopped_at == moment(30)
    gone = [
        pod(kind, 0, "ended", code=143, told=30, ends=45, target="PreemptionByScheduler"),
        pod(kind, 1, "ended", code=143, told=31, ends=44),
    ]
    found = read(kind, child(kind, "Failed"), [], gone=gone)
    assert (found.over, found.ran, len(found.ends)) == (True, True, 2)
    assert cause(found) == "Preempted"
    assert found.ends[0].message == "PreemptionByScheduler: make room"


@pytest.mark.parametrize("kind", KINDS)
def test_the_crash_is_the_cause_and_not_the_others_that_were_ended_for_it(kind: str) -> None:
    crashed = pod(kind, 1, "ended", code=1, ends=30)
    follower = pod(kind, 0, "ended", code=143, told=31, ends=40)
    found = read(kind, child(kind, "Failed"), [crashed], gone=[follower])
    assert cause(found) == "Crashed"
    hung = pod(kind, 0, "ended", code=137, told=31, ends=181)
    found = read(kind, child(kind, "Failed"), [crashed], gone=[hung])
    named = classify("train", found.ends)
    assert named is not None
    assert (named.class_, named.exit_code) == ("Crashed", 1)
    alone = read(
        kind, child(kind, "Failed"), [], gone=[hung, pod(kind, 1, "ended", code=143, told=31)]
    )
    assert cause(alone) == "LostInfrastructure"


@pytest.mark.parametrize("kind", KINDS)
def test_out_of_memory_beats_what_followed(kind: str) -> None:
    pods = [
        pod(kind, 0, "ended", code=20, ends=31),
        pod(kind, 1, "ended", code=137, how="OOMKilled", ends=30),
    ]
    assert cause(read(kind, child(kind, "Failed"), pods)) == "OutOfMemory"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_that_took_anothers_place_ends_the_gang(kind: str) -> None:
    first = pod(kind, 1, "pending", uid="first", begins=10, told=20)
    second = pod(kind, 1, uid="second", begins=25)
    found = read(kind, child(kind, "Running"), [pod(kind, 0), second], gone=[first])
    assert found.over is False
    assert [(end.exit_code, end.reason) for end in found.ends] == [(None, "Deleted")]
    assert found.failed_at is not None
    assert cause(found) == "LostInfrastructure"
    both = [pod(kind, 0, "ended"), pod(kind, 1, "ended", uid="second", begins=25)]
    assert cause(read(kind, child(kind, "Succeeded", "Complete"), both, gone=[first])) is None


@pytest.mark.parametrize("kind", KINDS)
def test_pods_of_somebody_else_do_not_count(kind: str) -> None:
    foreign = pod(kind, 0, "ended", code=11, owner="another", uid="x")
    unowned = pod(kind, 1, "ended", code=11, uid="y")
    del unowned["metadata"]["ownerReferences"]
    found = read(kind, child(kind, "Running"), [foreign, unowned, pod(kind, 0)])
    assert (found.running, found.ends) == (1, ())


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_in_the_queue(kind: str) -> None:
    queued = child(kind, "Suspended", suspended=True, queue="gpus", started=None)
    found = read(kind, queued, [])
    assert found.active_since is None
    assert found.over is False
    assert found.waiting is not None
    assert found.waiting.reason == "Queued"
    assert found.waiting.message == "waiting to be admitted by queue gpus"
    admitted = child(kind, queue="gpus", started=None)
    assert read(kind, admitted, []).active_since is None
    assert read(kind, child(kind, started=None), []).active_since == moment(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_that_takes_its_room_back(kind: str) -> None:
    """Kueue suspends the child: no DisruptionTarget, and the child may come again."""
    suspended = child(kind, "Suspended", suspended=True, queue="gpus", started=None)
    saving = [pod(kind, 0, told=30), pod(kind, 1, told=30)]
    found = read(kind, suspended, saving)
    assert (found.over, found.running, found.stopped_at) == (False, 2, moment(30))
    assert found.active_since == moment(10)
    gone = [pod(kind, i, "ended", code=143, told=30, ends=40 + i) for i in (0, 1)]
    found = read(kind, suspended, [], gone=gone)
    assert found.over is False
    assert found.failed_at == moment(40)
    assert cause(found) == "Preempted"


@pytest.mark.parametrize("kind", KINDS)
def test_an_admission_taken_back_before_anything_ran_is_nothing(kind: str) -> None:
    gone = [pod(kind, i, "pending", told=8, begins=6) for i in (0, 1)]
    queued = child(kind, "Suspended", suspended=True, queue="gpus", started=None)
    found = read(kind, queued, [], gone=gone)
    assert (found.ends, found.active_since) == ((), None)
    again = child(kind, "Running", queue="gpus", started=20)
    pods = [pod(kind, i, uid=f"new-{i}", begins=21) for i in (0, 1)]
    found = read(kind, again, pods, gone=gone)
    assert (found.ends, found.running, found.ran) == ((), 2, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_is_deleted_is_over_when_its_pods_are(kind: str) -> None:
    ending = child(kind, "Running", deletionTimestamp=at(30), deletionGracePeriodSeconds=0)
    found = read(kind, ending, [pod(kind, 0, told=30), pod(kind, 1, told=30)])
    assert (found.over, found.stopped_at) == (False, moment(30))
    assert read(kind, ending, []).over


def test_what_is_left_of_a_child_whose_object_is_gone() -> None:
    saving = pod("Job", 0, told=30)
    ended = pod("Job", 1, "ended", code=143, told=30, ends=40)
    found = remains("bot-1", CHILD_UID, 2, [saving], gone=[ended])
    assert (found.over, found.running, found.stopped_at) == (False, 1, moment(30))
    found = remains("bot-1", CHILD_UID, 2, [], gone=[ended])
    assert (found.over, len(found.ends)) == (True, 1)
    assert remains("bot-1", CHILD_UID, 2, []).over


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


def test_words_of_the_platform() -> None:
    assert read(P, child(P, "Created", "Running"), []).platform_status == "Running"
    assert read(P, child(P, "Created", "Failed"), []).platform_status == "Failed"
    assert (
        read("Job", child("Job", "Complete", "SuccessCriteriaMet"), []).platform_status
        == "Complete"
    )
    active = child("Job")
    active["status"]["active"] = 2
    assert read("Job", active, []).platform_status == "Active"


def test_a_job_that_is_about_to_fail_makes_no_pod_any_more() -> None:
    failing = child("Job", "FailureTarget")
    gone = [pod("Job", 0, "running", told=30, target="DeletionByTaintManager")]
    found = CPU_STAGES.read(failing, [], gone=gone)
    assert found.over
    assert cause(found) == "Preempted"


def test_which_backend() -> None:
    both = ("Job", "PyTorchJob")
    chosen = [choose(None, both), choose(None, ("Job",)), choose("Job", both)]
    assert [one.kind if one else None for one in chosen] == ["PyTorchJob", "Job", "Job"]
    assert choose("PyTorchJob", ("Job",)) is None
    assert choose("MPIJob", both) is None


@pytest.mark.parametrize("kind", KINDS)
def test_reading_changes_nothing_and_no_shape_breaks_it(kind: str) -> None:
    one, pods = child(kind, "Running"), [pod(kind, 0), pod(kind, 1, "ended", code=1)]
    before = copy.deepcopy((one, pods))
    read(
        kind, one, pods, gone=pods, events=[{}, {"involvedObject": {"uid": "pod-1"}, "reason": []}]
    )
    assert (one, pods) == before
    for strange in (
        {},
        {"metadata": None, "spec": [], "status": "x"},
        {"status": {"conditions": 3}},
    ):
        found = read(kind, strange, [{}, {"metadata": {"ownerReferences": [None]}}])
        assert (found.processes, found.running) == (1, 0)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(
        ["", "True", "Failed", "Evicted", "0", "9" * 30, at(5), "0001-01-01T00:00:00Z"]
    ),
    st.text(max_size=4),
)
WORDS = st.sampled_from(
    [
        *("name", "uid", "labels", "ownerReferences", "controller", "deletionTimestamp"),
        *("deletionGracePeriodSeconds", "creationTimestamp", "phase", "reason", "message"),
        *("conditions", "containerStatuses", "type", "status", "state", "running", "waiting"),
        *("terminated", "exitCode", "startedAt", "finishedAt", "startTime", "completionTime"),
        *("suspend", "parallelism", "replicas", "runPolicy", "Worker", "pytorchReplicaSpecs"),
    ]
)
SHAPES = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), SHAPES)


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    one=OBJECTS,
    pods=st.lists(OBJECTS, max_size=3),
    mixed=st.lists(st.integers(0, 2), max_size=4),
    events=st.lists(st.dictionaries(WORDS, SHAPES), max_size=2),
)
def test_whatever_stands_in_objects_a_state_comes_out(
    kind: str,
    one: dict[str, Any],
    pods: list[dict[str, Any]],
    mixed: list[int],
    events: list[dict[str, Any]],
) -> None:
    """Strange objects beside sound ones: the sound ones still count."""
    one = {**one, "metadata": {"uid": CHILD_UID}}
    owned = {"ownerReferences": [{"uid": CHILD_UID, "controller": True}]}
    ours = [{**body, "metadata": {"uid": str(i), **owned}} for i, body in enumerate(pods)]
    read(kind, one, ours, gone=ours[:1], events=events)
    states = {
        0: [pod(kind, i, uid=f"r{i}") for i, state in enumerate(mixed) if state == 0],
        1: [pod(kind, i, "pending", uid=f"w{i}") for i, state in enumerate(mixed) if state == 1],
        2: [pod(kind, i, "ended", uid=f"e{i}") for i, state in enumerate(mixed) if state == 2],
    }
    sound = [one for group in states.values() for one in group]
    nodes = max(1, len(mixed))
    found = read(kind, child(kind, nodes=nodes), [*pods, *sound], gone=pods, events=events)
    assert found.running == len(states[0])
    assert found.processes == nodes
    assert found.over == (len(states[2]) == nodes)
    assert not (found.over and found.running)
    assert found.ran == (bool(mixed) and not states[1])
