"""What the real Job controller makes of a child whose size somebody sets to 0, and how that is read."""

from datetime import UTC, datetime

from finetune_operator.backend import BACKENDS
from finetune_operator.failures import classify
from harness.control_plane import control_plane
from harness.controllers import controller_manager
from harness.operator_driver import wait_for

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"
MERGE = "application/merge-patch+json"
CHILD = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "bot-1"},
    "spec": {
        "completionMode": "Indexed",
        "parallelism": 2,
        "completions": 2,
        "backoffLimit": 0,
        "template": {
            "spec": {
                "restartPolicy": "Never",
                "containers": [{"name": "trainer", "image": "registry.example/trainer"}],
            }
        },
    },
}


def running(api):
    """Return two pods that a kubelet would say run."""
    wait_for(lambda: len(api.get(PODS)["items"]) == 2)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    container = {
        **{"name": "trainer", "image": "i", "imageID": "i", "ready": True, "restartCount": 0},
        "state": {"running": {"startedAt": now}},
    }
    for pod in api.get(PODS)["items"]:
        status = {"status": {"phase": "Running", "containerStatuses": [container]}}
        api.request("PATCH", f"{PODS}/{pod['metadata']['name']}/status", status, MERGE)
    return api.get(PODS)["items"]


def holding(job):
    conditions = job["status"].get("conditions") or ()
    return {one["type"] for one in conditions if one["status"] == "True"}


def test_a_job_of_size_0_rests_until_it_is_set_back_and_its_success_is_none(tmp_path):
    with control_plane() as plane:
        api = plane.api
        manager = controller_manager(plane, tmp_path, 40.0, "127.0.0.1")
        manager.start()
        try:
            wait_for(lambda: api.get("/api/v1/namespaces/default/serviceaccounts/default"))
            api.create(JOBS, CHILD)
            first = running(api)

            def child():
                return api.get(f"{JOBS}/bot-1")

            def resize(**spec):
                api.request("PATCH", f"{JOBS}/bot-1", {"spec": spec}, MERGE)

            resize(parallelism=0)
            wait_for(lambda: not api.get(PODS)["items"])
            wait_for(lambda: not child()["status"].get("active"))
            rests = BACKENDS["Job"].read(child(), [], first, processes=2)
            resize(parallelism=2)
            wait_for(lambda: len(api.get(PODS)["items"]) == 2)
            back = BACKENDS["Job"].read(child(), api.get(PODS)["items"], processes=2)
            second = running(api)
            resize(parallelism=0, completions=0)
            wait_for(lambda: not api.get(PODS)["items"])
            wait_for(lambda: "Complete" in holding(child()))
            short = BACKENDS["Job"].read(child(), [], second, processes=2)
        finally:
            manager.stop(3.0)

    assert (rests.held, rests.withdrawn, rests.over) == (True, True, False)
    assert rests.emptied == "spec.parallelism"
    assert (back.held, back.over) == (False, False)
    assert (short.over, short.held) == (True, False)
    cause = classify("train", short.ends)
    assert cause is not None
    assert cause.class_ == "LostInfrastructure"
