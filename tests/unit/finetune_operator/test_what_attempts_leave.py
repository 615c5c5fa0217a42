"""What was made for attempts that were stopped goes, and costs no request that anyone waits for."""

from datetime import timedelta

import pytest

from finetune_operator.kube import Forbidden
from harness.looks import CLAIMS, MAPS, NAMESPACE, Looks
from harness.memory_api import Crash
from harness.played_runs import Run, trains_forever

SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"


def gang(script=trains_forever):
    """A job of two nodes, which has a Service for each attempt."""
    looks = Looks(script=script)
    claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteMany"]}}
    looks.api.create(CLAIMS, claim)
    looks.create(resources={"nodes": 2}, workspace={"claimName": "shared"})
    return looks


def listen(looks):
    """Keep each request for a ConfigMap or a Service from here on."""
    asked = []
    answer = looks.kube.refuse

    def hear(method, path):
        kind, _, name = path.partition(f"/namespaces/{NAMESPACE}/")[2].partition("/")
        if kind in ("configmaps", "services"):
            asked.append(f"{method} {kind} {name}".strip())
        return answer(method, path)

    looks.kube.refuse = hear
    return asked


def stop(looks, turns=4):
    looks.change(suspend=True)
    for _ in range(turns):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Suspended"


def resume(looks):
    looks.change(suspend=False)
    for _ in range(4):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Running"


def maps(looks):
    """Return the ConfigMaps of children."""
    names = [one["metadata"]["name"] for one in looks.api.get(MAPS)["items"]]
    return sorted(name for name in names if name.endswith("-config"))


def services(looks):
    return sorted(one["metadata"]["name"] for one in looks.api.get(SERVICES)["items"])


def test_after_six_rounds_of_suspend_and_resume_one_attempt_s_objects_are_there():
    looks = gang()
    looks.train()
    for _ in range(6):
        stop(looks)
        resume(looks)

    assert looks.status["attempt"] == 7
    assert (maps(looks), services(looks)) == (["bot-7-config"], ["bot-7"])


def test_a_preparation_that_is_stopped_leaves_nothing_either():
    looks = Looks(script=lambda stage, *_: Run(forever=True))
    looks.create()
    looks.turn()
    for _ in range(3):
        looks.turn()
        stop(looks)
        looks.change(suspend=False)
        looks.turn()
    looks.turn()
    looks.settle()
    assert looks.status["tries"] == 4
    assert maps(looks) == ["bot-prepare-4-config"]


def test_attempts_that_never_run_leave_nothing_but_the_last():
    looks = gang()
    looks.player.held = {"bot-2-", "bot-3-", "bot-4-"}
    looks.train()
    for _ in range(3):
        stop(looks)
        looks.change(suspend=False)
        for _ in range(3):
            looks.turn()
        looks.settle()
    assert looks.status["attempt"] == 4
    assert (maps(looks), services(looks)) == (["bot-4-config"], ["bot-4"])


def test_what_publishing_follows_goes_too():
    looks = gang()
    looks.train()
    stop(looks)
    looks.player.script = lambda *_: Run()
    looks.player.held = {"bot-2-0"}
    looks.change(suspend=False)
    for _ in range(3):
        looks.turn()
    looks.player.held = set()
    looks.live()
    assert looks.status["outcome"] == "Succeeded"
    assert "bot-1-config" not in maps(looks)


def test_it_is_asked_for_once_and_only_after_the_next_attempt_was_made():
    looks = gang()
    looks.train()
    stop(looks)
    asked = listen(looks)
    looks.change(suspend=False)
    for _ in range(4):
        looks.turn()
    looks.settle()
    made = ["POST configmaps", "POST services"]
    assert asked[:2] == made
    assert set(asked[2:]) == {
        "GET configmaps bot-1-config",
        "GET services bot-1",
        "DELETE services bot-1",
        "DELETE configmaps bot-1-config",
    }
    assert asked.index("DELETE services bot-1") < asked.index("DELETE configmaps bot-1-config")
    del asked[:]
    looks.restart()
    hear = listen(looks)
    for _ in range(5):
        looks.settle()
    assert [one for one in asked + hear if "-config" in one or "services" in one] == []


