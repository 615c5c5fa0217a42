"""What is seen of children that are stuck, and of children that went before they were looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from finetune_operator.kube import BATCH_JOBS, Listing, Resource
from finetune_operator.last_seen import LastSeen
from finetune_operator.observe import Observer
from finetune_operator.queue import Key
from harness.looks import CHILDREN, NAMESPACE, PODS, Looks
from harness.played_runs import Run, trains_forever
from harness.simulation import make_job

EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"


def pods_of(looks: Looks, child: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = looks.api.get(PODS)["items"]
    return [p for p in found if p["metadata"]["ownerReferences"][0]["name"] == child]


def test_a_secret_that_is_missing_is_said_while_the_pod_waits_for_it() -> None:
    looks = Looks()
    looks.create()
    looks.turn()
    looks.player.turn()
    (pod,) = pods_of(looks, "bot-prepare")
    stored = looks.api.objects[("pods", NAMESPACE, pod["metadata"]["name"])]
    stored["status"] = {"phase": "Pending"}
    text = 'MountVolume.SetUp failed for volume "settings" : secret "hf" not found'
    looks.api.create(
        EVENTS,
        {
            "metadata": {"name": "why"},
            "involvedObject": {"uid": pod["metadata"]["uid"]},
            "reason": "FailedMount",
            "message": text,
        },
    )

    looks.settle()

    assert looks.conditions()["Prepared"] == ("False", "SecretMissing", text)


def test_what_a_child_said_last_counts_after_its_object_is_gone() -> None:
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    assert "checkpoint" not in looks.status
    (pod,) = pods_of(looks, "bot-1")
    looks.player._terminate(pod, Run(exit_code=143, step=70, checkpoint=60))
    (ended,) = pods_of(looks, "bot-1")
    looks.api.request("DELETE", f"{PODS}/{ended['metadata']['name']}", {"gracePeriodSeconds": 0})
    looks.api.request("DELETE", f"{CHILDREN}/bot-1", {})

    looks.settle()

    status = looks.status
    assert status["attempt"] == 2
    assert (status["preemptions"], status.get("failures", 0)) == (1, 0)
    assert status["checkpoint"]["step"] == 60
    assert status["lastFailure"]["exitCode"] == 143
    assert status["resumes"][0]["fromStep"] == 60
    assert status["resumes"][0]["stoppedAt"] == 70


class Lists:
    """Answers questions for lists, and keeps what was asked: kind and version."""

    def __init__(self, answer: Callable[[str, int | None], Listing]) -> None:
        self.answer, self.said = answer, list[tuple[str, int | None]]()

    async def listed(
        self, resource: Resource, namespace: str, labels: str, since: int | None = None
    ) -> Listing:
        del namespace, labels
        self.said.append((resource.plural, since))
        return self.answer(resource.plural, since)


@pytest.mark.parametrize(
    ("child", "since", "first", "asked"),
    [
        (9, 6, True, [("jobs", 6), ("pods", 9)]),
        (6, 6, True, [("jobs", 6), ("pods", 6)]),
        (9, 6, False, [("jobs", 6), ("pods", None)]),
        (None, 6, True, [("jobs", 6), ("pods", None)]),
        (9, None, True, [("jobs", None), ("pods", None)]),
    ],
)
def test_pods_are_never_older_than_the_children_beside_them(
    child: int | None, since: int | None, first: bool, asked: list[tuple[str, int | None]]
) -> None:
    """After the first attempt they are the newest that there are."""
    lists = Lists(
        lambda kind, since: Listing([{"metadata": {"name": str(len(lists.said))}}], child)
    )
    observer = Observer(lists, None, LastSeen(), None)  # type: ignore[arg-type]
    _, pods = asyncio.run(observer._children_and_pods([BATCH_JOBS], make_job(), since, first=first))

    assert lists.said == asked
    assert pods == [{"metadata": {"name": "2"}}]


def test_pods_of_a_child_that_is_not_listed_have_it_listed_again() -> None:
    """It was made after the version that was asked for, and its controller was quick."""
    child = {"metadata": {"name": "tiny-1", "uid": "c1", "ownerReferences": [owner("uid")]}}
    pod = {"metadata": {"name": "tiny-1-0", "uid": "p1", "ownerReferences": [owner("c1")]}}

    def answer(kind: str, since: int | None) -> Listing:
        if kind == "pods":
            return Listing([pod], 9)
        return Listing([] if since else [child], since or 9)

    lists = Lists(answer)
    observer = Observer(lists, None, LastSeen(), None)  # type: ignore[arg-type]
    children, pods = asyncio.run(
        observer._children_and_pods([BATCH_JOBS], make_job(), 6, first=False)
    )

    assert (children, pods) == ([child], [pod])
    assert lists.said == [("jobs", 6), ("pods", None), ("jobs", None), ("pods", None)]


def owner(uid: str) -> dict[str, Any]:
    return {"uid": uid, "controller": True, "kind": "Job", "name": "tiny-1"}


@pytest.mark.parametrize(
    ("version", "heard", "since"),
    [("5", [], 5), ("5", ["3"], 5), ("5", ["9", "7"], 9), ("5", ["x", ""], 5), ("x", ["9"], None)],
)
def test_children_are_not_older_than_the_job_or_what_was_told_of_them(
    version: str, heard: list[str], since: int | None
) -> None:
    seen = LastSeen()
    seen.hear("another", "99")
    for one in heard:
        seen.hear("uid", one)
    observer = Observer(None, None, seen, None)  # type: ignore[arg-type]

    found = observer._since({"metadata": {"uid": "uid", "resourceVersion": version}})

    assert found == since


def test_what_was_told_of_a_job_that_is_gone_is_forgotten() -> None:
    seen = LastSeen(limit=2)
    for uid in ("a", "b", "c"):
        seen.hear(uid, "4")
    seen.forget(Key(NAMESPACE, "bot"), "b")

    assert [seen.newest(uid) for uid in ("a", "b", "c")] == [0, 0, 4]


class Claims:
    """Answers with the claim that is there, and counts the questions."""

    def __init__(self, claim: dict[str, Any] | None) -> None:
        self.claim, self.asked = claim, 0

    async def find(self, *_: Any) -> dict[str, Any] | None:
        self.asked += 1
        return self.claim


@pytest.mark.parametrize(
    ("phase", "ending", "ours", "asked"),
    [
        ("Bound", None, False, 1),
        ("Bound", None, True, 3),
        ("Bound", "2026-01-01T00:00:00Z", False, 3),
        ("Pending", None, False, 3),
        (None, None, False, 3),
    ],
)
def test_a_claim_of_somebody_else_is_read_once_for_jobs_that_come_together(
    phase: str | None, ending: str | None, ours: bool, asked: int
) -> None:
    metadata = {"name": "shared", "deletionTimestamp": ending}
    claims = Claims({"metadata": metadata, "status": {"phase": phase}} if phase else None)
    observer = Observer(claims, None, LastSeen(), None)  # type: ignore[arg-type]

    async def three() -> list[Any]:
        return [await observer._claim(NAMESPACE, "shared", ours=ours) for _ in range(3)]

    assert asyncio.run(three()) == [claims.claim] * 3
    assert claims.asked == asked
