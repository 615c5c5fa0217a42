"""What a user with the cluster's role *edit* can do through FineTuneJobs, and what not."""

import dataclasses

import pytest

from harness.access import until
from harness.control_plane import ApiError
from harness.created import created
from harness.stage_config import merged
from harness.tenant import TINY, make_tenant

pytestmark = [pytest.mark.timeout(300)]

TEAM, OTHERS = "research", "finance"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
PROFILE = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneProfile",
    "metadata": {"name": "research"},
    "spec": {
        "allow": {
            "namespaceSelector": {"matchLabels": {"team": "research"}},
            "secrets": ["finetune-*"],
            "uris": ["pvc://*", "hf://*"],
        }
    },
}


@pytest.fixture(scope="module")
def team(cluster):
    team = make_tenant(cluster, TEAM, {"team": "research"})
    cluster.api.create(PROFILES, PROFILE)
    for name in ("registry", "finetune-hub"):
        secret = {"metadata": {"name": name}, "stringData": {"token": "s3cr3t"}}
        cluster.api.create(f"/api/v1/namespaces/{TEAM}/secrets", secret)
    yield team
    cluster.api.delete(f"{PROFILES}/research")


@pytest.fixture(scope="module")
def others(cluster):
    return make_tenant(cluster, OTHERS, {"team": "finance"})


def log_in(cluster, team, user, role):
    """Return the client of a new user who has a role in the team's namespace, and no more."""
    subject = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
    ref = {"kind": "ClusterRole", "name": role, "apiGroup": "rbac.authorization.k8s.io"}
    binding = {"metadata": {"name": user}, "subjects": [subject], "roleRef": ref}
    cluster.api.create(f"{ROLES}/namespaces/{team.namespace}/rolebindings", binding)
    identity = cluster.plane.authority.issue(user, f"/CN={user}")
    return dataclasses.replace(cluster.api, identity=identity)


@pytest.fixture(scope="module")
def editor(cluster, team):
    """Of the role as controller-manager has put it together."""
    api = log_in(cluster, team, "ada", "edit")
    until(lambda: _reads(api, team.jobs), "the role edit reached FineTuneJobs")
    return api


def _reads(api, path):
    try:
        return "items" in api.get(path)
    except ApiError as error:
        assert error.code == 403, error
        return False


def job(name, spec):
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": merged(TINY, {"profileRef": {"name": "research"}, **spec}),
    }


def refused(code, ask, *words):
    with pytest.raises(ApiError) as caught:
        ask(*words)
    assert caught.value.code == code, caught.value
    return caught.value.message


def not_accepted(team, name):
    def condition():
        found = team.conditions(name).get("Accepted")
        return found if found and found[0] == "False" else None

    return team.wait(condition, f"{name} is refused", 30)[1:]


def test_an_editor_makes_changes_reads_and_removes_jobs(team, editor):
    path = f"{team.jobs}/ours"
    editor.create(team.jobs, job("ours", {"suspend": True}))
    suspended = team.wait(
        lambda: editor.get(path).get("status", {}).get("phase") == "Suspended", "it is suspended"
    )
    assert suspended
    merge = "application/merge-patch+json"
    editor.request("PATCH", path, {"spec": {"recovery": {"maxFailures": 1}}}, merge)
    assert editor.get(path)["spec"]["recovery"] == {"maxFailures": 1}
    assert [one["metadata"]["name"] for one in editor.get(team.jobs)["items"]] == ["ours"]
    assert "items" in editor.get(f"/api/v1/namespaces/{TEAM}/events")
    assert "items" in editor.get(f"/api/v1/namespaces/{TEAM}/pods")
    editor.delete(path)


def test_an_editor_does_not_write_status_nor_profiles(team, editor):
    editor.create(team.jobs, job("ours", {"suspend": True}))
    path = f"{team.jobs}/ours"
    merge = "application/merge-patch+json"
    forged = {"status": {"outcome": "Succeeded"}}
    said = refused(403, editor.request, "PATCH", f"{path}/status", forged, merge)
    assert 'cannot patch resource "finetunejobs/status"' in said
    # Beside the spec a status is no part of the object.
    editor.request("PATCH", path, forged, merge)
    assert "outcome" not in editor.get(path).get("status", {})
    refused(403, editor.create, PROFILES, {**PROFILE, "metadata": {"name": "mine"}})
    wider = {"spec": {"allow": {"secrets": ["*"]}}}
    refused(403, editor.request, "PATCH", f"{PROFILES}/research", wider, merge)
    refused(403, editor.delete, f"{PROFILES}/research")
    editor.delete(path)


def token_of(name):
    return {
        "model": {"uri": "hf://some/model", "tokenSecretRef": {"name": name, "key": "token"}},
        "backend": "Job",
    }