def test_a_first_attempt_asks_for_nothing_of_earlier_ones():
    looks = gang(script=lambda *_: Run())
    asked = listen(looks)
    looks.live()
    assert [one for one in asked if one.startswith("GET") and "-config" in one] == [
        "GET configmaps bot-prepare-config",
        "GET configmaps bot-1-config",
    ], "each once, when it has ended and its successor runs"
    assert asked.index("GET configmaps bot-1-config") > asked.index(
        "DELETE configmaps bot-prepare-config"
    )


def round_trip(looks):
    """Two attempts that are stopped, and a third that runs; crashes are followed by a new worker."""
    for suspend, turns in ((True, 5), (False, 4), (True, 5), (False, 6)):
        looks.change(suspend=suspend)
        for _ in range(turns):
            for _ in range(5):
                try:
                    looks.turn()
                    break
                except Crash:
                    looks.restart()


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_each_write_it_leaves_the_same(when):
    looks = gang()
    looks.train()
    begun = looks.kube.count
    round_trip(looks)
    total = looks.kube.count - begun
    assert total > 20
    for number in range(1, total + 1):
        looks = gang()
        looks.train()
        looks.kube.crash_at = (when, looks.kube.count + number)
        round_trip(looks)
        assert looks.status["attempt"] == 3, f"killed {when} write {number}"
        found = (maps(looks), services(looks))
        expected = (["bot-3-config"], ["bot-3"])
        assert found == expected, f"killed {when} write {number}"


def test_what_could_not_be_removed_goes_with_the_next_attempt():
    looks = gang()
    looks.train()
    stop(looks)
    looks.kube.refuse = lambda method, path: (
        500 if method == "DELETE" and ("services" in path or "configmaps" in path) else None
    )
    resume(looks)
    assert services(looks) == ["bot-1", "bot-2"]
    looks.kube.refuse = lambda method, path: None
    stop(looks)
    resume(looks)
    assert (maps(looks), services(looks)) == (["bot-3-config"], ["bot-3"])


def test_what_is_kept_for_its_log_and_what_is_somebody_else_s_stays():
    def script(stage, attempt, node):
        del node
        if stage == "train" and attempt == 2:
            return Run(exit_code=20, step=45, checkpoint=40)
        return Run(forever=stage == "train")

    looks = gang(script)
    looks.train()
    stop(looks)
    (own,) = [one for one in looks.api.get(MAPS)["items"] if "bot-1-c" in one["metadata"]["name"]]
    looks.api.request("DELETE", f"{MAPS}/bot-1-config")
    looks.api.create(MAPS, {"metadata": {"name": "bot-1-config"}, "data": own["data"]})
    looks.change(suspend=False)
    for _ in range(8):
        looks.turn()
    looks.ahead += timedelta(minutes=2)
    for _ in range(5):
        looks.turn()
    assert looks.status["attempt"] == 3
    assert {"bot-2", "bot-3"} <= set(looks.children())
    assert maps(looks) == ["bot-1-config", "bot-2-config", "bot-3-config"]


def test_a_quota_that_is_full_of_what_was_left_makes_room():
    looks = gang()
    looks.train()
    stop(looks)

    create = looks.kube.create

    async def within_quota(body):
        if body["kind"] == "Service" and services(looks):
            text = (
                'services "bot-2" is forbidden: exceeded quota: small, requested: count/services=1'
            )
            raise Forbidden(403, text)
        return await create(body)

    looks.kube.create = within_quota
    looks.change(suspend=False)
    for _ in range(3):
        looks.turn()
    looks.settle()
    assert looks.status["phase"] == "Running"
    assert services(looks) == ["bot-2"]
