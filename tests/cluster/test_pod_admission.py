"""Whatever a job asks for, real Pod Security admission lets its pods in, and would not others."""

import os

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from finetune_operator.backend import BACKENDS, attempt, prepare_or_publish
from finetune_operator.render.config import stage_config
from finetune_operator.render.placement import Placement
from harness.control_plane import ApiError
from harness.rendered import CHOICES, attempt_config, job_of, templates
from harness.rendered_specs import REQUIRED, SPECS

NAMESPACE = "enforced"
EXAMPLES = int(os.environ.get("ADMISSION_EXAMPLES", "60"))
"""Jobs; each is seven pods or so."""


@pytest.fixture(scope="module")
def pods(api):
    """Path of the pods of a namespace that enforces the standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE, "labels": labels}})
    inside = f"/api/v1/namespaces/{NAMESPACE}"
    api.create(f"{inside}/serviceaccounts", {"metadata": {"name": "default"}})
    return f"{inside}/pods"


def pods_of(spec):
    """One pod of each kind that a job becomes."""
    made = job_of(spec)
    yield from prepare_or_publish(stage_config(made, "prepare"), "a-prepare", 1, Placement())
    publish = stage_config(made, "publish", CHOICES)
    yield from prepare_or_publish(publish, "a-publish", 1, Placement())
    for backend in BACKENDS.values():
        yield from attempt(backend, attempt_config(made), "a-1", Placement())


def as_pod(template):
    spec = dict(template["spec"])
    spec.pop("priorityClassName", None)  # of classes that this cluster does not have
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "drawn"},
        "spec": spec,
    }


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # to make a failure smaller would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(spec=SPECS)
def test_every_pod_of_any_job_is_admitted(api, pods, spec):
    seen = 0
    for template, _ in templates(tuple(pods_of(spec))):
        api.create(pods, as_pod(template), dryRun="All")
        seen += 1
    assert seen == 2 + len(BACKENDS)


OF_CONTAINER = {
    "root": {"runAsNonRoot": False, "runAsUser": 0},
    "privileged": {"privileged": True, "allowPrivilegeEscalation": True},
    "a capability": {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}},
}
OF_POD = {
    "the host's network": {"hostNetwork": True},
    "the host's processes": {"hostPID": True},
    "a folder of the host": {"volumes": [{"name": "tmp", "hostPath": {"path": "/"}}]},
}


@pytest.mark.parametrize("right", [*OF_CONTAINER, *OF_POD])
def test_the_admission_is_on(api, pods, right):
    """The same pod with one right more is refused."""
    (template, _), *_ = templates(tuple(pods_of(REQUIRED)))
    pod = as_pod(template)
    more = OF_POD.get(right, {})
    others = [one for one in pod["spec"]["volumes"] if one["name"] != "tmp"]
    if "volumes" in more:
        more = {"volumes": [*others, *more["volumes"]]}
    pod["spec"] |= more
    (container,) = pod["spec"]["containers"]
    container["securityContext"] |= OF_CONTAINER.get(right, {})
    with pytest.raises(ApiError, match="violates PodSecurity") as refused:
        api.create(pods, pod, dryRun="All")
    assert refused.value.code == 403
