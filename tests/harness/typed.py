"""A reader of the pages: types their commands as a user of a namespace, one after the other."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.access import search_path
from harness.cluster import Cluster
from harness.doc_commands import DocCommand, commands_in, prints
from harness.network import ADDRESS

ROOT = Path(__file__).parents[2]


@dataclass
class Reader:
    """Types in the root of the checkout, with a kubeconfig and a PATH as the pages ask for."""

    kubeconfig: Path
    variables: dict[str, str] = field(default_factory=dict)

    def types(self, page: str, *, timeout: float = 900.0) -> list[str]:
        """Type every command of a page; returns what they printed.

        Fails with the page's line when a command fails, or prints something else than is shown.
        """
        return [self.type(one, timeout) for one in commands_in(ROOT / page, ROOT)]

    @contextmanager
    def types_beside(
        self, pages: Sequence[str], *, timeout: float = 900.0
    ) -> Iterator[dict[str, Future[list[str]]]]:
        """Type pages one after the other while the block goes on; yields what each printed, by page.

        After one that fails the others are typed all the same. The block ends when all are typed.
        """
        with ThreadPoolExecutor(1) as hands:
            yield {page: hands.submit(self.types, page, timeout=timeout) for page in pages}

    def type(self, command: DocCommand, timeout: float = 900.0) -> str:
        """Type one command."""
        path = os.pathsep.join([str(ROOT / ".venv" / "bin"), search_path()])
        given = {"PATH": path, "KUBECONFIG": str(self.kubeconfig), **self.variables}
        done = subprocess.run(
            ["bash", "-c", command.text],
            cwd=ROOT,
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = f"{command}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, f"exit status {done.returncode} of {said}"
        assert prints(command.shown, done.stdout), f"expected {command.shown} of {said}"
        return done.stdout


def editor(cluster: Cluster, namespace: str, user: str) -> Path:
    """Give a new user the role *edit* in a namespace; returns their kubeconfig."""
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": user},
        "subjects": [{"kind": "User", "name": user, "apiGroup": group}],
        "roleRef": {"kind": "ClusterRole", "name": "edit", "apiGroup": group},
    }
    path = f"/apis/{group}/v1/namespaces/{namespace}/rolebindings"
    cluster.api.create(path, binding)
    kubeconfig = cluster.plane.kubeconfig_of(user, f"/CN={user}", ADDRESS)
    config = json.loads(kubeconfig.read_text())
    config["contexts"][0]["context"]["namespace"] = namespace
    kubeconfig.write_text(json.dumps(config))
    return kubeconfig
