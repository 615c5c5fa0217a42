"""Which earlier jobs' folders a claim holds, and who wrote that down."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_operator.kube import Forbidden
from finetune_operator.workspace_folders import ANNOTATION, Folders, earlier, told
from harness.looks import NAMESPACE, Looks
from harness.operator_driver import JOBS

CLAIM = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/bot-workspace"
FIRST, SECOND, THIRD = (f"{digit * 8}-0000-4000-8000-000000000000" for digit in "abc")


def claim(later: object = None, made_for: str = FIRST) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "bot-workspace",
            "uid": "claim-1",
            "resourceVersion": "7",
            "labels": {
                "app.kubernetes.io/managed-by": "finetune-operator",
                "finetune.dev/job-uid": made_for,
            },
            **({} if later is None else {"annotations": {ANNOTATION: later}}),
        }
    }


def test_a_claim_of_this_job_alone_holds_no_other() -> None:
    assert earlier(claim(), "bot", FIRST) == ()
    assert earlier({"metadata": {"name": "bot-workspace"}}, "bot", FIRST) == ()


def test_the_newest_folder_comes_first_and_the_jobs_own_is_none_of_them() -> None:
    assert earlier(claim(), "bot", SECOND) == ("bot-aaaaaaaa",)
    noted = claim("bot-bbbbbbbb bot-cccccccc")
    assert earlier(noted, "bot", THIRD) == ("bot-bbbbbbbb", "bot-aaaaaaaa")


@pytest.mark.parametrize("later", ["../etc bot-xyz bot-bbbbbbbb/.. bot-BBBBBBBB other-bbbbbbbb", 7])
def test_what_is_no_folder_of_this_name_is_left_out(later: object) -> None:
    assert earlier(claim(later), "bot", THIRD) == ("bot-aaaaaaaa",)


def test_what_the_user_reads() -> None:
    assert told(("bot-aaaaaaaa",)) == (
        "the claim holds the folder of an earlier job too: bot-aaaaaaaa"
    )
    assert told(("bot-bbbbbbbb", "bot-aaaaaaaa")) == (
        "the claim holds the folders of earlier jobs too, the newest first: bot-bbbbbbbb,"
        " bot-aaaaaaaa"
    )


class Patches:
    """A client that keeps what it was asked to change."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.asked: list[Any] = []
        self.refuses = refuses

    async def patch(self, resource: object, body: object, change: dict[str, Any]) -> None:
        del resource, body
        self.asked.append(change["metadata"]["annotations"][ANNOTATION])
        if self.refuses:
            raise Forbidden(403, "may not patch persistentvolumeclaims")


def test_twenty_are_kept() -> None:
    before = [f"bot-{number:08x}" for number in range(20)]
    kube = Patches()
    asyncio.run(Folders(kube).add(claim(" ".join(before)), "bot", THIRD))  # type: ignore[arg-type]
    assert kube.asked == [" ".join([*before[1:], "bot-cccccccc"])]


def test_a_folder_is_added_once_and_a_refusal_is_remembered() -> None:
    kube = Patches(refuses=True)
    folders = Folders(kube)  # type: ignore[arg-type]
    for _ in range(3):
        asyncio.run(folders.add(claim(), "bot", SECOND))
    assert kube.asked == ["bot-bbbbbbbb"]
    asyncio.run(folders.add(claim("bot-cccccccc"), "bot", THIRD))
    assert kube.asked == ["bot-bbbbbbbb"]


def test_the_third_job_of_a_name_is_told_of_both_before_it() -> None:
    looks, uids = Looks(), []
    for number in range(3):
        uids.append(looks.create()["metadata"]["uid"])
        assert looks.live()["outcome"] == "Succeeded"
        if number == 2:
            break
        for plural in ("apis/batch/v1/namespaces/team/jobs", "api/v1/namespaces/team/configmaps"):
            for body in looks.api.get(f"/{plural}")["items"]:
                looks.api.request("DELETE", f"/{plural}/{body['metadata']['name']}")
        looks.player.turn()
        looks.api.request("DELETE", f"{JOBS.format(namespace=NAMESPACE)}/bot")
        looks.settle()

    first, second, third = (f"bot-{uid.replace('-', '')[:8]}" for uid in uids)
    events = looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
    said = [one["message"] for one in events if one["reason"] == "WorkspaceReused"]
    assert said == [
        f"the claim holds the folder of an earlier job too: {first}",
        f"the claim holds the folders of earlier jobs too, the newest first: {second}, {first}",
    ]
    kept = looks.api.get(CLAIM)["metadata"]["annotations"][ANNOTATION]
    assert kept == f"{second} {third}"
