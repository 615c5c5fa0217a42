"""The claim that was made for a job grows with ``workspace.size``, and no other claim does."""

from datetime import timedelta

import pytest

from finetune_operator.kube import Forbidden, Unavailable
from finetune_operator.workspace_growth import refused
from harness.looks import NAMESPACE, PROFILES, Looks
from harness.played_runs import Run, trains_forever

CLAIM = ("persistentvolumeclaims", NAMESPACE, "bot-workspace")


def running(profile=None):
    looks = Looks(script=trains_forever)
    if profile is not None:
        annotations = {"finetune.dev/is-default-profile": "true"}
        body = {"metadata": {"name": "shared", "annotations": annotations}, "spec": profile}
        looks.api.create(PROFILES, body)
    looks.create(workspace={"size": "10Gi"})
    looks.train()
    looks.api.objects[CLAIM]["status"] = {"phase": "Bound"}
    return looks


def ask(looks, size, answer=None):
    """Let the user write a size; returns how often the claim was asked to grow."""
    asked = []

    def listen(method, path):
        if method == "PATCH":
            asked.append(path)
            return answer
        return None

    looks.change(workspace={"size": size})
    looks.kube.refuse = listen
    looks.settle()
    looks.settle()
    return len(asked)


def stored(looks):
    return looks.api.objects[CLAIM]["spec"]["resources"]["requests"]["storage"]


def message(looks):
    return looks.conditions()["Accepted"][2]


@pytest.mark.parametrize(
    ("size", "patches", "left"),
    [
        ("20Gi", 1, "20Gi"),
        ("20480Mi", 1, "20480Mi"),
        (21474836480, 1, "21474836480"),
        ("10240Mi", 0, "10Gi"),
        ("5Gi", 0, "10Gi"),
    ],
)
def test_upwards_only(size, patches, left):
    looks = running()
    assert ask(looks, size) == patches
    assert stored(looks) == left
    assert ask(looks, size) == 0
    assert message(looks) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}},
        {"metadata": {"labels": {}}},
        {"status": {"phase": "Pending"}},
        {"status": {}},
        {"spec": {"resources": {"requests": {"storage": "1e10"}}}},
        {"spec": {"resources": {}}},
    ],
)
def test_a_claim_that_is_not_ours_or_not_bound_or_not_understood_is_left_alone(change):
    looks = running()
    claim = looks.api.objects[CLAIM]
    for section, values in change.items():
        claim[section] = {**claim[section], **values} if section == "metadata" else values
    assert ask(looks, "20Gi") == 0


def test_what_the_cluster_refuses_is_said_and_stops_nothing():
    looks = running()
    assert ask(looks, "20Gi", answer=403) == 1, "and it is not asked for again and again"
    assert stored(looks) == "10Gi"
    assert message(looks) == (
        "spec.workspace.size: claim bot-workspace could not grow to 20Gi, the job goes on with what"
        " it has: refused by the test [workspace-not-grown] fix: ask who runs the cluster"
    )
    assert looks.status["phase"] == "Running"
    said = [e for (kind, *_), e in looks.api.objects.items() if kind == "events"]
    assert [e["type"] for e in said if e["reason"] == "WorkspaceNotGrown"] == ["Warning"]

    looks.restart()
    assert ask(looks, "20Gi") == 1
    assert (stored(looks), message(looks)) == ("20Gi", "")


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        (
            'persistentvolumeclaims "bot-workspace" is forbidden: only dynamically provisioned pvc'
            " can be resized and the storageclass that provisions the pvc must support resize",
            "use a storage class with allowVolumeExpansion, or name a larger claim in"
            " workspace.claimName of a new job",
        ),
        (
            "exceeded quota: storage, requested: requests.storage=10Gi",
            "free some of the namespace's storage quota, or have it raised",
        ),
        (
            'persistentvolumeclaims "bot-workspace" is forbidden: User "x" cannot patch resource'
            ' "persistentvolumeclaims" in API group ""',
            "give the operator the right to patch persistentvolumeclaims",
        ),
        ("no", "ask who runs the cluster"),
    ],
)
def test_every_refusal_has_its_fix(said, fix):
    assert refused("bot-workspace", "20Gi", Forbidden(403, said)).fix == fix


def test_the_profile_limits_it():
    looks = running({"limits": {"workspace": "15Gi"}})
    assert ask(looks, "20Gi") == 0
    assert message(looks) == (
        "spec.workspace.size: spec.workspace.size is 20Gi; profile shared allows at most 15Gi"
        " (limits.workspace), so the volume stays as it is [over-limit] fix: lower size to 15Gi,"
        " or ask who runs the cluster"
    )
    assert ask(looks, "15Gi") == 1
    assert (stored(looks), message(looks)) == ("15Gi", "")


def broken_webhook(method, path):
    del path
    return 500 if method == "PATCH" else None


def test_without_an_answer_ends_are_accounted_for_all_the_same():
    looks = running()
    looks.player.script = lambda stage, attempt, _: Run(
        exit_code=143 if (stage, attempt) == ("train", 1) else 0, step=30, checkpoint=30
    )
    looks.change(workspace={"size": "20Gi"})
    looks.kube.refuse = broken_webhook
    for _ in range(6):
        with pytest.raises(Unavailable):
            looks.settle()
        looks.player.turn()
        looks.ahead += timedelta(seconds=60)

    assert (looks.status["attempt"], looks.status["preemptions"]) == (2, 1)
    assert "bot-2" in looks.children()
    assert message(looks) == (
        "spec.workspace.size: claim bot-workspace could not grow to 20Gi, the job goes on with what"
        " it has: the API server answers 500, and is asked again [workspace-not-grown] fix: ask who"
        " runs the cluster"
    )
    looks.kube.refuse = lambda method, path: None
    looks.settle()
    assert (stored(looks), message(looks)) == ("20Gi", "")


def test_an_answer_in_other_words_each_time_is_written_down_once():
    looks = running()
    looks.change(workspace={"size": "20Gi"})
    ports = iter(range(40000, 40100))

    def refuse(method, path):
        if method == "PATCH":
            raise Unavailable(500, f"read tcp 10.0.0.9:{next(ports)}->10.0.0.1:443: reset")

    looks.kube.refuse = refuse
    with pytest.raises(Unavailable):
        looks.settle()
    writes = list(looks.api.writes)
    for _ in range(5):
        with pytest.raises(Unavailable):
            looks.settle()
        looks.ahead += timedelta(seconds=60)
    assert looks.api.writes == writes


def test_a_claim_that_has_changed_is_asked_to_grow_as_it_is_now():
    looks = running()
    answers = [409]
    asked = []

    def once(method, path):
        if method == "PATCH":
            asked.append(path)
            return answers.pop() if answers else None
        return None

    looks.change(workspace={"size": "20Gi"})
    looks.kube.refuse = once
    looks.settle()
    assert (len(asked), stored(looks), message(looks)) == (2, "20Gi", "")
