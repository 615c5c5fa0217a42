"""Eight ways to lose pods, to two jobs in mid-training: one is a PyTorchJob, the other an Indexed Job.

Each costs one attempt and nothing else: no failure is counted, less than one cadence is trained
again, the next attempt descends from the one that ended, and the adapter in the end is bit for bit
that of the same job undisturbed.
"""

import os
import signal
import time
from contextlib import ExitStack

import pytest

from harness.disturbed import SPEC, Disturbed, End, all_go_on, all_held, all_told, all_train
from harness.stage_config import merged
from harness.tenant import processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MAINTENANCE = "example.com/maintenance"
"""A taint that the operator tolerates and no job does."""
TOLD = {"Preempted"}
LOST = {"LostInfrastructure"}


@pytest.fixture(scope="session")
def kubeflow(tenant, twin):
    twin()  # the quota leaves no room beside it
    tenant.start("kubeflow", merged(SPEC, {"backend": "PyTorchJob"}))
    return Disturbed(tenant, "kubeflow")


@pytest.fixture(scope="session")
def plain(tenant, twin):
    twin()
    tenant.start("plain", merged(SPEC, {"backend": "Job"}))
    return Disturbed(tenant, "plain")


@pytest.fixture
def hungry(tenant):
    """A job of one pod whose memory is limited to a little more than it needs."""
    spec = {
        "training": {"maxSteps": 100_000},
        "resources": {"memory": "1400Mi", "sharedMemory": "2Gi"},
        "backend": "Job",
        "checkpoint": {"everySteps": 1000},
    }
    tenant.start("hungry", spec)
    yield "hungry"
    tenant.remove("hungry")  # else it would train on, had it not failed


def evict(tenant, pod):
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": tenant.namespace},
    }
    tenant.api.create(f"/api/v1/namespaces/{tenant.namespace}/pods/{pod}/eviction", body)


def delete(tenant, pod, *words):
    tenant.kubectl("delete", "pod", pod, "--wait=false", *words)


def test_a_container_that_uses_too_much_memory_fails_its_job(tenant, hungry, kubeflow, plain):
    """The kernel kills the process that trains when the pod's memory disk is filled."""
    with ExitStack() as held:
        all_held((kubeflow, plain), held)  # they start meanwhile
        (pod,) = tenant.wait(lambda: tenant.running(hungry), "its pod runs", 400)
        tenant.wait(lambda: tenant.kept(hungry).steps(1), "it trains", 400)
        fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=1400"
        tenant.kubectl("exec", pod["metadata"]["name"], "--", "sh", "-c", fill, check=False)
        status = tenant.finished(hungry, 120)
    assert (status["outcome"], status["attempt"]) == ("Failed", 1)
    assert (status["failures"], status["preemptions"]) == (1, 0)
    failure = status["lastFailure"]
    assert (failure["class"], failure["exitCode"]) == ("OutOfMemory", 137)
    assert failure["fix"] == "lower training.microBatchSize, or raise resources.memory"
    assert tenant.conditions(hungry)["Failed"] == (
        "True",
        "OutOfMemory",
        "a process was ended because it used more memory than it has; it used more memory than its"
        " limit [out-of-memory] fix: lower training.microBatchSize, or raise resources.memory",
    )


def test_a_pod_is_evicted_and_a_pod_is_deleted(tenant, kubeflow, plain):
    jobs = (kubeflow, plain)
    with ExitStack() as held:
        before = all_held(jobs, held)
        evict(tenant, before["kubeflow"].names[1])
        delete(tenant, before["plain"].names[0])
        all_told(tenant, before["kubeflow"].pods[1], before["plain"].pods[0])
    after = all_go_on([End(job, before[job.name], TOLD, together=True) for job in jobs])
    assert "EvictionByEvictionAPI" in after["kubeflow"]["lastFailure"]["message"]
    assert after["plain"]["lastFailure"]["exitCode"] == 143
    assert after["plain"]["lastFailure"]["code"] == "preempted"


def test_training_operator_is_killed_and_a_pod_is_deleted_by_force(
    cluster, tenant, kubeflow, plain
):
    with ExitStack() as down:
        with ExitStack() as held:
            before = all_held((plain, kubeflow), held)
            delete(tenant, before["plain"].names[1], "--grace-period=0", "--force")
            down.callback(cluster.start_training_operator)
            cluster.stop_training_operator()
            delete(tenant, before["kubeflow"].names[0])
            all_told(tenant, before["kubeflow"].pods[0])
        time.sleep(5)  # they end while it is down
    # Nobody told kubeflow's other pod: it heard of the signal from the rank that was told.
    after = all_go_on(
        [
            End(plain, before["plain"], LOST, together=False),
            End(kubeflow, before["kubeflow"], TOLD | LOST, together=True),
        ]
    )
    assert after["plain"]["lastFailure"]["pod"] == before["plain"].names[1]


