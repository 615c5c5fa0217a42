"""What is seen of children that are stuck, and of children that went before they were looked at."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.kube import BATCH_JOBS, Listing, Resource
from finetune_operator.observe import Observer
from harness.looks import CHILDREN, NAMESPACE, PODS, Looks
from harness.played_runs import Run, trains_forever

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


@pytest.mark.parametrize(
    ("versions", "asked"),
    [
        ((7, 7), [("jobs", None), ("pods", None)]),
        ((7, 9), [("jobs", None), ("pods", None)]),
        ((9, 7), [("jobs", None), ("pods", None), ("pods", 9)]),
        ((None, 7), [("jobs", None), ("pods", None), ("pods", None)]),
    ],
)
def test_pods_are_never_older_than_the_children_beside_them(
    versions: tuple[int | None, int | None], asked: list[tuple[str, int | None]]
) -> None:
    """Both are asked for at once; who answered from an older state is asked again."""
    said = []

    class Lists:
        async def listed(
            self, resource: Resource, namespace: str, labels: str, since: int | None = None
        ) -> Listing:
            del namespace, labels
            said.append((resource.plural, since))
            version = versions[0] if resource == BATCH_JOBS else versions[1]
            return Listing([{"metadata": {"name": str(len(said))}}], since or version)

    observer = Observer(Lists(), None, None, None)  # type: ignore[arg-type]
    _, pods = asyncio.run(observer._children_and_pods([BATCH_JOBS], NAMESPACE, "uid"))

    assert said == asked
    assert pods == [{"metadata": {"name": str(len(asked))}}]
