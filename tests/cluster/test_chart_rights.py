"""What the chart's roles allow: to the operator what it uses, to a team its jobs, and no more."""

import time

import pytest

from harness import chart
from harness.audit import policy, requests
from harness.caller import Caller
from harness.chart import of_kind
from harness.control_plane import ApiError, start_control_plane
from harness.definitions import apply_definition, apply_definitions
from harness.jobs import job_object
from harness.operator_driver import (
    JOBS,
    make_namespace,
    operator,
    operator_token,
    status_of,
    user_for,
    wait_for,
)
from harness.played_children import pytorch_job_definition
from harness.played_runs import first_try_of
from harness.pod_player import PodPlayer

UNUSED = {
    (
        "get",
        "jobs",
    ): "a Job whose name is taken is looked at, and one that pods name and no list has",
    ("get", "pytorchjobs"): "a PyTorchJob in the same cases",
    ("get", "configmaps"): "an operator that has just begun reads how its jobs were accepted",
    ("delete", "configmaps"): "one that somebody wrote before the operator did, under its name",
    ("delete", "pods"): "pods whose child was deleted without them",
}
"""What an ordinary life may do without, and why it is granted."""


def granted(bodies):
    return {
        (verb, resource)
        for role in of_kind(bodies, "ClusterRole", "Role")
        if role["metadata"]["name"].rpartition("-")[2] not in ("view", "edit")
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    users = [user_for(""), user_for("served-one,served-two")]
    plane = start_control_plane(audit_policy=policy(tmp_path_factory.mktemp("audit"), *users))
    try:
        apply_definitions(plane)
        definition = pytorch_job_definition()
        apply_definition(plane, "pytorchjobs.kubeflow.org", definition.read_bytes())
        wait_for(lambda: _listed(plane.api))
        body = {"metadata": {"name": "grows"}, "provisioner": "example.com/none"}
        classes = "/apis/storage.k8s.io/v1/storageclasses"
        plane.api.create(classes, {**body, "allowVolumeExpansion": True})
        profiles = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
        selector = {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}
        plane.api.create(
            profiles,
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneProfile",
                "metadata": {
                    "name": "standard",
                    "annotations": {"finetune.dev/is-default-profile": "true"},
                },
                "spec": {"allow": {"namespaceSelector": selector}},
            },
        )
        yield plane
    finally:
        plane.stop()


def _listed(api):
    """Whether PyTorchJobs can be listed: a definition is established a little earlier."""
    try:
        return api.get("/apis/kubeflow.org/v1/pytorchjobs")
    except ApiError as error:
        if error.code != 429:
            raise
        return None


def live(api, namespace, process):
    """Two whole lives: an Indexed Job on two nodes, whose workspace grows, and a PyTorchJob.

    Both are suspended on their way; the first is removed by its time to live.
    """

    def patch(path, body):
        api.request("PATCH", path, body, "application/merge-patch+json")

    jobs = JOBS.format(namespace=namespace)
    player = PodPlayer(api, namespace, first_try_of("train"), pytorch=True)
    player.start()
    try:
        space = {"size": "10Gi", "storageClassName": "grows"}
        spec = {"workspace": space, "ttlSecondsAfterFinished": 1, "resources": {"nodes": 2}}
        api.create(jobs, job_object("first", backend="Job", **spec))
        api.create(jobs, job_object("second", backend="PyTorchJob"))

        def phase(name):
            return status_of(api, namespace, name).get("phase")

        wait_for(lambda: phase("first") == phase("second") == "Running", process)
        claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        claim = f"{claims}/first-workspace"
        patch(claim, {"spec": {"volumeName": "volume-of-first"}})
        bound = {
            "phase": "Bound",
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "10Gi"},
        }
        patch(f"{claim}/status", {"status": bound})
        patch(f"{jobs}/first", {"spec": {"workspace": {"size": "20Gi"}}})
        wanted = {"storage": "20Gi"}
        wait_for(lambda: api.get(claim)["spec"]["resources"]["requests"] == wanted, process)

        for suspend in (True, False):
            for name in ("first", "second"):
                patch(f"{jobs}/{name}", {"spec": {"suspend": suspend}})
            if suspend:
                wait_for(lambda: phase("first") == phase("second") == "Suspended", process)
        wait_for(lambda: status_of(api, namespace, "second").get("outcome"), process)
        wait_for(lambda: [one["metadata"]["name"] for one in api.get(jobs)["items"]] == ["second"])
        assert status_of(api, namespace, "second")["outcome"] == "Succeeded"
        assert status_of(api, namespace, "second")["attempt"] == 2
    finally:
        player.stop()
    assert not player.errors