def test_the_operator_is_killed_while_pods_go(tenant, operator_pod, kubeflow, plain):
    """What it did not see itself it takes from what is left, and counts it once."""
    jobs = (kubeflow, plain)
    with ExitStack() as held:
        before = all_held(jobs, held)
        pod = operator_pod()
        for process in processes_of(pod):
            os.kill(process, signal.SIGKILL)
        delete(tenant, before["kubeflow"].names[0])
        evict(tenant, before["plain"].names[1])
        all_told(tenant, before["kubeflow"].pods[0], before["plain"].pods[1])
    all_go_on([End(job, before[job.name], TOLD | LOST, together=True) for job in jobs])
    again = operator_pod()
    assert again["metadata"]["uid"] == pod["metadata"]["uid"]
    assert again["status"]["containerStatuses"][0]["restartCount"] == 1


def test_the_operator_is_upgraded_while_jobs_run(tenant, upgrade, operator_pod, kubeflow, plain):
    """No job notices: same attempts, same pods, nothing counted.

    They stand still while one operator goes and the next one comes: to it that is a slow step.
    """
    jobs = (kubeflow, plain)
    with ExitStack() as held:
        before = all_held(jobs, held)
        statuses = {job.name: tenant.status(job.name) for job in jobs}
        old = operator_pod()
        upgrade()
        new = operator_pod()
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert new["spec"]["containers"][0]["image"] != old["spec"]["containers"][0]["image"]
    later = all_train(jobs, after=before)
    for job in jobs:
        was, now, status = before[job.name], later[job.name], statuses[job.name]
        assert [p["metadata"]["uid"] for p in now.pods] == [p["metadata"]["uid"] for p in was.pods]
        assert now.child == was.child
        after = tenant.status(job.name)
        for name in ("attempt", "failures", "preemptions", "resolved", "trainerImage", "child"):
            assert after.get(name) == status.get(name), name


def test_the_node_is_tainted(cluster, tenant, kubeflow, plain):
    jobs = (kubeflow, plain)
    with ExitStack() as held, ExitStack() as tainted:
        before = all_held(jobs, held)
        tainted.callback(cluster.remove_taint, MAINTENANCE)
        cluster.add_taint(MAINTENANCE, effect="NoExecute")
        all_told(tenant, *before["kubeflow"].pods, *before["plain"].pods)
        held.close()
        tenant.wait(
            lambda: not tenant.running("kubeflow") and not tenant.running("plain"),
            "all pods have left",
        )
    after = all_go_on([End(job, before[job.name], TOLD, together=True) for job in jobs])
    for status in after.values():
        assert "DeletionByTaintManager" in status["lastFailure"]["message"]


def test_the_node_loses_power(cluster, kubeflow, plain):
    """All containers die at once, the operator's too; the disks keep what they have."""
    jobs = (kubeflow, plain)
    with ExitStack() as held:
        before = all_held(jobs, held)
        cluster.restart_node()
    all_go_on([End(job, before[job.name], LOST, together=False) for job in jobs])


@pytest.mark.parametrize("name", ["kubeflow", "plain"])
def test_the_adapter_is_that_of_the_same_job_undisturbed(name, request, tenant, twin):
    job = request.getfixturevalue(name)
    status = tenant.finished(job.name, 600)
    assert status["outcome"] == "Succeeded"
    disturbed = job.attempt - 1  # five times, or a test above has failed
    assert (status["attempt"], status["failures"]) == (job.attempt, 0)
    assert status["preemptions"] == disturbed
    assert [one["attempt"] for one in status["resumes"]] == list(range(2, job.attempt + 1))
    assert status["backend"] == {"kubeflow": "PyTorchJob", "plain": "Job"}[name]
    undisturbed = twin()
    assert job.kept.losses() == undisturbed.losses()
    assert sorted(undisturbed.losses()) == list(range(1, SPEC["training"]["maxSteps"] + 1))
    assert list(undisturbed.adapter()) == ["adapter/adapter_model.safetensors"]
    assert job.kept.adapter() == undisturbed.adapter()
