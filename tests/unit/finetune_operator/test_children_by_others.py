"""What somebody else does to a job's child, look by look, with a clock that is set."""

import asyncio
from datetime import timedelta

import pytest

from finetune_operator.ownership import with_owner
from finetune_operator.remains import is_child_name
from harness.looks import CHILDREN, NAMESPACE, PODS, Looks
from harness.memory_api import MemoryApi
from harness.played_runs import Run, first_try_of, trains_forever


def training(looks):
    looks.create(checkpoint={"gracePeriodSeconds": 20})
    for _ in range(8):
        looks.turn()
    assert looks.status["phase"] == "Running"


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_a_child_that_has_lost_its_owner_is_still_the_one_that_trains(backend):
    pytorch = backend == "PyTorchJob"
    looks = Looks(MemoryApi(pytorch=pytorch), script=trains_forever)
    looks.create(backend=backend)
    looks.train()
    plural = "pytorchjobs" if pytorch else "jobs"
    looks.api.objects[(plural, NAMESPACE, "bot-1")]["metadata"]["ownerReferences"] = []
    for _ in range(6):
        looks.turn()
        looks.ahead += timedelta(minutes=1)

    assert (looks.status["attempt"], looks.status.get("preemptions", 0)) == (1, 0)
    assert looks.player.most_alive == {"bot": 1}
    assert looks.status["phase"] == "Running"


def test_a_child_whose_size_was_set_to_nothing_waits_for_who_did_that():
    looks = Looks(script=first_try_of("train"))
    training(looks)
    looks.api.request("PATCH", f"{CHILDREN}/bot-1", {"spec": {"parallelism": 0}})
    for _ in range(3):
        looks.turn()

    assert looks.ahead == timedelta()
    assert looks.status["attempt"] == 2
    looks.ahead += timedelta(minutes=10)
    looks.settle()
    assert looks.conditions()["Recovering"] == (
        "True",
        "SuspendedByOthers",
        "somebody else has set spec.parallelism of bot-1 to 0; training goes on when it is set"
        " back, or bot-1 is deleted",
    )
    assert looks.children() == ["bot-1"]
    looks.api.request("PATCH", f"{CHILDREN}/bot-1", {"spec": {"parallelism": 1}})
    assert looks.live()["outcome"] == "Succeeded"
    assert (looks.status["failures"], looks.status["preemptions"]) == (0, 1)
    assert looks.status["resumes"][0]["fromStep"] == 30
    assert looks.player.most_alive == {"bot": 1}


def test_a_child_whose_size_was_set_to_nothing_before_it_ran_says_so():
    looks = Looks(script=first_try_of("train"))
    looks.create(recovery={"startTimeout": "5m"})
    while "bot-1" not in looks.children():
        looks.turn()
    looks.api.request("PATCH", f"{CHILDREN}/bot-1", {"spec": {"parallelism": 0}})
    for _ in range(2):
        looks.turn()
    looks.ahead += timedelta(minutes=10)
    looks.settle()

    assert looks.status["attempt"] == 1
    assert looks.conditions()["Queued"] == (
        "True",
        "SuspendedByOthers",
        "somebody else has set spec.parallelism of bot-1 to 0; training goes on when it is set"
        " back, or bot-1 is deleted",
    )
    looks.api.request("PATCH", f"{CHILDREN}/bot-1", {"spec": {"parallelism": 1}})
    looks.change(recovery={"startTimeout": "1h"})
    looks.player.script = lambda *_: Run()
    assert looks.live()["outcome"] == "Succeeded"
    assert (looks.status["failures"], looks.status["preemptions"]) == (0, 1)


def test_a_child_that_was_suspended_and_then_deleted_by_hand_is_followed_by_another():
    looks = Looks(script=first_try_of("train"))
    training(looks)
    looks.api.request("PATCH", f"{CHILDREN}/bot-1", {"spec": {"suspend": True}})
    for _ in range(3):
        looks.turn()
    looks.ahead += timedelta(minutes=10)
    looks.settle()

    assert looks.conditions()["Recovering"][:2] == ("True", "SuspendedByOthers")
    assert looks.children() == ["bot-1"]
    looks.api.request("DELETE", f"{CHILDREN}/bot-1")
    assert looks.live()["outcome"] == "Succeeded"
    assert looks.player.most_alive == {"bot": 1}


