"""What is read off children and their pods: who runs, who ended, which backend a job gets."""

from __future__ import annotations

import pytest

from finetune_operator.backend import CPU_STAGES, choose, remains
from finetune_operator.failures import classify
from harness.children import CHILD_UID, KINDS, at, cause, child, moment, pod, read


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


def test_words_of_the_platform() -> None:
    assert (
        read("PyTorchJob", child("PyTorchJob", "Created", "Running"), []).platform_status
        == "Running"
    )
    assert (
        read("PyTorchJob", child("PyTorchJob", "Created", "Failed"), []).platform_status == "Failed"
    )
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
