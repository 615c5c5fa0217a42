"""How a job is stopped, ends, tries again, and what it makes of pods that are gone."""

from datetime import timedelta

from harness.looks import CHILDREN, NAMESPACE, PODS, Looks
from harness.operator_driver import JOBS
from harness.played_runs import Run, first_try_of, trains_forever


def test_suspend_saves_and_resume_counts_as_nothing():
    looks = Looks(script=first_try_of("train"))
    looks.create()
    looks.train()
    looks.change(suspend=True)
    for _ in range(4):
        looks.turn()
    looks.settle()

    assert looks.status["phase"] == "Suspended"
    assert looks.status["checkpoint"]["step"] == 30
    assert not [name for name in looks.children() if name == "bot-1"]
    looks.change(suspend=False)
    status = looks.live()
    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 0)
    assert [(r["cause"], r["fromStep"]) for r in status["resumes"]] == [("Stopped", 30)]
    assert status["suspensions"] == 1
    assert "restarts" not in status["summary"]


def test_the_cause_is_in_status_before_a_child_is_told_to_end():
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    looks.change(suspend=True)
    writes = len(looks.api.writes)
    looks.look()
    assert looks.status["stopping"] == "Stopped"
    assert [write for write in looks.api.writes[writes:] if "event" not in write] == [
        "status finetunejobs bot",
        "delete jobs bot-1",
    ]
    assert looks.api.get(f"{CHILDREN}/bot-1")["metadata"]["deletionTimestamp"]


def test_the_deadline_ends_it():
    looks = Looks(script=trains_forever)
    looks.create(activeDeadlineSeconds=600)
    looks.train()
    looks.ahead += timedelta(seconds=700)
    status = looks.live()

    assert status["outcome"] == "Failed"
    assert status["lastFailure"]["class"] == "DeadlineExceeded"


def test_its_time_over_the_job_is_removed():
    looks = Looks()
    looks.create(ttlSecondsAfterFinished=100)
    looks.live()
    wait = looks.settle()

    assert 0 < wait <= 101
    looks.ahead += timedelta(seconds=102)
    assert looks.look() is None
    assert not looks.api.get(JOBS.format(namespace=NAMESPACE))["items"]
    assert looks.look() is None


def test_a_failed_job_is_tried_again_when_asked_to():
    codes = iter([11, 0])
    looks = Looks(script=lambda stage, *_: Run(exit_code=next(codes) if stage == "prepare" else 0))
    looks.create()
    status = looks.live()
    assert (status["outcome"], status["lastFailure"]["class"]) == ("Failed", "InvalidData")
    assert looks.player.made == ["bot-prepare-0-abcde"]

    looks.change(recovery={"retryGeneration": 1})
    status = looks.live()
    assert status["outcome"] == "Succeeded"
    assert looks.player.made[1] == "bot-prepare-2-0-abcde"


def test_a_child_that_was_deleted_is_lost_infrastructure():
    looks = Looks(script=first_try_of("train"))
    looks.create()
    looks.train()
    looks.api.request("DELETE", f"{CHILDREN}/bot-1")
    looks.look()
    assert looks.status["attempt"] == 1, "its pod still runs"
    status = looks.live()

    assert status["outcome"] == "Succeeded"
    assert (status["attempt"], status["failures"], status["preemptions"]) == (2, 0, 1)
    assert looks.player.most_alive == {"bot": 1}


def test_a_pod_that_is_gone_is_remembered_as_it_ended():
    looks = Looks(script=trains_forever)
    looks.create()
    looks.train()
    pod = looks.api.get(f"/api/v1/namespaces/{NAMESPACE}/pods/bot-1-0-abcde")
    looks.player._terminate(pod, Run(exit_code=13, step=12, checkpoint=None))
    looks.api.request(
        "DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/bot-1-0-abcde", {"gracePeriodSeconds": 0}
    )
    looks.api.request(
        "PATCH",
        f"{CHILDREN}/bot-1/status",
        {"status": {"conditions": [{"type": "Failed", "status": "True"}]}},
    )
    looks.settle()

    assert looks.status["outcome"] == "Failed"
    assert looks.status["lastFailure"]["class"] == "NonFiniteLoss"
    assert looks.status["lastFailure"]["exitCode"] == 13


def test_where_the_model_lies_is_known_whether_its_last_pod_was_heard_or_not():
    """The operator is away while it publishes, and its pod is removed before it comes back."""
    looks = Looks()
    looks.create()
    for _ in range(40):
        if "bot-publish" in looks.children():
            break
        looks.turn()
    for _ in range(10):
        looks.player.turn()
    assert looks.api.get(f"{CHILDREN}/bot-publish")["status"]["completionTime"]
    looks.api.request("DELETE", f"{PODS}/bot-publish-0-abcde")
    looks.player.turn()
    looks.restart()
    status = looks.live()
    assert status["outcome"] == "Succeeded"
    assert status["output"].keys() == {"uri", "evaluation"}
    assert status["output"]["uri"].startswith("pvc://bot-workspace/bot-")
    assert status["output"]["uri"].endswith("/output")
    assert status["output"]["uri"] in looks.conditions()["Succeeded"][2]
