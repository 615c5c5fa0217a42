"""``finetune report`` against a real API server, and the command that it prints."""

import json
import shlex
import subprocess

from harness.binaries import binary
from harness.cli_process import ended
from harness.written_status import SUCCEEDED, write

IMAGE = "registry.example/finetune-trainer:0.1.0"


def test_the_printed_command_is_admitted_under_restricted_pod_security(
    plane, api, namespace, job, tmp_path
):
    write(api, namespace, {**SUCCEEDED, "trainerImage": IMAGE})
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    path, merge = f"/api/v1/namespaces/{namespace}", "application/merge-patch+json"
    api.request("PATCH", path, {"metadata": {"labels": labels}}, merge)
    code, lines = ended(plane.kubeconfig, tmp_path, "report", "bot", "-n", namespace)
    assert code == 0
    assert lines[0].startswith("bot  Succeeded")
    assert "  report      pvc://output/bot/report.html" in lines
    words = shlex.split(lines[-1].rpartition(" > ")[0])
    assert words[:3] == ["echo", "|", "kubectl"]
    dry = ["--dry-run=server", "--output=jsonpath={.spec.containers[*].command}"]
    words = [word for word in words[3:] if word not in ("--rm", "-i", "--quiet")]
    at = words.index("--command")
    tried = subprocess.run(
        [
            str(binary("kubectl")),
            f"--kubeconfig={plane.kubeconfig}",
            *words[:at],
            *dry,
            *words[at:],
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    assert "violate" not in tried.stderr
    said = json.loads(tried.stdout)
    assert said == ["sh", "-c", 'read -r _; cat "$0"', "/claim/bot/report.html"]
