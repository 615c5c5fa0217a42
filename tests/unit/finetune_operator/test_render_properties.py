"""Over thousands of generated jobs and profiles: what no rendered object may ever be."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.names import attempt_name, prepare_name, publish_name
from finetune_api.profile import Platform
from finetune_api.structural import structural
from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render import environment
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from finetune_operator.render.workspace import workspace
from harness.pod_security import violations
from harness.rendered import CHOICES, attempt_config, faults, job_of, templates
from harness.rendered_specs import SPECS
from harness.spec_strategy import from_schema

EXAMPLES = int(os.environ.get("RENDER_EXAMPLES", "1000"))
"""Jobs; each is rendered as four kinds of pods."""
NAMES = st.sampled_from(["a", "support-bot", "b" * 40, "x-9" + "-y" * 18])


def with_devices(platform: dict[str, Any]) -> dict[str, Any]:
    """Return the platform with names of devices, which the schema alone does not ask for."""
    extra = platform.get("extraResources") or {}
    return {**platform, "extraResources": {f"example.com/{key}": n for key, n in extra.items()}}


PLATFORMS = from_schema(structural(Platform)).map(with_devices)
KEYS = st.sampled_from(
    [
        "finetune.dev/job-uid",
        "kueue.x-k8s.io/queue-name",
        "training.kubeflow.org/replica-index",
        "container.apparmor.security.beta.kubernetes.io/pytorch",
        "seccomp.security.alpha.kubernetes.io/pod",
        "k8s.v1.cni.cncf.io/networks",
        "team",
    ]
)
VARIABLES = st.sampled_from(
    [*sorted(environment.DENIED), "FINETUNE_X", "NCCL_DEBUG", "HTTPS_PROXY"]
)
HOSTILE = st.fixed_dictionaries(
    {},
    optional={
        "podLabels": st.dictionaries(KEYS, st.just("unconfined"), max_size=4),
        "podAnnotations": st.dictionaries(KEYS, st.just("unconfined"), max_size=4),
        "environment": st.lists(
            st.fixed_dictionaries(
                {"name": VARIABLES, "value": st.sampled_from(["all", "$(HOME)"])}
            ),
            max_size=5,
        ),
    },
)


def rendered(
    spec: dict[str, Any], platform: dict[str, Any], name: str, number: int, queue: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (objects of the CPU stages, objects of the attempts) of a job on every backend."""
    job = job_of(spec, name)
    place = Placement(Platform.model_validate(platform), queue, None)
    cpu = list(filter(None, [workspace(job)]))
    for stage, child in (("prepare", prepare_name(name)), ("publish", publish_name(name))):
        choices = CHOICES if stage == "publish" else None
        config = stage_config(job, stage, choices)  # type: ignore[arg-type]
        cpu += prepare_or_publish(config, f"{child}-{number}", number, place)
    child = attempt_name(name, number)
    train: list[dict[str, Any]] = []
    for backend in BACKENDS.values():
        train += attempt(backend, attempt_config(job, number), child, place)
    return cpu, train


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spec=SPECS,
    platform=PLATFORMS,
    hostile=HOSTILE,
    name=NAMES,
    number=st.integers(1, 10**6),
    queue=st.none() | st.just("gpus"),
)
def test_whatever_is_asked_every_pod_is_confined(
    spec: Any, platform: Any, hostile: Any, name: str, number: int, queue: str | None
) -> None:
    cpu, train = rendered(spec, {**platform, **hostile}, name, number, queue)
    assert faults((*cpu, *train)) == []
    for template, _ in templates(tuple(cpu)):
        asked = template["spec"]["containers"][0]["resources"].get("requests", {})
        assert set(asked) <= {"cpu", "memory", "ephemeral-storage"}
    for template, pods in templates(tuple(train)):
        assert pods == spec["resources"].get("nodes", 1)
        only_the_operators_words(template)
    for template, _ in templates((*cpu, *train)):
        mounts_are_safe(template, spec)


def only_the_operators_words(template: dict[str, Any]) -> None:
    """No variable but ours and the profile's allowed ones; ours say what we said."""
    variables = template["spec"]["containers"][0]["env"]
    said = {one["name"]: one.get("value") for one in variables}
    assert said["HOME"] == "/tmp/home"
    assert said["HF_HUB_OFFLINE"] == "1"
    assert said.get("FINETUNE_X") is None
    assert said.get("NVIDIA_VISIBLE_DEVICES") in (None, "void")
    assert said.get("LD_PRELOAD") is None
    labels = template["metadata"]["labels"]
    assert labels["finetune.dev/job-uid"] == "8c7f5e0a-4b1d-4c59-9e55-0d2f6a1b3c4d"
    assert "training.kubeflow.org/replica-index" not in labels
    assert "kueue.x-k8s.io/queue-name" not in labels


def mounts_are_safe(template: dict[str, Any], spec: dict[str, Any]) -> None:
    """Written are the job's own folder, scratch, and outside training the output's claim alone."""
    pod = template["spec"]
    container = pod["containers"][0]
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    output = (spec.get("output") or {}).get("uri")
    written = {"/tmp", "/dev/shm", "/workspace"}
    if container["args"][0] != "train" and output:
        written.add("/volumes/" + output.removeprefix("pvc://").split("/")[0])
    for mount in container["volumeMounts"]:
        path = mount["mountPath"]
        assert mount.get("readOnly") is True or path in written
        if path == "/workspace":
            assert mount["subPath"].endswith("-8c7f5e0a")
        elif path.startswith("/volumes/"):
            assert path == f"/volumes/{claims[mount['name']]}"
            assert "subPath" not in mount


def test_the_checker_sees_what_it_is_for() -> None:
    good = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
            }
        ],
    }
    assert violations({"spec": good}) == []
    container = good["containers"][0]  # type: ignore[index]
    context = container["securityContext"]
    for wrong in (
        {**good, "hostNetwork": True},
        {**good, "volumes": [{"name": "a", "hostPath": {"path": "/"}}]},
        {**good, "volumes": [{"name": "a", "nfs": {}}]},
        {**good, "securityContext": {"runAsNonRoot": True}},
        {**good, "securityContext": {**good["securityContext"], "runAsUser": 0}},  # type: ignore[dict-item]
        {**good, "containers": [{}]},
        {**good, "initContainers": [{"name": "nslookup"}]},
        *(
            {**good, "containers": [{"securityContext": {**context, **change}}]}
            for change in (
                {"privileged": True},
                {"allowPrivilegeEscalation": True},
                {"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}},
                {"capabilities": {}},
                {"runAsUser": 0},
                {"runAsNonRoot": False},
                {"seccompProfile": {"type": "Unconfined"}},
                {"procMount": "Unmasked"},
                {"seLinuxOptions": {"type": "spc_t"}},
                {"appArmorProfile": {"type": "Unconfined"}},
            )
        ),
        {**good, "containers": [{**container, "ports": [{"hostPort": 80}]}]},
    ):
        assert violations({"spec": wrong}) != []
