"""How fast the operator starts jobs beside a bare training-operator, and what jobs at rest cost.

    make bench B=operator                         # the tables of docs/operate/scale.md
    make bench B=operator ARGS="--only raised"    # rest: 2,000 running jobs whose step stands still

One control plane with controller-manager, scheduler, training-operator and fake nodes (kwok) serves
both sides. In each round 200 FineTuneJobs are created at once, then 200 bare PyTorchJobs, or the
other way round; every job has two training pods, and both sides the same ones. All preparations end at the same time. Times are
those at which a watch saw the objects. Both sides have the same client limits: those that training-operator has by itself, and ten
times as much.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from finetune_api.reports import Progress
from harness.audit import policy
from harness.control_plane import Api
from harness.kwok import ClientLimits, Fleet, fleet
from harness.operator_driver import JOBS, start_operator, user_for, wait_for
from harness.processes import Process, free_port, wait_until
from harness.progress_endpoints import ProgressEndpoints
from harness.raced_jobs import PYTORCH, bare_job, by_hand, create_all, make_profile, our_job
from harness.timed_watch import Creator, TimedWatch
from harness.usage import Usage

PODS = 2
"""Training pods of a job in a race."""
PEER = "training-operator"
OPERATOR = user_for("")
MOST_ASKED = 8
"""Requests that a job's preparation may need: more, and the race says so and ends."""
DEFAULT, RAISED = ClientLimits(rate=20), ClientLimits(rate=200)
"""Training-operator's own limit, and one with which the machine is the limit."""
STAGE = "labelSelector=finetune.dev%2Fstage%3D"


@dataclass
class Bench:
    """What runs for as long as the benchmark does."""

    fleet: Fleet
    operator: Process
    log: Path
    rounds: int = 0

    @property
    def api(self) -> Api:
        """The administrator's client."""
        return self.fleet.plane.api

    def ours(self) -> Usage:
        """Count what the operator uses from now on."""
        return Usage(self.operator.pid, self.log, OPERATOR)

    def peers(self) -> Usage:
        """Count what training-operator uses from now on."""
        process = self.fleet.training_operator.process
        assert process is not None
        return Usage(process.pid, self.log, PEER)

    def namespace(self) -> str:
        """Make a namespace with the volumes of its jobs."""
        self.rounds += 1
        name, api = f"round-{self.rounds}", self.api
        api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        for claim in ("models", "datasets", "shared"):
            volume = f"{name}-{claim}"
            spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
            api.create(
                "/api/v1/persistentvolumes",
                {
                    "metadata": {"name": volume},
                    "spec": {
                        **spec,
                        "capacity": {"storage": "1Ti"},
                        "hostPath": {"path": "/nowhere"},
                        "claimRef": {"namespace": name, "name": claim},
                    },
                },
            )
            wanted = {"resources": {"requests": {"storage": "1Ti"}}, "volumeName": volume}
            api.create(
                f"/api/v1/namespaces/{name}/persistentvolumeclaims",
                {"metadata": {"name": claim}, "spec": {**spec, **wanted}},
            )
        core = f"/api/v1/namespaces/{name}"
        wait_for(lambda: api.get(f"{core}/serviceaccounts/default"))
        wait_for(
            lambda: all(
                claim["status"].get("phase") == "Bound"
                for claim in api.get(f"{core}/persistentvolumeclaims")["items"]
            )
        )
        return name

    def clear(self, namespace: str) -> None:
        """Remove all jobs of a namespace and wait until their pods are gone."""
        for path in (JOBS, PYTORCH):
            options = {"propagationPolicy": "Background"}
            self.api.request("DELETE", path.format(namespace=namespace), options)
        children = (f"/apis/batch/v1/namespaces/{namespace}/jobs", PYTORCH, JOBS)
        paths = [f"/api/v1/namespaces/{namespace}/pods", *children]
        wait_for(
            lambda: (
                not any(
                    self.api.get(f"{path.format(namespace=namespace)}?limit=1")["items"]
                    for path in paths
                )
            ),
            timeout=300.0,
        )


@dataclass
class Ours:
    """One round of FineTuneJobs."""

    to_prepare: float
    to_pods: float
    reactions: list[float]
    cpu: tuple[float, float]
    asked: tuple[int, int]


