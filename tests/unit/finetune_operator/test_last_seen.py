"""How pods ended is kept for as long as somebody may ask, within bounds, and for each job alone."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_api.names import LABEL_JOB, LABEL_UID
from finetune_operator.endings import ending_of
from finetune_operator.gang import members
from finetune_operator.last_seen import LastSeen, trimmed
from finetune_operator.queue import Key
from harness.looks import NAMESPACE, PODS, Looks
from harness.operator_driver import JOBS
from harness.played_runs import trains_forever

Object = dict[str, Any]
BOT = Key("team", "bot")


def pod(uid: str, *, namespace: str = "team", job: str = "job-1", **status: Any) -> Object:
    metadata = {
        "name": f"bot-1-{uid}",
        "namespace": namespace,
        "uid": uid,
        "labels": {LABEL_UID: job, LABEL_JOB: "bot"},
    }
    return {"metadata": metadata, "status": {"phase": "Failed", **status}}


def uids(seen: LastSeen, key: Key = BOT, job: str = "job-1") -> list[str]:
    return [one["metadata"]["uid"] for one in seen.of_job(key, job)]


# What is kept of a pod


FULL: Object = {
    "metadata": {
        "name": "bot-1-3-x7k2p",
        "namespace": "team",
        "uid": "p1",
        "labels": {
            "finetune.dev/job": "bot",
            "finetune.dev/job-uid": "job-1",
            "finetune.dev/stage": "train",
            "finetune.dev/attempt": "1",
            "app.kubernetes.io/managed-by": "finetune-operator",
            "batch.kubernetes.io/job-name": "bot-1",
            "batch.kubernetes.io/job-completion-index": "3",
            "somebody": "else",
        },
        "annotations": {
            "batch.kubernetes.io/job-completion-index": "3",
            "notes": "x" * 250_000,
        },
        "ownerReferences": [
            {"kind": "FineTuneJob", "name": "bot", "uid": "job-1"},
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": "bot-1",
                "uid": "child",
                "controller": True,
                "blockOwnerDeletion": True,
            },
        ],
        "creationTimestamp": "2026-11-22T10:00:00Z",
        "deletionTimestamp": "2026-11-22T10:10:00Z",
        "deletionGracePeriodSeconds": 120,
        "managedFields": [{"manager": "kubelet"}],
    },
    "spec": {"nodeName": "node1", "containers": [{"name": "trainer", "env": ["x" * 10_000]}]},
    "status": {
        "phase": "Failed",
        "reason": "Evicted",
        "message": "low on memory" + " " * 3 + "y" * 100_000,
        "startTime": "2026-11-22T10:00:01Z",
        "podIP": "10.0.0.1",
        "conditions": [
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
                "lastTransitionTime": "2026-11-22T10:08:00Z",
            },
            {"type": "team.example/note", "status": "True", "message": "z" * 30_000},
        ],
        "containerStatuses": [
            {
                "name": "istio-proxy",
                "state": {"terminated": {"exitCode": 0, "message": "m" * 4096}},
            },
            {
                "name": "trainer",
                "image": "registry.example/trainer",
                "imageID": "sha256:" + "0" * 64,
                "state": {
                    "terminated": {
                        "exitCode": 137,
                        "reason": "Error",
                        "message": "said",
                        "containerID": "containerd://" + "0" * 64,
                        "startedAt": "2026-11-22T10:01:00Z",
                        "finishedAt": "2026-11-22T10:09:00Z",
                    }
                },
            },
        ],
    },
}


def test_of_a_pod_is_kept_what_is_read_of_one_that_is_gone() -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "bot-1", "uid": "child"}
    assert trimmed(FULL) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "bot-1-3-x7k2p",
            "namespace": "team",
            "uid": "p1",
            "creationTimestamp": "2026-11-22T10:00:00Z",
            "deletionTimestamp": "2026-11-22T10:10:00Z",
            "deletionGracePeriodSeconds": 120,
            "labels": {
                "finetune.dev/job": "bot",
                "finetune.dev/job-uid": "job-1",
                "finetune.dev/stage": "train",
                "finetune.dev/attempt": "1",
                "app.kubernetes.io/managed-by": "finetune-operator",
                "batch.kubernetes.io/job-name": "bot-1",
                "batch.kubernetes.io/job-completion-index": "3",
            },
            "annotations": {"batch.kubernetes.io/job-completion-index": "3"},
            "ownerReferences": [{**owner, "controller": True}],
        },
        "status": {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "low on memory   " + "y" * 2032,
            "startTime": "2026-11-22T10:00:01Z",
            "conditions": [
                {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting",
                    "lastTransitionTime": "2026-11-22T10:08:00Z",
                }
            ],
            "containerStatuses": [
                {
                    "name": "trainer",
                    "state": {
                        "terminated": {
                            "exitCode": 137,
                            "reason": "Error",
                            "message": "said",
                            "startedAt": "2026-11-22T10:01:00Z",
                            "finishedAt": "2026-11-22T10:09:00Z",
                        }
                    },
                }
            ],
        },
    }


def variants() -> list[Object]:
    """Return pods that end in as many ways as a cluster knows."""
    found = [copy.deepcopy(FULL) for _ in range(8)]
    found[1]["status"].pop("reason")
    found[2]["status"] |= {"reason": "NodeLost", "conditions": []}
    found[3]["status"] = {"phase": "Running"}
    found[4]["status"]["containerStatuses"].pop()
    found[5]["status"]["containerStatuses"] = None
    found[5]["status"]["conditions"] = [
        {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-22T10:07:00Z"}
    ]
    found[6]["status"]["containerStatuses"][1]["state"] = {
        "running": {"startedAt": "2026-11-22T10:01:00Z"}
    }
    found[6]["metadata"].pop("ownerReferences")
    ended = found[7]["status"]["containerStatuses"][1]["state"]["terminated"]
    report = {"schemaVersion": 1, "jobUid": "job-1", "stage": "train", "attempt": 1, "exitCode": 11}
    ended |= {"exitCode": 11, "message": json.dumps(report) + " " * 7000}
    found[7]["status"] |= {"reason": "", "conditions": []}
    return found


@pytest.mark.parametrize("number", range(8))
def test_a_kept_pod_is_read_as_the_whole_one(number: int) -> None:
    whole = variants()[number]
    seen = LastSeen()
    seen.keep(whole)
    (kept,) = seen.of_job(BOT, "job-1")

    end = ending_of(kept, gone=True)
    assert end == ending_of(whole, gone=True)
    assert end is not None
    assert (end.report is not None) is (number == 7)
    (one, other) = (members("child", (), [it]) for it in (kept, whole))
    assert [(m.index, m.created, m.started, m.end, m.told) for m in one] == [
        (m.index, m.created, m.started, m.end, m.told) for m in other
    ]


# How much is kept


def test_annotations_of_a_tenant_take_no_room() -> None:
    """2,000 pods with as many annotations as the API server allows: 500 MB, were they kept."""
    seen = LastSeen()
    for number in range(2000):
        one = pod(str(number))
        one["metadata"]["annotations"] = {"notes": "x" * 250_000}
        one["metadata"]["labels"] |= {f"label-{it}": "y" * 63 for it in range(100)}
        seen.keep(one)
    assert len(seen) == 2000
    assert seen.size < 2000 * 400


def test_pods_are_bounded_by_bytes() -> None:
    seen = LastSeen(room=100_000)
    for number in range(100):
        seen.keep(pod(f"{number:02}", message="x" * 2048))
    assert 90_000 < seen.size <= 100_000
    assert uids(seen)[-1] == "99"
    assert "00" not in uids(seen)


def test_a_pod_that_no_kubelet_has_written_is_not_kept() -> None:
    seen = LastSeen()
    status = {"name": "trainer", "state": {"terminated": {"message": "\x01" * 9000}}}
    seen.keep(pod("1", containerStatuses=[status]))
    assert (len(seen), seen.size) == (0, 0)


def test_a_namespace_that_fills_the_room_hurts_only_itself() -> None:
    seen = LastSeen(limit=10)
    seen.keep(pod("first", job="job-1"))
    for number in range(50):
        seen.keep(pod(f"{number:02}", namespace="greedy", job="job-2"))
    assert uids(seen) == ["first"]
    assert uids(seen, Key("greedy", "bot"), "job-2") == [f"{it:02}" for it in range(41, 50)]


def test_a_pod_that_is_told_of_again_is_counted_once() -> None:
    seen = LastSeen()
    seen.keep(pod("1", message="long " * 100))
    seen.keep(pod("1"))
    once = LastSeen()
    once.keep(pod("1"))
    assert (len(seen), seen.size) == (1, once.size)
    seen.forget(BOT, "job-1")
    assert (len(seen), seen.size, uids(seen)) == (0, 0, [])


# Whose it is


def test_pods_of_another_namespace_are_not_of_the_job_whatever_their_labels_say() -> None:
    seen = LastSeen()
    seen.keep(pod("1"))
    seen.keep(pod("2", namespace="evil"))
    assert uids(seen) == ["1"]


def test_pods_of_another_job_of_this_name_go_when_that_is_known() -> None:
    seen = LastSeen()
    seen.keep(pod("old", job="job-0"))
    seen.keep(pod("new", job="job-1"))
    seen.hear("job-0", "7")
    seen.forget_others(BOT, "job-1")
    assert (uids(seen, job="job-0"), uids(seen)) == ([], ["new"])
    assert seen.newest("job-0") == 0
    seen.forget_others(BOT, "")
    assert len(seen) == 0


def test_a_pod_that_names_no_job_is_not_kept() -> None:
    seen = LastSeen()
    for name in (LABEL_JOB, LABEL_UID):
        one = pod("1")
        del one["metadata"]["labels"][name]
        seen.keep(one)
    assert len(seen) == 0


# In the operator


def forget_job(looks: Looks) -> None:
    del looks.api.objects[("finetunejobs", NAMESPACE, "bot")]


def test_nothing_is_left_of_a_job_that_is_gone_once_its_pods_are_too() -> None:
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    pods = [body for (kind, _, _), body in looks.api.objects.items() if kind == "pods"]
    assert pods
    forget_job(looks)
    looks.worker.known.forget(looks.key)
    looks.watches = False
    looks.look()
    assert len(looks.seen) == 0

    for body in pods:  # the collection of garbage takes a while
        looks.seen.keep(body)
        looks.watches = False
        looks.look()
    assert len(looks.seen) == 0


def test_nothing_is_left_of_a_job_whose_name_another_has_taken() -> None:
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    pods = [body for (kind, _, _), body in looks.api.objects.items() if kind == "pods"]
    for key in [key for key in looks.api.objects if key[0] != "namespaces"]:
        del looks.api.objects[key]
    looks.create()
    looks.watches = False
    looks.look()
    for body in pods:
        looks.seen.keep(body)
    looks.look()
    assert len(looks.seen) == 0


def test_a_pod_in_another_namespace_ends_nobody_elses_job() -> None:
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    body = looks.api.get(f"{JOBS.format(namespace=NAMESPACE)}/bot")
    child = looks.api.objects[("jobs", NAMESPACE, "bot-1")]
    (there,) = [one for one in looks.api.get(PODS)["items"] if "bot-1-" in one["metadata"]["name"]]
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    forged = {
        "metadata": {
            **there["metadata"],
            "namespace": "evil",
            "uid": "forged",
            "deletionTimestamp": at,
        },
        "status": {
            "phase": "Failed",
            "containerStatuses": [
                {
                    "name": "trainer",
                    "state": {"terminated": {"exitCode": 11, "startedAt": at, "finishedAt": at}},
                }
            ],
        },
    }
    owner = forged["metadata"]["ownerReferences"][0]
    assert owner["uid"] == child["metadata"]["uid"]
    assert forged["metadata"]["labels"][LABEL_UID] == body["metadata"]["uid"]
    looks.seen.keep(forged)
    looks.watches = False

    looks.settle()
    assert looks.status["phase"] == "Running"
    assert looks.status.get("lastFailure") is None