@pytest.mark.parametrize("namespaces", ["", "served-one,served-two"], ids=["cluster", "namespaces"])
def test_the_operator_has_the_rights_that_it_uses_and_uses_those_that_it_has(
    audited, tmp_path, namespaces
):
    api, log = audited.api, audited.folder / "audit.log"
    names = namespaces.split(",") if namespaces else ["anywhere"]
    for name in names:
        make_namespace(api, name)
    flags = ["--progress-seconds", "1", "--relist-seconds", "3"]
    with operator(audited.kubeconfig, namespaces, tmp_path / "operator.log", *flags) as process:
        live(api, names[-1], process)
    deadline = time.monotonic() + 20
    while True:  # the log is written a little later
        found = list(requests(log, user=user_for(namespaces)))
        if any(one.verb == "delete" and one.resource == "finetunejobs" for one in found):
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert [one for one in found if one.code == 403] == []
    used = {(one.verb, one.resource) for one in found if one.resource}
    rights = granted(chart.rights(tuple(namespaces.split(",")) if namespaces else ()))
    assert used <= rights
    assert rights - used <= set(UNUSED)
    if namespaces:
        inside = {one.namespace for one in found if one.resource and one.namespace}
        assert inside <= set(names)


@pytest.mark.parametrize("namespaces", [(), ("team-a", "team-b")], ids=["cluster", "namespaces"])
def test_no_role_holds_what_nobody_needs(namespaces):
    bodies = chart.rights(namespaces)
    for role in of_kind(bodies, "ClusterRole", "Role"):
        for rule in role["rules"]:
            assert set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}
            assert not {"*", "escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert not {"*", "rbac.authorization.k8s.io"} & set(rule["apiGroups"])
            forbidden = {"*", "secrets", "pods/exec", "pods/attach", "pods/portforward"}
            forbidden |= {
                "pods/ephemeralcontainers",
                "serviceaccounts/token",
                "nodes",
                "pods/proxy",
            }
            assert not forbidden & set(rule["resources"])


def test_in_single_namespaces_nothing_is_granted_elsewhere():
    bodies = chart.rights(("team-a", "team-b"))
    (across,) = [
        role
        for role in of_kind(bodies, "ClusterRole")
        if role["metadata"]["name"] == "finetune-operator"
    ]
    assert across["rules"] == [
        {
            "apiGroups": ["finetune.dev"],
            "resources": ["finetuneprofiles"],
            "verbs": ["list", "watch"],
        },
        {
            "apiGroups": [""],
            "resources": ["namespaces"],
            "resourceNames": ["team-a", "team-b"],
            "verbs": ["get"],
        },
    ]
    for kind in ("Role", "RoleBinding"):
        places = [body["metadata"]["namespace"] for body in of_kind(bodies, kind)]
        assert places == ["team-a", "team-b"]
    everywhere = granted(chart.rights(()))
    assert granted(bodies) == everywhere


def test_without_the_log_there_is_no_right_to_read_it():
    found = granted(chart.rendered({"settings": {"progressFromLogs": False}}))
    assert ("get", "pods/log") not in found
    assert ("get", "pods/log") in granted(chart.rendered())


def test_the_operator_of_some_namespaces_is_refused_elsewhere(audited):
    api = audited.api
    for name in ("mine", "theirs"):
        make_namespace(api, name)
    caller = Caller(api, operator_token(api, "mine"))
    assert caller.ask("GET", JOBS.format(namespace="mine")) == 200
    assert caller.ask("GET", JOBS.format(namespace="theirs")) == 403
    assert caller.ask("GET", "/apis/finetune.dev/v1alpha1/finetunejobs") == 403
    assert caller.ask("GET", "/apis/finetune.dev/v1alpha1/finetuneprofiles") == 200
    assert caller.ask("GET", "/api/v1/namespaces/mine") == 200
    assert caller.ask("GET", "/api/v1/namespaces/theirs") == 403
    assert caller.ask("GET", "/api/v1/namespaces/theirs/pods") == 403
    assert caller.ask("GET", "/api/v1/namespaces/mine/secrets") == 403
    assert caller.ask("GET", "/api/v1/nodes") == 403


def bind(api, namespace, account, *roles):
    for role in roles:
        body = {
            "metadata": {"name": f"{account}-{role}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": f"finetune-operator-{role}",
            },
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
        }
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"
        api.create(path, body)


@pytest.fixture(scope="module")
def team(audited):
    api = audited.api
    chart.grant(api, ())
    for name in ("team", "neighbours"):
        make_namespace(api, name)
    editor, viewer = (Caller.made(api, "team", name) for name in ("editor", "viewer"))
    # The controller manager combines these with the cluster's view and edit; none runs here.
    bind(api, "team", "editor", "view", "edit")
    bind(api, "team", "viewer", "view")
    return api, editor, viewer


HERE, THERE = JOBS.format(namespace="team"), JOBS.format(namespace="neighbours")
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"


def test_who_may_edit_makes_changes_and_removes_jobs(team):
    _, editor, viewer = team
    assert editor.ask("POST", HERE, job_object("bot")) == 201
    assert editor.ask("GET", f"{HERE}/bot") == 200
    assert editor.ask("PATCH", f"{HERE}/bot", {"spec": {"suspend": True}}) == 200
    assert viewer.ask("GET", f"{HERE}/bot") == 200
    assert viewer.ask("GET", HERE) == 200
    assert editor.ask("DELETE", f"{HERE}/bot") == 200


def test_who_may_edit_cannot_write_a_status(team):
    api, editor, _ = team
    api.create(HERE, job_object("honest"))
    lie = {"status": {"phase": "Succeeded", "outcome": "Succeeded"}}
    assert editor.ask("PATCH", f"{HERE}/honest/status", lie) == 403
    assert editor.ask("GET", f"{HERE}/honest/status") == 403
    assert editor.ask("PATCH", f"{HERE}/honest", lie) == 200  # the API server ignores it there
    assert status_of(api, "team", "honest") == {}
    body = api.get(f"{HERE}/honest")
    assert editor.ask("PUT", f"{HERE}/honest", {**body, **lie}) == 200
    assert status_of(api, "team", "honest") == {}
    api.delete(f"{HERE}/honest")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", PROFILES, {"metadata": {"name": "mine"}, "spec": {}}),
        ("PATCH", f"{PROFILES}/standard", {"spec": {}}),
        ("DELETE", f"{PROFILES}/standard", None),
        ("POST", THERE, job_object("bot")),
        ("GET", THERE, None),
        ("POST", "/api/v1/namespaces/team/pods", {"metadata": {"name": "a"}, "spec": {}}),
        ("GET", "/api/v1/namespaces/team/pods", None),
        ("DELETE", "/api/v1/namespaces/team/pods/a", None),
        ("GET", "/api/v1/namespaces/team/pods/a/log", None),
        ("POST", "/api/v1/namespaces/team/configmaps", {"metadata": {"name": "a"}}),
        ("GET", "/api/v1/namespaces/team/secrets", None),
        ("POST", "/apis/batch/v1/namespaces/team/jobs", {"metadata": {"name": "a"}}),
        ("POST", "/api/v1/namespaces/team/serviceaccounts/default/token", {"spec": {}}),
        ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {"spec": {}}),
    ],
)
def test_the_role_to_edit_jobs_is_no_role_for_anything_else(team, method, path, body):
    _, editor, _ = team
    assert editor.ask(method, path, body) == 403