def race_ours(bench: Bench, jobs: int, hold: float) -> Ours:
    """Create the jobs at once; let all preparations end at the same time."""
    api, namespace = bench.api, bench.namespace()
    path = JOBS.format(namespace=namespace)
    core = f"/api/v1/namespaces/{namespace}/pods"
    at = datetime.now(UTC) + timedelta(seconds=hold)
    profile = make_profile(api, namespace, at.strftime("%Y-%m-%dT%H:%M:%SZ"))
    batch = f"/apis/batch/v1/namespaces/{namespace}/jobs?{STAGE}prepare"
    prepares = TimedWatch(api, batch, metadata=True)
    trains = TimedWatch(api, f"{core}?{STAGE}train", metadata=True)
    pods, status = TimedWatch(api, f"{core}?{STAGE}prepare"), TimedWatch(api, path)
    usage = bench.ours()
    began = create_all(api, path, [our_job(f"bot-{n}", profile, PODS) for n in range(jobs)])
    to_prepare = prepares.wait(jobs, hold, "preparations were made") - began
    pods.wait(jobs, hold, "preparations have a pod")
    cpu, asked = usage.spent(), usage.asked()
    left = (at - datetime.now(UTC)).total_seconds()
    if left < 2:
        raise RuntimeError(f"the preparations end before all began: --hold {hold * 2:.0f}")
    time.sleep(left - 1)
    usage = bench.ours()
    last = trains.wait(jobs * PODS, 300.0, "training pods")
    cpus, all_asked = (cpu, usage.spent()), (asked, usage.asked())
    time.sleep(1)
    for watch in (prepares, trains, pods, status):
        watch.stop()
    ends = ends_of(pods)
    reactions = reactions_of(ends, status)
    bench.clear(namespace)
    return Ours(to_prepare, last - min(ends.values()), reactions, cpus, all_asked)


def ends_of(pods: TimedWatch) -> dict[str, float]:
    """Return when the pod of each job's preparation was seen to have ended."""
    found: dict[str, float] = {}
    for at, _, pod in pods.changes():
        if pod["status"].get("phase") == "Succeeded":
            found.setdefault(pod["metadata"]["labels"]["finetune.dev/job"], at)
    return found


def reactions_of(ends: dict[str, float], status: TimedWatch) -> list[float]:
    """Return the seconds from the end of each pod until the job's status was seen to say so."""
    known: dict[str, float] = {}
    for at, _, job in status.changes():
        if (job.get("status") or {}).get("prepared"):
            known.setdefault(job["metadata"]["name"], at)
    return [known[name] - at for name, at in ends.items() if name in known]


@dataclass
class Theirs:
    """One round of bare PyTorchJobs."""

    to_pods: float
    cpu: float
    asked: int


def rendered(bench: Bench) -> dict[str, Any]:
    """Let one job begin to train; returns its PyTorchJob. Everything has then been done once."""
    api, namespace = bench.api, bench.namespace()
    profile = make_profile(api, namespace, "1s")
    api.create(JOBS.format(namespace=namespace), our_job("model", profile, PODS))
    path = f"{PYTORCH.format(namespace=namespace)}/model-1"
    found: dict[str, Any] = wait_for(lambda: api.get(path), timeout=60.0)
    pods = f"/api/v1/namespaces/{namespace}/pods?{STAGE}train"
    wait_for(lambda: len(api.get(pods)["items"]) == PODS, timeout=60.0)
    bench.clear(namespace)
    return found


def race_theirs(bench: Bench, jobs: int, spec: dict[str, Any]) -> Theirs:
    """Create the jobs at once."""
    api, namespace = bench.api, bench.namespace()
    pods = TimedWatch(api, f"/api/v1/namespaces/{namespace}/pods", metadata=True)
    usage = bench.peers()
    bodies = [bare_job(f"bot-{n}", spec) for n in range(jobs)]
    began = create_all(api, PYTORCH.format(namespace=namespace), bodies)
    last = pods.wait(jobs * PODS, 300.0, "training pods")
    found = Theirs(last - began, usage.spent(), usage.asked())
    pods.stop()
    bench.clear(namespace)
    return found


