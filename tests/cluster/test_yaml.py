"""One file is one object: read by ``finetune``, and sent by kubectl to a real API server."""

import json
import subprocess
from pathlib import Path

import pytest

from finetune_cli import yaml_file
from harness.binaries import KUBECTL, binary

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").rglob("*.yaml")
    if "kind: FineTuneJob\n" in path.read_text(encoding="utf-8")
)
pytestmark = pytest.mark.usefixtures("definitions")

HEAD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: parity}
spec:
  model: {uri: hf://Qwen/Qwen2.5-0.5B-Instruct}
  dataset: {train: [{uri: pvc://datasets/train.jsonl}]}
  method: {lora: {}}
"""


@pytest.fixture(scope="module")
def kubectl(plane):
    """What the API server makes of a file that kubectl sends it; a dry run."""
    program = binary(KUBECTL)

    def send(path):
        done = subprocess.run(
            [program, "create", "--dry-run=server", "--validate=strict", "-o=json", "-f", path],
            env={"KUBECONFIG": str(plane.kubeconfig), "HOME": str(plane.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["spec"]

    return send


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training: {learningRate: 2e-4}", 2e-4),
        ("training: {learningRate: 2.0e-04}", 2e-4),
        ("training: {learningRate: 1}", 1),
        ("training: {learningRate: .5}", 0.5),
        ("training: {epochs: 3.0}", 3),
        ("training: {seed: 017}", 15),
        ("training: {seed: 0x1F}", 31),
        ("training: {seed: 1_000}", 1000),
        ("resources: {memory: 64}", 64),
        ('resources: {memory: "64"}', "64"),
        ("suspend: yes", True),
        ("suspend: off", False),
        ("dataset: {train: [{uri: pvc://d/x}], packing: True}", True),
        ("dataset: {train: [{uri: pvc://d/x}], systemPrompt: 'no'}", "no"),
        ("dataset: {train: [{uri: pvc://d/x}], systemPrompt: 2e-4x}", "2e-4x"),
        ("dataset: {train: [{uri: pvc://d/x}], systemPrompt: 12:30:00}", "12:30:00"),
        ("checkpoint: {maxLostWork: 10m}", "10m"),
    ],
)
def test_scalars(kubectl, tmp_path, text, value):
    section, _, _ = text.partition(":")
    lines = [line for line in HEAD.splitlines() if not line.startswith(f"  {section}:")]
    path = tmp_path / "job.yaml"
    path.write_text("\n".join([*lines, f"  {text}"]) + "\n")

    ours = yaml_file.read(str(path))[0].data["spec"]
    theirs = kubectl(path)

    assert ours == theirs
    found = ours[section]
    if isinstance(found, dict):
        *_, found = found.values()
    assert found == value
    assert type(found) is type(value)


def test_a_file_of_many_forms(kubectl, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        HEAD.replace("  dataset: {train: [{uri: pvc://datasets/train.jsonl}]}\n", "")
        + """\
  dataset: &data   # a comment
    train:
    - uri: pvc://datasets/a.jsonl
      columns: {messages: conversations}
    - {"uri": "pvc://datasets/b.jsonl", "maxRows": 1e3}
    systemPrompt: |
      You are Otto:
        the workshop assistant.
    chatTemplate: >-
      {{ bos_token }}
      {% for m in messages %}ä{% endfor %}
    validation:
      fraction: 2e-2
  training:
    betas: [0.9, 0.999]
    epsilon: 1e-8
    epochs: 1e1
  evaluation: {metrics: [loss, perplexity]}
  suspend: false
"""
    )

    ours = yaml_file.read(str(path))[0].data["spec"]

    assert ours == kubectl(path)
    assert ours["dataset"]["train"][1] == {"uri": "pvc://datasets/b.jsonl", "maxRows": 1000}
    assert ours["dataset"]["systemPrompt"] == "You are Otto:\n  the workshop assistant.\n"
    assert ours["dataset"]["validation"]["fraction"] == 0.02
    assert ours["training"]["epsilon"] == 1e-8


@pytest.mark.skipif(not EXAMPLES, reason="no examples in this checkout")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(kubectl, path):
    assert yaml_file.read(str(path))[0].data["spec"] == kubectl(path)
