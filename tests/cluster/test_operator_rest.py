"""What the operator leaves alone: jobs that run without news, and all of them when it is replaced.

Both are read off the API server's audit log. The minute of waiting is one for jobs whose step stands
still and for jobs whose step moves; it is idle, and the only way to see that a minute is silent.
"""

import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from finetune_api.reports import Progress
from harness.audit import looked_at, policy, requests
from harness.control_plane import start_control_plane
from harness.definitions import apply_definitions
from harness.jobs import Jobs, playing
from harness.operator_driver import JOBS, make_namespace, operator, status_of, user_for, wait_for
from harness.other_version import IMAGE as OTHER_IMAGE
from harness.other_version import other_version
from harness.played_runs import Run, trains_forever
from harness.pod_player import PodPlayer
from harness.progress_endpoints import ProgressEndpoints
from harness.standing import made_or_removed, standings

STANDING, GOING_ON, UPGRADE = "standing-still", "going-on", "upgraded"
RESTING = f"{STANDING},{GOING_ON}"
STILL, MOVING, UPGRADED = 50, 20, 20
MINUTE = timedelta(seconds=60)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A control plane of its own, whose audit log tells what the operators asked for."""
    users = [user_for(namespaces) for namespaces in (RESTING, UPGRADE)]
    running = start_control_plane(audit_policy=policy(tmp_path_factory.mktemp("audit"), *users))
    try:
        apply_definitions(running)
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def log(audited):
    return audited.folder / "audit.log"


def create(api, namespace, number, **spec):
    """Create jobs bot-1, bot-2, ...; returns their uids by name."""
    jobs, names = Jobs(api, namespace), [f"bot-{index}" for index in range(1, number + 1)]
    return {name: jobs.submit(name, **spec) for name in names}


def phases(api, namespace):
    jobs = api.get(JOBS.format(namespace=namespace))["items"]
    return [(job.get("status") or {}).get("phase") for job in jobs]


def preemptions(api, namespace):
    jobs = api.get(JOBS.format(namespace=namespace))["items"]
    return sum((job.get("status") or {}).get("preemptions", 0) for job in jobs)


def children(api, namespace):
    jobs = api.get(f"/apis/batch/v1/namespaces/{namespace}/jobs")["items"]
    return {job["metadata"]["name"] for job in jobs}


def all_told(log):
    recent = requests(log, user=user_for(RESTING), since=datetime.now(UTC) - timedelta(seconds=3))
    return not [one for one in recent if one.resource == "events"]


def slowly(what, process):
    """Wait for it, and ask seldom: this machine has other things to do."""
    wait_for(lambda: time.sleep(0.5) or what(), process, 120)


def test_a_minute_of_jobs_without_news_is_silent_and_one_of_progress_is_a_write_each(
    audited, log, tmp_path
):
    """50 jobs whose step stands still beside 20 whose step moves, at the operator's own pace."""
    api = audited.api
    still, moving = (make_namespace(api, name) for name in (STANDING, GOING_ON))
    steps = {still: lambda: 7, moving: lambda: int(time.monotonic())}
    first = {still: "127.1.0.", moving: "127.2.0."}
    counts = {still: STILL, moving: MOVING}
    said = {}

    def says(address):
        if address not in said:
            return None
        uid, step = said[address]
        return Progress(job_uid=uid, attempt=1, claim=1, phase="training", step=step())

    addresses = {
        name: [f"{first[name]}{index}" for index in range(1, counts[name] + 1)] for name in counts
    }
    flags = ["--relist-seconds", "20", "--workers", "4"]
    with ExitStack() as stack:
        endpoints = ProgressEndpoints([one for both in addresses.values() for one in both], says)
        stack.callback(endpoints.stop)
        players = [
            stack.enter_context(
                playing(
                    PodPlayer(
                        api,
                        name,
                        trains_forever,
                        address=lambda job, prefix=first[name]: prefix + job.removeprefix("bot-"),
                    )
                )
            )
            for name in counts
        ]
        process = stack.enter_context(
            operator(audited.kubeconfig, RESTING, tmp_path / "operator.log", *flags)
        )
        for name, count in counts.items():
            for job, uid in create(api, name, count).items():
                said[first[name] + job.removeprefix("bot-")] = (uid, steps[name])

        def all_run():
            jobs = [
                job.get("status") or {}
                for name in counts
                for job in api.get(JOBS.format(namespace=name))["items"]
            ]
            return all((job.get("progress") or {}).get("step") for job in jobs)

        slowly(all_run, process)
        for player in players:
            player.still = True
        time.sleep(3)
        # Events give way while there is much to do; those of the beginning are not of that minute.
        slowly(lambda: all_told(log), process)
        pulled = dict(endpoints.asked)
        since = datetime.now(UTC)
        time.sleep(MINUTE.total_seconds() + 10)  # what is due each minute may be a little late
        until = datetime.now(UTC)
        asked = {one: endpoints.asked[one] - pulled[one] for one in pulled}
        assert set(phases(api, still)) == set(phases(api, moving)) == {"Running"}

    seen = [one for one in requests(log, user=user_for(RESTING), since=since) if one.at < until]
    writes = [one for one in seen if one.writes]
    # It did look, at every job, and asked every pod in that minute.
    assert {uid for address, (uid, _) in said.items() if address.startswith(first[still])} <= (
        looked_at(seen)
    )
    assert all(1 <= asked[one] <= 2 for both in addresses.values() for one in both), asked

    assert [one for one in writes if one.namespace != moving] == []
    assert {(one.verb, one.resource) for one in writes} == {("update", "finetunejobs/status")}
    assert {one.code for one in writes} == {200}
    times = {}
    for one in writes:
        times.setdefault(one.name, []).append(one.at)
    assert len(times) == MOVING
    # One for each time that a pod was asked; one that was asked before may be written now.
    pulls = {job: asked[f"{first[moving]}{job.removeprefix('bot-')}"] for job in times}
    assert all(len(times[job]) <= pulls[job] + 1 for job in times), (times, pulls)
    gaps = [later - earlier for found in times.values() for earlier, later in pairwise(found)]
    assert all(gap > MINUTE - timedelta(seconds=10) for gap in gaps), gaps