def test_a_secret_outside_the_profile_is_mounted_by_no_pod(cluster, team, editor):
    editor.create(team.jobs, job("thief", token_of("registry")))
    reason, message = not_accepted(team, "thief")
    assert reason == "NotAllowed"
    assert (
        'spec.model.tokenSecretRef.name "registry" is not allowed by profile research'
        " (allow.secrets: finetune-*)" in message
    )
    # One that the profile allows is mounted, as a file of the preparation's pod alone.
    editor.create(team.jobs, job("honest", token_of("finetune-hub")))
    children = team.wait(
        lambda: [one for one in created(cluster.audit_log, TEAM) if "honest" in one.name],
        "honest is prepared",
    )
    assert secrets_in(children[0].body) == {"finetune-hub"}
    for name in ("thief", "honest"):
        editor.delete(f"{team.jobs}/{name}")
    everything = created(cluster.audit_log, TEAM)
    assert {name for one in everything for name in secrets_in(one.body)} == {"finetune-hub"}


def secrets_in(data):
    if isinstance(data, dict):
        own = {data["secret"]["name"]} if "name" in (data.get("secret") or {}) else set()
        return own.union(*(secrets_in(value) for value in data.values()))
    return set().union(*map(secrets_in, data)) if isinstance(data, list) else set()


def test_jobs_alone_give_no_look_at_secrets_nor_pods_of_ones_own(cluster, team):
    """Whoever has the chart's role and not *edit* has no way to a secret at all."""
    api = log_in(cluster, team, "eve", "finetune-operator-edit")
    until(lambda: not refuses_a_job(api, team), "the role counts")
    refused(403, api.get, f"/api/v1/namespaces/{TEAM}/secrets/registry")
    refused(403, api.get, f"/api/v1/namespaces/{TEAM}/secrets")
    refused(403, api.create, f"/api/v1/namespaces/{TEAM}/pods", {"metadata": {"name": "mine"}})
    api.create(team.jobs, job("eves", token_of("registry")))
    assert not_accepted(team, "eves")[0] == "NotAllowed"
    api.delete(f"{team.jobs}/eves")


def refuses_a_job(api, team):
    try:
        api.create(team.jobs, job("a", {}), dryRun="All")
    except ApiError as error:
        assert error.code == 403, error
        return True
    return False


def test_another_namespace_is_out_of_reach(team, others, editor):
    refused(403, editor.get, others.jobs)
    refused(403, editor.create, others.jobs, job("intruder", {}))
    for field, spec in {
        "spec.model.tokenSecretRef.namespace": {
            "model": {
                "uri": "hf://some/model",
                "tokenSecretRef": {"name": "x", "key": "y", "namespace": OTHERS},
            }
        },
        "spec.profileRef.namespace": {"profileRef": {"name": "research", "namespace": OTHERS}},
        "spec.workspace.namespace": {"workspace": {"claimName": "theirs", "namespace": OTHERS}},
    }.items():
        said = refused(400, editor.create, team.jobs, job("reaching", spec))
        assert f'unknown field "{field}"' in said
    # A namespace that the profile does not admit gets no jobs, whoever makes them there.
    others.api.create(others.jobs, job("ours", {}))
    reason, message = not_accepted(others, "ours")
    assert reason == "ProfileNotAdmitted"
    assert "profile research does not admit the namespace of the job" in message


RIGHTS_OF_THE_NODE = {
    "hostNetwork": True,
    "hostPID": True,
    "serviceAccountName": "cluster-admin",
    "securityContext": {"runAsUser": 0, "privileged": True},
    "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
    "podTemplate": {"spec": {"hostNetwork": True}},
}


@pytest.mark.parametrize("field", RIGHTS_OF_THE_NODE)
def test_there_is_no_field_for_rights_of_the_node(team, editor, field):
    body = job("root", {})
    body["spec"][field] = RIGHTS_OF_THE_NODE[field]
    said = refused(400, editor.create, team.jobs, body)
    assert f'unknown field "spec.{field}"' in said
    # Whoever turns that check off has them dropped.
    path = f"{team.jobs}?fieldValidation=Ignore&dryRun=All"
    assert field not in editor.request("POST", path, body)["spec"]


def test_a_node_selector_and_a_toleration_do_not_lead_to_the_control_plane(team, editor):
    stays = {"resources": {"tolerations": [{"key": "node.kubernetes.io/unreachable"}]}}
    said = refused(422, editor.create, team.jobs, job("stays", stays))
    assert "a job must not tolerate node.kubernetes.io/*" in said
    said = refused(
        422,
        editor.create,
        team.jobs,
        job("all", {"resources": {"tolerations": [{"operator": "Exists"}]}}),
    )
    assert "spec.resources.tolerations[0].key: Required value" in said
