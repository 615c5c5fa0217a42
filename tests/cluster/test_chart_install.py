"""The chart on a real API server, installed, upgraded and removed by the real helm."""

import copy
import re

import pytest
import yaml

from harness import chart
from harness.chart import GOLDEN, IMAGES, ROOT, HelmError, exists, of_kind, rendered
from harness.control_plane import ApiError, control_plane
from harness.definitions import apply_definitions
from harness.operator_driver import JOBS, make_namespace
from harness.processes import wait_until
from harness.stage_config import SPEC

PROFILE = {
    "name": "standard",
    "annotations": {"finetune.dev/is-default-profile": "true"},
    "spec": {"limits": {"nodes": 2}},
}
WITH_PROFILE = {**IMAGES, "profiles": [PROFILE]}
FIRST = {**IMAGES, "profiles": [], "replicas": 0}
PROFILES = "/apis/finetune.dev/v1alpha1/finetuneprofiles"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture
def cluster():
    """A control plane that has never seen the chart."""
    with control_plane() as plane:
        yield plane


def defined(api):
    return sorted(body["metadata"]["name"] for body in api.get(DEFINITIONS)["items"])


def profiles(api):
    return sorted(body["metadata"]["name"] for body in api.get(PROFILES)["items"])


def deployment(api):
    return api.get("/apis/apps/v1/namespaces/finetune-system/deployments/finetune-operator")


BOTH = ["finetunejobs.finetune.dev", "finetuneprofiles.finetune.dev"]


def test_installed_upgraded_removed_and_installed_again(cluster):
    """What a platform team does over time; users' jobs are there at every moment."""
    api, kubeconfig = cluster.api, cluster.kubeconfig

    # Profiles cannot come with their own definition: helm looks every kind up first.
    with pytest.raises(HelmError) as refused:
        chart.install(kubeconfig, WITH_PROFILE)
    assert "profiles: this cluster does not know FineTuneProfile yet" in str(refused.value)
    assert "--set-json profiles=[] --set replicas=0" in str(refused.value)
    assert defined(api) == []

    notes = chart.install(kubeconfig, FIRST)
    assert defined(api) == BOTH
    assert deployment(api)["spec"]["replicas"] == 0
    assert "replicas is 0: the operator does not run." in notes
    assert "There is no profile in these values." in notes

    notes = chart.install(kubeconfig, WITH_PROFILE)
    assert profiles(api) == ["standard"]
    assert deployment(api)["spec"]["replicas"] == 1
    assert (
        "kubectl --namespace finetune-system rollout status deployment/finetune-operator" in notes
    )
    assert "There is no profile" not in notes
    assert "is a tag" not in notes

    named = re.findall(r"(?:docs|examples)/[a-z/-]+\.(?:md|yaml)", notes)
    assert "examples/quickstart.yaml" in named
    assert [path for path in named if not (ROOT / path).is_file()] == []

    namespace = make_namespace(api, "team")
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot"},
        "spec": SPEC,
    }
    api.create(JOBS.format(namespace=namespace), job)

    changed = copy.deepcopy(WITH_PROFILE)
    changed["profiles"][0]["spec"]["limits"]["nodes"] = 4
    changed["profiles"].append({"name": "small", "spec": {"limits": {"nodes": 1}}})
    changed["watch"] = {"namespaces": ["team"]}
    chart.install(kubeconfig, changed)
    assert profiles(api) == ["small", "standard"]
    assert api.get(f"{PROFILES}/standard")["spec"] == {"limits": {"nodes": 4}}
    (role,) = api.get("/apis/rbac.authorization.k8s.io/v1/namespaces/team/roles")["items"]
    assert role["metadata"]["name"] == "finetune-operator"

    chart.install(kubeconfig, WITH_PROFILE)
    assert profiles(api) == ["standard"]
    assert api.get("/apis/rbac.authorization.k8s.io/v1/namespaces/team/roles")["items"] == []

    # From now on somebody else is to apply the definitions: what is there stays.
    chart.install(kubeconfig, {**WITH_PROFILE, "crds": {"enabled": False}})
    assert defined(api) == BOTH
    assert profiles(api) == ["standard"]
    chart.install(kubeconfig, WITH_PROFILE)

    made = [body for body in rendered(WITH_PROFILE) if body["kind"] != "CustomResourceDefinition"]
    assert all(exists(api, body) for body in made)
    said = chart.uninstall(kubeconfig)
    assert "kept due to the resource policy" in said
    assert not [body for body in made if exists(api, body)]
    assert defined(api) == BOTH
    assert api.get(f"{JOBS.format(namespace=namespace)}/bot")["spec"] == SPEC

    chart.install(kubeconfig, WITH_PROFILE)  # the definitions that stayed are taken over again
    assert profiles(api) == ["standard"]
    chart.install(kubeconfig, {**IMAGES, "crds": {"keep": False}})
    chart.uninstall(kubeconfig)
    wait_until(lambda: defined(api) == [], "the definitions went", cluster.processes)