def test_replaced_by_another_version_while_20_jobs_run_none_restarts_or_is_counted_twice(
    audited, log, tmp_path, monkeypatch
):
    api = audited.api
    namespace = make_namespace(api, UPGRADE)
    ends = threading.Event()
    preempted = {"bot-1", "bot-2", "bot-3"}
    """Their first attempt is over before the upgrade: there is something to count twice."""
    made = {}

    def script(stage, attempt, node):
        del node
        return Run(forever=stage == "train" and not ends.is_set())

    def all_run():
        return set(phases(api, namespace)) == {"Running"}

    with playing(PodPlayer(api, namespace, script)) as player:
        with operator(audited.kubeconfig, namespace, tmp_path / "old.log", "--workers", "4") as old:
            made = create(api, namespace, UPGRADED, training={"learningRate": None})
            slowly(all_run, old)
            for pod in api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
                labels = pod["metadata"]["labels"]
                if (
                    labels["finetune.dev/stage"] == "train"
                    and labels["finetune.dev/job"] in preempted
                ):
                    player.preempt(pod["metadata"]["name"])
            slowly(lambda: preemptions(api, namespace) == len(preempted) and all_run(), old)
            # The last child that failed stays; the preparations go once their successor runs.
            kept = {f"{name}-1" for name in made} | {f"{name}-2" for name in preempted}
            slowly(lambda: children(api, namespace) == kept, old)
            before = standings(api, namespace)
            since = datetime.now(UTC)
        assert old.popen.returncode == 0

        monkeypatch.setenv("PYTHONPATH", str(other_version(tmp_path / "other")))
        flags = ["--workers", "4", "--trainer-image", OTHER_IMAGE]
        with operator(audited.kubeconfig, namespace, tmp_path / "new.log", *flags) as new:
            user = user_for(UPGRADE)
            slowly(
                lambda: looked_at(requests(log, user=user, since=since)) >= set(made.values()), new
            )
            time.sleep(12)  # two lists of all jobs
            after, left = standings(api, namespace), children(api, namespace)
            changed = made_or_removed(log, user_for(UPGRADE), since)
            ends.set()
            slowly(lambda: set(phases(api, namespace)) == {"Succeeded"}, new)
            ended = {name: status_of(api, namespace, name) for name in made}

    assert OTHER_IMAGE in (tmp_path / "new.log").read_text()
    assert len(before) == UPGRADED
    assert all(one.child_uid and one.phase == "Running" for one in before.values())
    assert after == before
    assert changed == []
    assert left == kept
    for name, status in ended.items():
        again = int(name in preempted)
        assert (status["attempt"], status["preemptions"]) == (1 + again, again)
        assert status["failures"] == 0
        assert status["resolved"]["digest"] == before[name].resolved