def test_who_may_look_changes_nothing(team):
    api, _, viewer = team
    api.create(HERE, job_object("seen"))
    assert viewer.ask("GET", f"{HERE}/seen") == 200
    assert viewer.ask("POST", HERE, job_object("other")) == 403
    assert viewer.ask("PATCH", f"{HERE}/seen", {"spec": {"suspend": True}}) == 403
    assert viewer.ask("DELETE", f"{HERE}/seen") == 403
    assert viewer.ask("DELETE", HERE) == 403
    api.delete(f"{HERE}/seen")


def test_the_users_roles_carry_the_labels_by_which_the_cluster_combines_them():
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    found = {
        role["metadata"]["name"]: {
            label.removeprefix(prefix)
            for label, value in role["metadata"]["labels"].items()
            if label.startswith(prefix) and value == "true"
        }
        for role in of_kind(chart.rights(()), "ClusterRole")
    }
    assert found == {
        "finetune-operator": set(),
        "finetune-operator-view": {"view", "edit", "admin"},
        "finetune-operator-edit": {"edit", "admin"},
        "finetune-operator-profiles-view": {"view"},
    }
    assert of_kind(chart.rendered({"rbac": {"aggregate": False}}), "ClusterRole") == [
        role
        for role in of_kind(chart.rights(()), "ClusterRole")
        if role["metadata"]["name"] == "finetune-operator"
    ]
