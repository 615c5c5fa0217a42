"""A namespace whose quota of ConfigMaps is used up, on a real API server that counts them."""

import pytest

from finetune_api.status import JobStatus
from harness.control_plane import ApiError
from harness.jobs import MERGE, playing
from harness.operator_driver import operator, wait_for
from harness.played_runs import trains_forever
from harness.pod_player import PodPlayer

NOTES = {"notes": "x" * 200_000}
MAPS = "count/configmaps"


def set_quota(jobs, most: int, used: int) -> None:
    """Set how many ConfigMaps there may be; the controller that counts them is not there."""
    path = f"/api/v1/namespaces/{jobs.namespace}/resourcequotas"
    hard, counted = {MAPS: str(most)}, {MAPS: str(used)}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    try:
        jobs.api.create(path, body | {"spec": {"hard": hard}})
    except ApiError as error:
        if error.code != 409:
            raise
    status = {"spec": {"hard": hard}}
    jobs.api.request("PATCH", f"{path}/small", status, MERGE)
    status = {"status": {"hard": hard, "used": counted}}
    jobs.api.request("PATCH", f"{path}/small/status", status, MERGE)


@pytest.mark.timeout(180)
def test_a_job_waits_for_room_and_goes_on_by_itself(plane, jobs, tmp_path):
    """It has one ConfigMap, and there is no room for it."""
    set_quota(jobs, 0, 0)
    flags = ("--unreachable-seconds", "1")
    with (
        playing(PodPlayer(jobs.api, jobs.namespace, trains_forever)),
        operator(plane.kubeconfig, jobs.namespace, tmp_path / "operator.log", *flags) as process,
    ):
        jobs.submit("bot")
        jobs.change("finetunejobs", "bot", {"metadata": {"annotations": NOTES}})

        def waits():
            return jobs.condition("bot", "Accepted")[1] == "QuotaExceeded"

        wait_for(waits, process)
        _, _, message = jobs.condition("bot", "Accepted")
        assert "exceeded quota: small, requested: count/configmaps=1, used: count/configmaps=0" in (
            message
        )
        assert jobs.phase("bot") == "Pending"

        set_quota(jobs, 1, 0)
        wait_for(lambda: jobs.phase("bot") == "Running", process)
    found = jobs.find("finetunejobs", "bot")
    assert found is not None
    assert JobStatus.model_validate(found["status"]).attempt == 1
    # Whoever writes status leaves everything else as it is.
    assert found["metadata"]["annotations"] == NOTES