def race(bench: Bench, jobs: int, runs: int, hold: float) -> None:
    """Race both sides and print the table."""
    ours: list[Ours] = []
    theirs: list[Theirs] = []
    spec = by_hand(rendered(bench))
    for number in range(runs):
        sides: list[Callable[[], None]] = [
            lambda: ours.append(race_ours(bench, jobs, hold)),
            lambda: theirs.append(race_theirs(bench, jobs, spec)),
        ]
        # Whoever goes first changes, so that a drift of the machine hits both.
        for side in sides if number % 2 else reversed(sides):
            side()
        print(
            f"  run {number + 1}/{runs}: preparations {ours[-1].to_prepare:.2f} s, from their end"
            f" to pods {ours[-1].to_pods:.2f} s; bare PyTorchJobs to pods"
            f" {theirs[-1].to_pods:.2f} s; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    peer = [one.to_pods for one in theirs]
    print(f"\n{jobs} jobs at once, {PODS} training pods each: median (least-most) of {runs} runs")
    row("bare PyTorchJobs: all pods", peer, "s")
    row("FineTuneJobs: all preparations", [one.to_prepare for one in ours], "s", peer)
    row("  preparations' end: all pods", [one.to_pods for one in ours], "s", peer)
    row("CPU of training-operator", [one.cpu for one in theirs], "s")
    row("CPU of ours, to preparations", [one.cpu[0] for one in ours], "s")
    row("  and to pods", [one.cpu[1] for one in ours], "s")
    row("requests of training-operator", [one.asked / jobs for one in theirs], "a job")
    row("requests of ours, to preparations", [one.asked[0] / jobs for one in ours], "a job")
    row("  and to pods", [one.asked[1] / jobs for one in ours], "a job")
    quantiles("a pod's end to status, all at once", [r for one in ours for r in one.reactions])
    print(f"{'memory of the operator':<36} {bench.ours().resident():8.0f} MiB", flush=True)


def row(name: str, values: Sequence[float], unit: str, peer: Sequence[float] = ()) -> None:
    """Print one line; with a peer's values the ratio run by run."""
    text = f"{statistics.median(values):8.2f} {unit} ({min(values):.2f}-{max(values):.2f})"
    if peer:
        ratios = [one / other for one, other in zip(values, peer, strict=True)]
        text += f"   {statistics.median(ratios):.2f} x bare PyTorchJobs"
        text += f" ({min(ratios):.2f}-{max(ratios):.2f})"
    print(f"{name:<36} {text}", flush=True)


def quantiles(name: str, values: Sequence[float]) -> None:
    """Print the median, the 99th percentile and the most."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    text = f"p50 {cuts[49] * 1000:,.0f} ms, p99 {cuts[98] * 1000:,.0f} ms, most"
    print(f"{name:<36} {text} {max(values) * 1000:,.0f} ms ({len(values)} pods)", flush=True)


def react(bench: Bench, jobs: int) -> None:
    """Let jobs come one after the other; print how soon the end of each pod is in status."""
    api, namespace = bench.api, bench.namespace()
    path = JOBS.format(namespace=namespace)
    profile = make_profile(api, namespace, "3s")
    pods = TimedWatch(api, f"/api/v1/namespaces/{namespace}/pods?{STAGE}prepare")
    status = TimedWatch(api, path)
    creator = Creator(api)
    for number in range(jobs):
        creator.create(path, our_job(f"bot-{number}", profile, 1))
        time.sleep(0.5)
    creator.close()
    wait_for(
        lambda: time.sleep(1) or len(reactions_of(ends_of(pods), status)) == jobs, timeout=120.0
    )
    pods.stop()
    status.stop()
    quantiles("a pod's end to status, two a second", reactions_of(ends_of(pods), status))
    bench.clear(namespace)


def rest(bench: Bench, jobs: int, seconds: float) -> None:
    """Let many jobs run whose step stands still; print what that costs. They go with the cluster."""
    api, namespace = bench.api, bench.namespace()
    path = JOBS.format(namespace=namespace)
    profile = make_profile(api, namespace, "1s")
    uids: dict[str, str] = {}

    def says(address: str) -> Progress | None:
        uid = uids.get(address)
        return Progress(job_uid=uid, attempt=1, claim=1, step=7, total_steps=60) if uid else None

    endpoints = ProgressEndpoints(["0.0.0.0"], says)
    status = TimedWatch(api, path)
    pods = TimedWatch(api, f"/api/v1/namespaces/{namespace}/pods?{STAGE}train")
    usage, began = bench.ours(), time.monotonic()
    create_all(api, path, [our_job(f"bot-{n}", profile, 1) for n in range(jobs)])
    pods.wait(jobs, 1800.0, "training pods")
    took, cpu = time.monotonic() - began, usage.spent()
    print(f"{jobs:,} jobs ran after {took:.0f} s; CPU of the operator until then {cpu:.0f} s")

    def all_shown() -> bool:
        time.sleep(5)
        for _, _, pod in pods.changes():
            address = pod["status"].get("podIP")
            if address:
                uids[address] = pod["metadata"]["labels"]["finetune.dev/job-uid"]
        return shown(status) == jobs

    def is_told() -> bool:
        """Events of the beginning wait for their turn: they are no work of jobs at rest."""
        recent = bench.ours()
        time.sleep(5)
        return recent.asked(writes=True) == 0

    wait_for(all_shown, timeout=900.0)
    wait_for(is_told, timeout=900.0)
    asked, usage = endpoints.asked.total(), bench.ours()
    time.sleep(seconds)
    minutes = seconds / 60
    print(f"\n{jobs:,} running jobs at rest, {seconds:.0f} s")
    print(f"  memory {usage.resident():.0f} MiB, CPU {usage.spent() / minutes:.1f} s a minute")
    print(
        f"  {usage.asked(writes=True)} writes, {usage.asked() / minutes:.0f} requests and"
        f" {(endpoints.asked.total() - asked) / minutes:.0f} reads of progress a minute",
        flush=True,
    )
    endpoints.stop()
    pods.stop()
    status.stop()


def shown(status: TimedWatch) -> int:
    """Return how many jobs show the step at which they stand."""
    steps = {}
    for _, _, job in status.changes():
        progress = (job.get("status") or {}).get("progress") or {}
        steps[job["metadata"]["name"]] = progress.get("step")
    return sum(1 for step in steps.values() if step == 7)


def ready(port: int) -> bool:
    """Tell whether the operator watches."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def flags(limits: ClientLimits) -> list[str]:
    """Return the flags that give the operator the limits of training-operator."""
    found = {
        "--workers": limits.threads,
        "--requests-per-second": limits.rate,
        "--looks-per-second": limits.rate,
        "--relist-seconds": 300,
        # Fake pods have no log and no progress until somebody answers for them.
        "--progress-from-logs": "false",
    }
    return [str(word) for pair in found.items() for word in pair]


@contextmanager
def running(limits: ClientLimits) -> Iterator[Bench]:
    """Run a control plane and the operator for the length of a block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with fleet(folder, audit_policy=policy(folder, OPERATOR, PEER), limits=limits) as found:
            port = free_port()
            words = [*flags(limits), "--probe-port", str(port)]
            print(
                f"\ntraining-operator: {limits.rate} requests a second, {2 * limits.rate} at once,"
                f" {limits.threads} threads; ours: {' '.join(flags(limits))}"
            )
            process = start_operator(found.plane.kubeconfig, "", folder / "operator.log", *words)
            bench = Bench(found, process, found.plane.folder / "audit.log")
            try:
                wait_until(lambda: ready(port), "the operator was ready", [process])
                print(f"memory of the operator at the start {bench.ours().resident():.0f} MiB")
                yield bench
            except RuntimeError as error:
                print(f"{error}\n{process.tail(20)}", file=sys.stderr)
                sys.exit(1)
            finally:
                process.stop()


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["default", "raised", "react", "rest"])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--resting", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=180.0, help="of rest that are measured")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing behind
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start"
    )
    wanted = {arguments.only} if arguments.only else {"default", "raised", "react", "rest"}
    jobs = arguments.jobs
    if "default" in wanted:
        with running(DEFAULT) as bench:
            race(bench, jobs, arguments.runs, hold=20 + jobs * MOST_ASKED / DEFAULT.rate)
    if wanted - {"default"}:
        with running(RAISED) as bench:
            if "raised" in wanted:
                race(bench, jobs, arguments.runs, hold=60.0)
            if "react" in wanted:
                react(bench, jobs // 2)
            if "rest" in wanted:
                rest(bench, arguments.resting, arguments.seconds)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