def pod(**labels):
    return {
        "metadata": {
            "name": "bot-1-0-abcde",
            "labels": {
                "app.kubernetes.io/managed-by": "finetune-operator",
                "batch.kubernetes.io/job-name": "bot-1",
                **labels,
            },
        }
    }


def child(**metadata):
    return {"metadata": {"name": "bot-1", "uid": "u-1", **metadata}}


def test_a_pod_without_an_owner_is_ours_only_when_its_child_is_gone_or_going():
    assert with_owner(pod(), [child()], None) == pod()
    going = with_owner(pod(), [child(deletionTimestamp="2026-11-22T10:00:00Z")], None)
    assert going["metadata"]["ownerReferences"] == [
        {"kind": "Job", "name": "bot-1", "uid": "u-1", "controller": True}
    ]
    gone = with_owner(pod(), [], None)
    assert gone["metadata"]["ownerReferences"][0]["uid"] == "gone/bot-1"


def test_labels_alone_make_no_pod_ours():
    copy = pod()
    copy["metadata"]["name"] = "debug-of-bot"
    assert with_owner(copy, [], None) == copy
    other = pod(**{"app.kubernetes.io/managed-by": "somebody"})
    assert with_owner(other, [], None) == other


def test_what_a_profile_that_is_gone_would_limit_stays_as_it_was():
    looks = Looks(script=first_try_of("train"))
    profiles = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
    limits = {"workspace": "100Gi", "runtime": "2h"}
    profile = {"metadata": {"name": "p"}, "spec": {"limits": limits}}
    looks.api.create(profiles, profile)
    small = {"size": "10Gi"}
    looks.create(profileRef={"name": "p"}, workspace=small, activeDeadlineSeconds=600)
    for _ in range(8):
        looks.turn()
    claim = looks.api.objects["persistentvolumeclaims", NAMESPACE, "bot-workspace"]
    claim["status"] = {"phase": "Bound"}
    looks.api.request("DELETE", f"{profiles}/p")
    looks.profiles.changed()
    looks.change(workspace={"size": "900Gi"}, activeDeadlineSeconds=99_999)
    looks.settle()

    accepted = looks.conditions()["Accepted"]
    gone = "FineTuneProfile p is gone, so nobody says how far this may go [profile-missing]"
    assert accepted[2] == (
        f"spec.activeDeadlineSeconds: {gone} fix: bring it back;"
        f" spec.workspace.size: {gone} fix: bring it back"
    )
    claims = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/bot-workspace"
    assert looks.api.get(claims)["spec"]["resources"]["requests"]["storage"] == "10Gi"


def test_a_job_whose_status_was_taken_away_starts_nothing_beside_what_runs():
    looks = Looks(script=first_try_of("train"))
    training(looks)
    looks.api.objects["finetunejobs", NAMESPACE, "bot"]["status"] = {}
    looks.restart()
    looks.settle()
    looks.player.script = lambda *_: Run()

    assert looks.live()["outcome"] == "Succeeded"
    assert looks.player.most_alive == {"bot": 1}
    assert looks.status["attempt"] == 1


