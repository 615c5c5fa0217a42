"""A namespace without room for what a preparation found: the job says so, and waits for room."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_operator.kube import Forbidden, Invalid, KubeError
from harness.looks import MAPS, NAMESPACE, Looks
from harness.played_runs import trains_forever

QUOTA = (
    'configmaps "bot-00000002-prepared" is forbidden: exceeded quota: small,'
    " requested: count/configmaps=1, used: count/configmaps=2, limited: count/configmaps=2"
)


def refusing(looks: Looks, error: KubeError) -> None:
    """Refuse every ConfigMap that is made from now on."""

    def refuse(method: str, path: str) -> int | None:
        if method == "POST" and path == MAPS:
            raise error
        return None

    looks.kube.refuse = refuse


def prepared_but(error: KubeError) -> Looks:
    """Return a job whose preparation has ended where no ConfigMap can be made any more."""
    looks = Looks(script=trains_forever)
    looks.create()
    for _ in range(8):
        looks.settle()
        if "bot-prepare" in looks.children():
            break
    refusing(looks, error)
    looks.player.turn()
    looks.player.turn()
    looks.player.turn()
    return looks


@pytest.mark.parametrize(
    ("error", "reason", "fix"),
    [
        (
            Forbidden(403, QUOTA, "Forbidden"),
            "QuotaExceeded",
            "free some of the namespace's quota or have it raised",
        ),
        (
            Forbidden(403, 'cannot create resource "configmaps"', "Forbidden"),
            "CreationForbidden",
            "ask who runs the cluster to allow it",
        ),
        (
            Invalid(422, "data: Too long", "Invalid"),
            "CreationRefused",
            "ask who runs the cluster to allow it",
        ),
    ],
)
@pytest.mark.parametrize("restarted", [False, True])
def test_a_preparation_that_cannot_be_kept_waits_and_says_why(
    error: KubeError, reason: str, fix: str, restarted: bool
) -> None:
    looks = prepared_but(error)
    if restarted:
        looks.restart()
        refusing(looks, error)
    for _ in range(3):
        wait = looks.settle()
        assert wait is not None
        assert 0 < wait <= 60
        looks.player.turn()

    status, said, message = looks.conditions()["Prepared"]
    assert (status, said) == ("False", reason)
    assert message.startswith("what the preparation found cannot be kept in ConfigMap bot-")
    assert error.message in message
    assert message.endswith(f"; {fix}; the job goes on by itself then")
    assert looks.status["phase"] == "Preparing"
    assert looks.status["summary"]["reason"] == reason
    assert (looks.status.get("failures", 0), looks.status["tries"]) == (0, 1)
    writes = [one for one in looks.api.writes if "finetunejobs" in one]
    looks.settle()
    assert [one for one in looks.api.writes if "finetunejobs" in one] == writes

    looks.kube.refuse = lambda method, path: None
    looks.train()
    assert looks.status["attempt"] == 1
    assert looks.conditions()["Prepared"][:2] == ("True", "DataReady")


@pytest.mark.parametrize("suspended", ["before", "after"])
def test_a_job_that_is_suspended_meanwhile_says_why_it_waits_and_loses_nothing(
    suspended: str,
) -> None:
    error = Forbidden(403, QUOTA, "Forbidden")
    looks = prepared_but(error)
    if suspended == "after":
        looks.settle()
        assert looks.conditions()["Prepared"][1] == "QuotaExceeded"
    looks.change(suspend=True)
    for _ in range(4):
        looks.settle()
        looks.ahead += timedelta(seconds=60)
    looks.restart()
    refusing(looks, error)
    for _ in range(4):
        looks.settle()
        looks.ahead += timedelta(minutes=20)

    assert looks.conditions()["Prepared"][:2] == ("False", "QuotaExceeded")
    assert looks.children() == ["bot-prepare"]
    assert "stopping" not in looks.status
    looks.kube.refuse = lambda method, path: None
    for _ in range(3):
        looks.turn()
    assert looks.conditions()["Suspended"][0] == "True"
    assert looks.status["prepared"] is True
    looks.change(suspend=False)
    looks.train()
    assert looks.player.made == ["bot-prepare-0-abcde", "bot-1-0-abcde"]


def test_a_name_that_is_taken_is_said_and_free_again_goes_on() -> None:
    looks = Looks(script=trains_forever)
    body = looks.create()
    name = f"bot-{body['metadata']['uid'][:8]}-prepared"
    taken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {}}
    looks.api.create(MAPS, taken)
    for _ in range(8):
        looks.turn()

    assert looks.conditions()["Prepared"] == (
        "False",
        "NameTaken",
        f"what the preparation found cannot be kept: ConfigMap {name} exists and is not this"
        " job's; remove it, or give the job another name",
    )
    looks.api.request("DELETE", f"{MAPS}/{name}")
    looks.train()


def starting() -> Looks:
    """Return a job whose first attempt waits for its pods; its preparation still exists."""
    looks = Looks(script=trains_forever)
    looks.player.held = {"bot-1"}
    looks.create()
    for _ in range(12):
        looks.turn()
    assert looks.children() == ["bot-1", "bot-prepare"]
    looks.restart()
    refusing(looks, Forbidden(403, QUOTA, "Forbidden"))
    return looks


def test_a_job_that_has_begun_needs_no_room_for_what_is_there() -> None:
    """The API server counts against the quota before it sees that the name exists."""
    looks = starting()
    looks.settle()
    assert looks.status["phase"] == "Starting"
    assert looks.conditions()["Prepared"][:2] == ("True", "DataReady")


def test_what_is_known_by_its_digest_is_used_where_it_cannot_be_kept_again() -> None:
    looks = starting()
    uid = looks.api.objects[("finetunejobs", NAMESPACE, "bot")]["metadata"]["uid"]
    del looks.api.objects[("configmaps", NAMESPACE, f"bot-{uid[:8]}-prepared")]
    looks.settle()
    looks.player.held = set()
    looks.train()
    assert looks.status["attempt"] == 1
