"""Attempts as PyTorchJobs on a real API server with the training operator's own definition.

The training operator and the pods are played; ``tests/e2e`` has the real ones.
"""

import time

import pytest

from harness.control_plane import control_plane
from harness.definitions import apply_definition, apply_definitions
from harness.jobs import TOLD_OR_GONE, Jobs, folder_of, namespace_for, playing
from harness.killed_operators import killed_operators
from harness.operator_driver import operator, wait_for
from harness.played_children import pytorch_job_definition
from harness.played_runs import Run
from harness.pod_player import PodPlayer

QUICK = ["--unreachable-seconds", "1", "--progress-seconds", "1"]
TWO = {"nodes": 2}


@pytest.fixture(scope="module")
def kubeflow():
    """A control plane of its own: elsewhere there is no PyTorchJob, and jobs are Indexed Jobs."""
    with control_plane() as plane:
        apply_definitions(plane)
        body = pytorch_job_definition().read_bytes()
        apply_definition(plane, "pytorchjobs.kubeflow.org", body)
        yield plane


@pytest.fixture
def jobs(kubeflow, request):  # in the place of the one with the other control plane
    return Jobs(kubeflow.api, namespace_for(kubeflow.api, request.node.name))


def one_fails_once(stage, attempt, node):
    """In the first attempt the second process is told to make room, and the first follows it."""
    if stage == "train" and attempt == 1:
        return Run(exit_code=143, step=30, checkpoint=30) if node else Run(forever=True)
    return Run()


@pytest.mark.timeout(600)
def test_killed_before_and_after_every_write_a_gang_ends_as_undisturbed(kubeflow, jobs, tmp_path):
    """No operator lives longer than until its first write; each is met before and after it."""
    player = PodPlayer(kubeflow.api, jobs.namespace, one_fails_once, pytorch=True, pause=0.3)
    with killed_operators(jobs, tmp_path) as operators, playing(player):
        uid = jobs.submit("bot", resources=TWO)
        operators.work_until_ended("bot")

    folder = folder_of("bot", uid)
    assert operators.stored("POST") == [
        f"{folder}-resolved",
        "bot-workspace",
        "bot-prepare",
        "bot-1",
        "bot-2",
        "bot-publish",
    ]
    assert operators.survived() == []
    assert player.made == [
        "bot-prepare-0-abcde",
        "bot-1-worker-0",
        "bot-1-worker-1",
        "bot-2-worker-0",
        "bot-2-worker-1",
        "bot-publish-0-abcde",
    ]
    assert player.most_alive == {"bot": 1}
    assert jobs.counted("bot") == ("Succeeded", 2, 0, 1)
    assert jobs.causes("bot") == [("Preempted", 30)]
    status = jobs.status("bot")
    assert (status["backend"], status["checkpoint"]["path"]) == (
        "PyTorchJob",
        "checkpoints/2/step-60",
    )


def test_what_is_done_to_a_gang_ends_it_as_a_whole_and_is_no_failure(kubeflow, jobs, tmp_path):
    """Preempted, its child deleted or suspended, a worker more asked for."""
    names = ("preempted", "removed", "orphaned", "paused", "grown")
    held = dict.fromkeys(names, True)

    def script(name):
        return lambda stage, attempt, node: Run(
            forever=held[name] and stage == "train" and attempt == 1
        )

    scripts = {name: script(name) for name in names}
    player = PodPlayer(kubeflow.api, jobs.namespace, scripts=scripts, pytorch=True)
    log = tmp_path / "operator.log"
    with playing(player), operator(kubeflow.kubeconfig, jobs.namespace, log, *QUICK) as process:
        for name in names:
            jobs.submit(name, resources=TWO, checkpoint={"gracePeriodSeconds": 1})
        for name in names:
            wait_for(lambda name=name: jobs.phase(name) == "Running", process)

        def suspend(name, value):
            jobs.change("pytorchjobs", name, {"spec": {"runPolicy": {"suspend": value}}})

        player.preempt("preempted-1-worker-1")
        jobs.delete("pytorchjobs", "removed-1")
        jobs.delete("pytorchjobs", "orphaned-1", "Orphan")
        suspend("paused-1", True)
        player.held = {"grown-1-worker-2"}
        three = {"pytorchReplicaSpecs": {"Worker": {"replicas": 3}}}
        jobs.change("pytorchjobs", "grown-1", {"spec": three})
        wait_for(lambda: "grown-1-worker-2" in player.made, process)
        wait_for(lambda: jobs.condition("paused", "Recovering")[1] == "SuspendedByOthers", process)
        time.sleep(2)
        grown = jobs.phase("grown")
        held["grown"] = held["orphaned"] = False
        suspend("paused-1", False)
        for name in names:
            wait_for(lambda name=name: jobs.outcome(name), process, 120)
        # The worker that nobody of ours asked for never ran, and goes with the gang.
        wait_for(lambda: jobs.find("pods", "grown-1-worker-2") is None, process)

    assert {name: jobs.counted(name) for name in names} == {
        "preempted": ("Succeeded", 2, 0, 1),
        "removed": ("Succeeded", 2, 0, 1),
        "orphaned": ("Succeeded", 1, 0, 0),
        "paused": ("Succeeded", 2, 0, 1),
        "grown": ("Succeeded", 1, 0, 0),
    }
    assert grown == "Running"
    assert jobs.causes("preempted") == [("Preempted", 30)]
    for name in ("removed", "paused"):
        assert jobs.causes(name) in TOLD_OR_GONE
    assert player.most_alive == dict.fromkeys(names, 1) | {"grown": 2}


@pytest.mark.parametrize("backend", ["Job", "PyTorchJob"])
def test_the_longest_name_of_a_job_works(kubeflow, jobs, tmp_path, backend):
    """Every object of ours and of the controllers is accepted, through a preemption."""
    name = "forty-characters-are-what-a-name-may-get"
    player = PodPlayer(kubeflow.api, jobs.namespace, one_fails_once, pytorch=True)
    log = tmp_path / "operator.log"
    with playing(player), operator(kubeflow.kubeconfig, jobs.namespace, log, *QUICK) as process:
        uid = jobs.submit(name, resources=TWO, backend=backend)
        wait_for(lambda: jobs.outcome(name), process)
        pods = kubeflow.api.get(jobs.path("pods"))["items"]
        services = jobs.names("services")
    # What the training operator makes beside each worker, at the largest numbers there are.
    ports = [{"port": 23456}]
    for worker in (f"{name}-9999-worker-4095", f"{name}-1-worker-0"):
        body = {"metadata": {"name": worker, "labels": {"training.kubeflow.org/job-name": worker}}}
        kubeflow.api.create(
            jobs.path("services"), {**body, "spec": {"clusterIP": "None", "ports": ports}}
        )

    assert len(name) == 40
    assert jobs.counted(name) == ("Succeeded", 2, 0, 1)
    assert jobs.status(name)["backend"] == backend
    made = f"{name}-2-{{}}-abcde" if backend == "Job" else f"{name}-2-worker-{{}}"
    assert [one for one in player.made if one.startswith(f"{name}-2-")] == [
        made.format(0),
        made.format(1),
    ]
    assert services == ([folder_of(name, uid)] if backend == "Job" else [])
    assert all(len(pod["spec"].get("hostname", "")) <= 63 for pod in pods)