def copy_of_first_attempt(looks, name, *, labelled):
    """Make a Job of one's own from the pod template of bot-1, with a pod that runs."""
    child = looks.api.get(f"{CHILDREN}/bot-1")
    made = looks.api.create(
        CHILDREN,
        {
            "apiVersion": "batch/v1",
            "metadata": {
                "name": name,
                "labels": child["metadata"]["labels"] if labelled else {},
            },
            "spec": child["spec"],
        },
    )
    own = looks.api.get(f"{PODS}/bot-1-0-abcde")
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": name,
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    labels = {**own["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
    pod_name = f"{name}-0-abcde"
    looks.api.create(
        PODS,
        {
            "metadata": {"name": pod_name, "labels": labels, "ownerReferences": [owner]},
            "spec": own["spec"],
        },
    )
    looks.api.request("PATCH", f"{PODS}/{pod_name}/status", {"status": own["status"]})
    return ("pods", NAMESPACE, pod_name)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["debug", "bot-7", "bot-prepare-3"])
def test_the_pods_of_a_copy_that_somebody_has_made_are_left_alone(name, labelled):
    looks = Looks(script=trains_forever)
    training(looks)
    copied = copy_of_first_attempt(looks, name, labelled=labelled)
    looks.settle()
    assert "deletionTimestamp" not in looks.api.objects[copied]["metadata"]
    assert looks.status["phase"] == "Running"
    assert "Recovering" not in looks.conditions()

    looks.api.request("DELETE", f"{CHILDREN}/bot-1")
    looks.api.request("DELETE", f"{PODS}/bot-1-0-abcde", {"gracePeriodSeconds": 0})
    looks.settle()
    looks.ahead += timedelta(minutes=2)
    looks.settle()
    assert "bot-2" in looks.children(), "nothing waits for the copy"
    assert "deletionTimestamp" not in looks.api.objects[copied]["metadata"]


def test_the_pods_of_a_job_that_has_taken_the_name_of_an_attempt_are_left_alone():
    looks = Looks(script=trains_forever)
    training(looks)
    looks.api.request("DELETE", f"{PODS}/bot-1-0-abcde", {"gracePeriodSeconds": 0})
    kept = looks.api.objects["jobs", NAMESPACE, "bot-1"]
    looks.api.request("DELETE", f"{CHILDREN}/bot-1")
    looks.settle()
    looks.ahead += timedelta(minutes=2)
    looks.settle()
    looks.player.turn()
    looks.player.turn()
    looks.settle()
    assert looks.status["attempt"] == 2
    spec = {"spec": kept["spec"], "metadata": {"name": "bot-1", "labels": {}}}
    looks.api.create(CHILDREN, {"apiVersion": "batch/v1", **spec})
    taken = looks.api.objects["jobs", NAMESPACE, "bot-1"]["metadata"]["uid"]
    pod_of_other = looks.api.get(f"{PODS}/bot-2-0-abcde")["metadata"]
    owner = {**pod_of_other["ownerReferences"][0], "name": "bot-1", "uid": taken}
    metadata = {
        "name": "bot-1-0-zzzzz",
        "labels": pod_of_other["labels"],
        "ownerReferences": [owner],
    }
    looks.api.create(PODS, {"metadata": metadata, "spec": {}})
    looks.settle()
    assert "deletionTimestamp" not in looks.api.get(f"{PODS}/bot-1-0-zzzzz")["metadata"]
    assert looks.conditions()["Running"][0] == "True"


def test_an_attempt_that_has_lost_its_labels_is_still_the_attempt_that_runs():
    looks = Looks(script=first_try_of("train"))
    training(looks)
    child = looks.api.objects["jobs", NAMESPACE, "bot-1"]
    labels = child["metadata"].pop("labels")
    looks.settle()
    assert (looks.status["phase"], looks.status["attempt"]) == ("Running", 1)
    assert "deletionTimestamp" not in looks.api.get(f"{PODS}/bot-1-0-abcde")["metadata"]
    child["metadata"]["labels"] = labels
    looks.player.script = lambda *_: Run()
    assert looks.live()["outcome"] == "Succeeded"
    assert looks.player.most_alive == {"bot": 1}
    assert looks.status["attempt"] == 1


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("bot-1", True),
        ("bot-999999999", True),
        ("bot-prepare", True),
        ("bot-prepare-2", True),
        ("bot-publish-12", True),
        ("bot-0", False),
        ("bot-01", False),
        ("bot-1-1", False),
        ("bot", False),
        ("bot-", False),
        ("xbot-1", False),
        ("b.t-1", False),
        ("bot-publishes", False),
        ("bot-1\n", False),
        (None, False),
    ],
)
def test_which_names_a_child_may_have(name, ours):
    assert is_child_name("bot", name) is ours
    assert not is_child_name("b.t", "bot-1")


def test_so_many_controllers_are_asked_for_by_name_in_a_look_and_no_more():
    looks = Looks(script=trains_forever)
    training(looks)
    for number in range(40):
        owner = {
            "kind": "Job",
            "name": f"bot-{number + 2}",
            "uid": f"u{number}",
            "controller": True,
        }
        own = looks.api.get(f"{PODS}/bot-1-0-abcde")
        metadata = {
            "name": f"fake-{number}",
            "labels": own["metadata"]["labels"],
            "ownerReferences": [owner],
        }
        looks.api.create(PODS, {"metadata": metadata, "spec": {}})
    asked = []
    looks.kube.refuse = lambda method, path: asked.append((method, path))
    looks.worker.known.forget(looks.key)
    asyncio.run(looks.worker.look(looks.key))
    assert len([path for method, path in asked if method == "GET" and "/jobs/bot-" in path]) == 16
