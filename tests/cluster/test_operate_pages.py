"""Every command of docs/operate, run in the order in which a reader types them.

On a real API server with the real helm, kubectl and controller manager. No node runs: the operator's
pod is said to be ready by the test, and what would be asked of a kubelet is not run here.
"""

import os
import re
import subprocess
import threading

import pytest

from harness import chart
from harness.binaries import HELM, KUBECTL, binary
from harness.chart import ROOT, of_kind
from harness.control_plane import ApiError, control_plane
from harness.controllers import controller_manager
from harness.doc_commands import commands_in, prints
from harness.processes import wait_until

FOLDER = ROOT / "docs" / "operate"
PAGES = ["install", "rbac", "profiles", "network", "storage", "upgrade"]
VARIABLES = {"REGISTRY": "registry.example", "VERSION": "0.1.0"}
NEEDS_A_NODE = {"kubectl --namespace finetune-system logs deployment/finetune-operator --tail=20"}
"""A kubelet keeps the log."""
PODS = "/api/v1/namespaces/finetune-system/pods"


class Ready(threading.Thread):
    """Says of every pod of the operator's namespace that it is ready, as a kubelet would."""

    def __init__(self, api):
        super().__init__(daemon=True)
        self.api, self.ended, self.errors = api, threading.Event(), []

    def run(self):
        while not self.ended.wait(0.2):
            try:
                self.turn()
            except (ApiError, OSError) as error:
                if getattr(error, "code", 0) not in (404, 409):
                    self.errors.append(error)

    def turn(self):
        for pod in self.api.get(PODS)["items"]:
            path = f"{PODS}/{pod['metadata']['name']}"
            if "deletionTimestamp" in pod["metadata"]:
                self.api.request("DELETE", path, {"gracePeriodSeconds": 0})
            elif pod["status"]["phase"] == "Pending":
                conditions = [
                    {"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")
                ]
                status = {"status": {"phase": "Running", "conditions": conditions}}
                kind = "application/strategic-merge-patch+json"
                self.api.request("PATCH", f"{path}/status", status, kind)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Return what runs a line of a page, in a folder that looks like the checkout."""
    folder = tmp_path_factory.mktemp("reader")
    home, programs = folder / "home", folder / "bin"
    home.mkdir()
    programs.mkdir()
    for name in (HELM, KUBECTL):
        (programs / name).symlink_to(binary(name))
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("charts", "crds", "docs", "examples"):
        (checkout / name).symlink_to(ROOT / name)
    with control_plane() as plane:
        manager = controller_manager(plane, folder, 40.0, "127.0.0.1")
        manager.start()
        ready = Ready(plane.api)
        ready.start()
        environment = {
            **os.environ,
            **VARIABLES,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(home),
            "KUBECONFIG": str(plane.kubeconfig),
        }

        def type_in(line):
            return subprocess.run(
                ["bash", "-c", line],
                check=False,
                capture_output=True,
                text=True,
                cwd=checkout,
                env=environment,
                timeout=200,
            )

        try:
            yield plane, type_in
        finally:
            ready.ended.set()
            ready.join(10)
            manager.stop(3.0)
        assert ready.errors == []


def commands(page):
    return commands_in(FOLDER / f"{page}.md", ROOT)


def test_every_page_has_commands_and_every_exception_stands_in_one():
    assert {path.stem for path in FOLDER.glob("*.md")} >= set(PAGES)
    texts = {command.text for page in PAGES for command in commands(page)}
    assert texts >= NEEDS_A_NODE
    assert all(commands(page) for page in PAGES)


def test_the_charts_own_readme_installs_as_the_page_does():
    (command,) = commands_in(chart.CHART / "README.md", ROOT)
    assert command.text == commands("install")[0].text


def follow(type_in, page):
    for command in commands(page):
        if command.text in NEEDS_A_NODE:
            continue
        done = type_in(command.text)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert prints(command.shown, done.stdout), f"{command}\n{done.stdout}"


def gone(api, path):
    try:
        api.get(path)
    except ApiError as error:
        return error.code == 404
    return False


def test_a_reader_of_install_ends_with_nothing(reader):
    plane, type_in = reader
    follow(type_in, "install")
    system = "/api/v1/namespaces/finetune-system"
    wait_until(lambda: gone(plane.api, system), "the namespace went", plane.processes)
    names = [b["metadata"]["name"] for b in plane.api.get(chart.DEFINITIONS)["items"]]
    assert names == []
    roles = plane.api.get("/apis/rbac.authorization.k8s.io/v1/clusterroles")["items"]
    assert not [r for r in roles if r["metadata"]["name"].startswith("finetune")]


def test_a_reader_of_the_other_pages(reader):
    """The roles join the cluster's own here, because the controller manager runs."""
    plane, type_in = reader
    first = {**chart.IMAGES, "image": {**chart.IMAGES["image"], "tag": "0.0.9"}}
    chart.install(plane.kubeconfig, first)
    wait_until(
        lambda: "finetunejobs" in str(_role(plane.api, "edit")), "the roles were combined", []
    )
    for page in PAGES[1:]:
        follow(type_in, page)

    profiles = plane.api.get("/apis/finetune.dev/v1alpha1/finetuneprofiles")["items"]
    assert [one["metadata"]["name"] for one in profiles] == ["standard"]
    deployment = plane.api.get(
        "/apis/apps/v1/namespaces/finetune-system/deployments/finetune-operator"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # rolled back to what it was before the upgrade, and before replicas was played with
    assert container["image"] == "registry.example/finetune-operator:0.0.9"
    assert deployment["spec"]["replicas"] == 1
    for role, may in {"view": {"get", "list", "watch"}, "edit": {"create", "delete"}}.items():
        verbs = {
            verb
            for rule in _role(plane.api, role)["rules"]
            if "finetunejobs" in rule.get("resources", ())
            for verb in rule["verbs"]
        }
        assert may <= verbs
        assert ("create" in verbs) == (role == "edit")
    status = [
        rule
        for role in ("view", "edit", "admin")
        for rule in _role(plane.api, role)["rules"]
        if {"finetunejobs/status", "finetuneprofiles"} & set(rule.get("resources", ()))
        and set(rule["verbs"]) - {"get", "list", "watch"}
    ]
    assert status == []


def _role(api, name):
    return api.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{name}")


def test_the_table_of_the_operators_rights_is_the_charts():
    text = (FOLDER / "rbac.md").read_text().partition("## The operator")[2]
    rows = re.findall(r"^\| `([a-z/]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
    written = {resource: set(verbs.split(", ")) for resource, verbs in rows}
    written |= {"finetuneprofiles": {"list", "watch"}, "namespaces": {"get"}}
    roles = [
        role
        for role in of_kind(chart.rights(()), "ClusterRole")
        if role["metadata"]["name"] == "finetune-operator"
    ]
    granted = {}
    for rule in roles[0]["rules"]:
        for resource in rule["resources"]:
            granted[resource] = set(rule["verbs"])
    assert "`finetuneprofiles` (list, watch) and `namespaces` (get" in text
    assert written == granted


def test_the_files_that_pages_apply_are_known_to_the_api_server(api, definitions):
    del definitions
    policies = chart.objects((FOLDER / "files/namespace-policy.yaml").read_text())
    assert [p["metadata"]["name"] for p in policies] == ["finetune-jobs", "finetune-preparation"]
    for policy in policies:
        path = f"/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/{policy['metadata']['name']}"
        api.apply(path, policy, dryRun="All")