def test_definitions_applied_first_make_it_one_step(cluster):
    api, kubeconfig = cluster.api, cluster.kubeconfig
    apply_definitions(cluster)
    chart.install(kubeconfig, {**WITH_PROFILE, "crds": {"enabled": False}})
    assert profiles(api) == ["standard"]
    # Why the schema of the values holds that of profiles: without it a typo is lost in silence.
    typo = {**PROFILE, "spec": {"limits": {"noeds": 2}}}
    values = {**IMAGES, "profiles": [typo], "crds": {"enabled": False}}
    chart.install(kubeconfig, values, "--skip-schema-validation")
    assert api.get(f"{PROFILES}/standard")["spec"] == {"limits": {}}
    with pytest.raises(HelmError) as refused:
        chart.install(kubeconfig, values)
    assert "additional properties 'noeds' not allowed" in str(refused.value)

    # helm takes over what somebody else applied only when it is told to.
    with pytest.raises(HelmError) as refused:
        chart.install(kubeconfig, WITH_PROFILE)
    assert "invalid ownership metadata" in str(refused.value)
    chart.install(kubeconfig, WITH_PROFILE, "--take-ownership")
    found = api.get(f"{DEFINITIONS}/finetunejobs.finetune.dev")["metadata"]
    assert found["annotations"]["meta.helm.sh/release-name"] == "finetune-operator"
    assert profiles(api) == ["standard"]


def test_a_second_release_for_other_namespaces_stands_beside_the_first(cluster):
    api, kubeconfig = cluster.api, cluster.kubeconfig
    for name in ("one", "two"):
        make_namespace(api, name)
    first = {**IMAGES, "watch": {"namespaces": ["one"]}}
    chart.install(kubeconfig, first)
    second = {**IMAGES, "watch": {"namespaces": ["two"]}, "crds": {"enabled": False}}
    command = ["install", "other", str(chart.CHART), "--namespace", "second", "--create-namespace"]
    chart.helm(*command, values=second, kubeconfig=kubeconfig)
    roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles"
    assert {
        space: [role["metadata"]["name"] for role in api.get(roles.format(space))["items"]]
        for space in ("one", "two")
    } == {"one": ["finetune-operator"], "two": ["other-finetune-operator"]}
    chart.helm("uninstall", "other", "--namespace", "second", kubeconfig=kubeconfig)
    assert all(exists(api, body) for body in rendered(first))


@pytest.mark.parametrize(
    ("enabled", "kind"), [("serviceMonitor", "ServiceMonitor"), ("podMonitor", "PodMonitor")]
)
def test_without_the_prometheus_operator_its_kinds_are_refused_with_the_reason(
    plane, enabled, kind
):
    values = {**FIRST, "metrics": {enabled: {"enabled": True}}}
    with pytest.raises(HelmError) as refused:
        chart.install(plane.kubeconfig, values)
    assert f"metrics.{enabled}.enabled: this cluster does not know {kind}." in str(refused.value)


@pytest.mark.parametrize("case", ["bare", "cluster-wide", "everything", "namespaced"])
def test_the_api_server_knows_every_field_of_the_golden_renders(api, definitions, case):
    """But of the Prometheus operator's kinds, whose definitions are not there."""
    del definitions
    for name in ("finetune-system", "team-a", "team-b"):
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        chart.apply(api, [body])
    bodies = chart.objects((GOLDEN / f"{case}.render.yaml").read_text())
    others = of_kind(bodies, "ServiceMonitor", "PodMonitor", "PrometheusRule")
    assert len(others) == (3 if case == "everything" else 0)
    for body in bodies:
        if body not in others:
            api.apply(chart.path_of(body), yaml.safe_dump(body).encode(), dryRun="All")


def test_a_typo_that_the_api_server_would_be_asked_about_is_refused(api, definitions):
    """That the test above can fail."""
    del definitions
    (body,) = of_kind(rendered(), "Service")
    body["spec"]["prots"] = []
    chart.apply(
        api, [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "finetune-system"}}]
    )
    with pytest.raises(ApiError) as refused:
        api.apply(chart.path_of(body), body, dryRun="All")
    assert "prots" in refused.value.message
