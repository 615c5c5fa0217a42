"""The Helm chart, rendered and installed by the real helm.

``python -m harness.chart`` writes what is made from the chart and checked in: the golden renders in
``tests/golden/chart`` and the table of values in the chart's README.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.binaries import HELM, binary
from harness.control_plane import Api, ApiError

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
GOLDEN = ROOT / "tests" / "golden" / "chart"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
VERSION_OF_CLUSTER = "1.34.0"
"""What ``helm template`` takes a cluster for: it asks none."""
IMAGES: Object = {
    "image": {"repository": "registry.example/finetune-operator"},
    "trainerImage": "registry.example/finetune-trainer@sha256:" + "c" * 64,
}
"""Values without which nothing is rendered."""
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
_PLURALS = {
    "Namespace": "namespaces",
    "ServiceAccount": "serviceaccounts",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Deployment": "deployments",
    "Service": "services",
    "NetworkPolicy": "networkpolicies",
    "CustomResourceDefinition": "customresourcedefinitions",
    "FineTuneProfile": "finetuneprofiles",
}


class HelmError(Exception):
    """helm has refused; the text is what it says."""


def helm(*arguments: str, values: Mapping[str, Any] | None = None, kubeconfig: Path | None) -> str:
    """Run helm and return what it prints; raises ``HelmError`` with its words.

    Nothing is left of it: its caches are in a folder that is removed.
    """
    command = [str(binary(HELM)), *arguments]
    if values is not None:
        command += ["--values", "-"]
    with tempfile.TemporaryDirectory(prefix="finetune-helm-") as home:
        environment = {**os.environ, "HOME": home, "HELM_CACHE_HOME": f"{home}/cache"}
        environment |= {"HELM_CONFIG_HOME": f"{home}/config", "HELM_DATA_HOME": f"{home}/data"}
        environment["KUBECONFIG"] = str(kubeconfig or "/dev/null")
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            input=json.dumps(values) if values is not None else "",
            env=environment,
        )
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def render(
    values: Mapping[str, Any] | None = None,
    *options: str,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
) -> str:
    """Return the text of ``helm template`` without a cluster; images are filled in."""
    return _template({**IMAGES, **(values or {})}, *options, release=release, namespace=namespace)


def _template(values: Mapping[str, Any] | None, *options: str, release: str, namespace: str) -> str:
    command = ["template", release, str(CHART), "--namespace", namespace]
    command += ["--kube-version", VERSION_OF_CLUSTER, *options]
    return helm(*command, values=values, kubeconfig=None)


def objects(text: str) -> list[Object]:
    """Return the objects of a render."""
    return [body for body in yaml.safe_load_all(text) if body]


def rendered(values: Mapping[str, Any] | None = None, **which: str) -> list[Object]:
    """Return the objects that the chart makes of these values."""
    return objects(render(values, **which))


def of_kind(bodies: Iterable[Object], *kinds: str) -> list[Object]:
    """Return the objects of these kinds."""
    return [body for body in bodies if body["kind"] in kinds]


def path_of(body: Mapping[str, Any]) -> str:
    """Return the address of an object."""
    version, metadata = body["apiVersion"], body["metadata"]
    parts = [f"/apis/{version}" if "/" in version else f"/api/{version}"]
    if "namespace" in metadata:
        parts.append(f"namespaces/{metadata['namespace']}")
    return "/".join([*parts, _PLURALS[body["kind"]], metadata["name"]])


def apply(api: Api, bodies: Iterable[Object]) -> None:
    """Apply objects in this order, as the administrator."""
    for body in bodies:
        api.apply(path_of(body), body)


@functools.cache
def rights(namespaces: tuple[str, ...], release: str = RELEASE) -> tuple[Object, ...]:
    """Return the chart's service account and roles; no namespace stands for all of them."""
    found = rendered({"watch": {"namespaces": list(namespaces)}}, release=release)
    return tuple(of_kind(found, *RIGHTS))


def grant(api: Api, namespaces: Sequence[str], release: str = RELEASE) -> None:
    """Give the operator of a release the chart's rights."""
    apply(api, [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    apply(api, rights(tuple(namespaces), release))


def token(api: Api, release: str = RELEASE) -> str:
    """Return a token of the operator's service account, as a pod would get it."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{release}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    return str(api.create(path, request)["status"]["token"])


def user_of(release: str = RELEASE) -> str:
    """Return the name under which the API server knows the operator."""
    return f"system:serviceaccount:{NAMESPACE}:{release}"


def install(kubeconfig: Path, values: Mapping[str, Any], *options: str) -> str:
    """Install or upgrade the release as a user does; returns what helm says."""
    command = ["upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE]
    return helm(*command, "--create-namespace", *options, values=values, kubeconfig=kubeconfig)


def uninstall(kubeconfig: Path) -> str:
    """Uninstall the release."""
    return helm("uninstall", RELEASE, "--namespace", NAMESPACE, kubeconfig=kubeconfig)


def exists(api: Api, body: Mapping[str, Any]) -> bool:
    """Whether the API server has such an object."""
    try:
        api.get(path_of(body))
    except ApiError as error:
        if error.code != 404:
            raise
        return False
    return True


def golden_files() -> dict[Path, str]:
    """Return what the golden files hold: a render of each file of values, without definitions.

    The definitions are the same in all, and are compared with ``crds/`` elsewhere.
    """
    found = {}
    for path in sorted(GOLDEN.glob("*.values.yaml")):
        # helm reads the file itself: 2e-4 is a number to it, and text to other readers of YAML.
        options = ["--values", str(path), "--set", "crds.enabled=false"]
        text = _template(None, *options, release=RELEASE, namespace=NAMESPACE)
        found[path.with_name(path.name.replace(".values.", ".render."))] = text
    return found


def readme() -> str:
    """Return the chart's README with the table of values as the schema and the defaults say."""
    text = (CHART / "README.md").read_text()
    head, _, rest = text.partition("<!-- values -->\n")
    _, _, tail = rest.partition("<!-- end of values -->")
    return f"{head}<!-- values -->\n{values_table()}<!-- end of values -->{tail}"


def schema() -> Object:
    """Return the schema of the chart's values."""
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def values_table() -> str:
    """Return a table of all values."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = ["| value | default | what it is |", "|---|---|---|"]
    rows += _rows(schema(), defaults, "")
    return "\n".join(rows) + "\n"


def _rows(schema: Mapping[str, Any], defaults: Mapping[str, Any], path: str) -> list[str]:
    rows = []
    for name, node in schema["properties"].items():
        default = defaults.get(name)
        if isinstance(default, dict) and "properties" in node:
            rows += _rows(node, default, f"{path}{name}.")
        else:
            shown = f"`{json.dumps(default)}`" if name in defaults else ""
            rows.append(f"| `{path}{name}` | {shown} | {node.get('description', '')} |")
    return rows


def main() -> None:
    """Write the golden files and the README."""
    for path, text in {**golden_files(), CHART / "README.md": readme()}.items():
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
