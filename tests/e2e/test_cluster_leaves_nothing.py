"""A cluster that ran pods, stopped or killed, leaves the machine as it found it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.access import until
from harness.binaries import cache_folder
from harness.cluster import clear, cluster, running
from harness.scratch_images import BUSYBOX_IMAGE

TESTS = Path(__file__).parents[1]
SETTINGS = (
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
)
FOLDERS = ("/var/lib", "/var/log", "/run", "/opt", "/etc", tempfile.gettempdir())
WEB = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "terminationGracePeriodSeconds": 600,
        "containers": [
            {
                "name": "web",
                "image": BUSYBOX_IMAGE,
                "command": ["sh", "-c", "echo served > /tmp/index; exec httpd -f -h /tmp -p 80"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "ports": [{"containerPort": 80, "hostPort": 18470}],
            }
        ],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    },
}
SERVICE = {
    "metadata": {"name": "web"},
    "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80}]},
}


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def rules(command):
    """Rules and own chains; empty tables with their built-in chains change nothing."""
    lines = output(f"/usr/sbin/{command}-save").splitlines()
    own = [line for line in lines if line.startswith(":") and line.split()[1] == "-"]
    return sorted([*(line.split()[0] for line in own), *(x for x in lines if x.startswith("-A"))])


def control_groups():
    """All but the groups that systemd makes and removes of its own."""
    root = Path("/sys/fs/cgroup")
    return sorted(
        str(path)
        for path in root.rglob("*")
        if path.is_dir() and not any(part.endswith((".slice", ".scope")) for part in path.parts)
    )


def network_namespaces():
    found = set()
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(link))
        except OSError:
            continue
    named = Path("/run/netns")
    return sorted(found), sorted(path.name for path in named.iterdir()) if named.is_dir() else []


def mounts():
    """All but those of images that are built meanwhile, by somebody else."""
    images = str(cache_folder().parent / "images")
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted(point for point in points if not point.startswith(images))


def machine():
    """Everything of this machine that a cluster has a hand in."""
    settings = {}
    for name in SETTINGS:
        path = Path("/proc/sys") / name
        settings[name] = path.read_text().strip() if path.exists() else None
    return {
        "mounts": mounts(),
        "network namespaces": network_namespaces(),
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "addresses": output("ip", "-o", "addr").count("inet"),
        "routes": output("ip", "route"),
        "iptables": rules("iptables"),
        "ip6tables": rules("ip6tables"),
        "control groups": control_groups(),
        "settings": settings,
        "folders": {
            folder: sorted(
                path.name
                for path in Path(folder).iterdir()
                if path.name.startswith(
                    ("finetune-cl", "kube", "cni", "containerd", "k8s", "netns")
                )
                or path.name in ("containers", "pods")
            )
            for folder in FOLDERS
        },
    }


def changes(before):
    """What is now otherwise than it was, by part."""
    after = machine()
    return {part: (value, after[part]) for part, value in before.items() if after[part] != value}


def started_at(pid):
    """When a process began; with its id this names it for ever. None when it is gone."""
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if rest[0] == "Z" else rest[19]


def processes_of(folder):
    """The processes of a cluster: named by its folder, or in a pod's control group."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            said = (path / "cmdline").read_text() + (path / "cgroup").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if str(folder) in said or "kubepods" in said:
            found[path.name] = (started_at(path.name), said.split("\0")[0].rpartition("/")[2])
    return found


def still_running(processes):
    return {pid: name for pid, (began, name) in processes.items() if started_at(pid) == began}


def run_a_pod(c, data):
    """Run a pod with a volume, a service, a port of the node and a port of the machine."""
    c.make_volume("default", "data", data)
    c.api.create("/api/v1/namespaces/default/services", SERVICE)
    c.api.create("/api/v1/namespaces/default/pods", WEB)
    until(
        lambda: c.api.get("/api/v1/namespaces/default/pods/web")["status"]["phase"] == "Running",
        "the pod ran",
    )
    service = c.api.get("/api/v1/namespaces/default/services/web")["spec"]
    url = f"http://{service['clusterIP']}/index"
    until(
        lambda: (
            subprocess.run(
                # Before there is a rule for it the address leads nowhere, without an answer.
                ["timeout", "2", "/bin/busybox", "wget", "-qO-", url],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            == "served\n"
        ),
        "the service answered",
    )


def check_that_it_is_seen(before, during, processes):
    """What is compared must differ while a cluster runs: else equality would prove nothing."""
    names = {name for _, name in processes.values()}
    assert {"etcd", "kube-apiserver", "kubelet", "containerd", "kube-proxy", "coredns"} <= names
    assert "httpd" in names  # the pod's own
    for part, value in before.items():
        assert during[part] != value, part


@pytest.fixture
def data(tmp_path):
    clear()  # what an earlier run left is no part of what this one finds
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    yield folder
    assert (folder / "precious").read_text() == "kept"


def test_a_cluster_that_is_stopped_leaves_nothing(data):
    before = machine()
    with cluster() as c:
        run_a_pod(c, data)
        processes = processes_of(c.folder)
        check_that_it_is_seen(before, machine(), processes)
        taken = pytest.raises(RuntimeError, match=r"runs on this machine already.*cluster-down")
        with taken, cluster():
            pass

    assert still_running(processes) == {}
    assert changes(before) == {}
    assert running() is None


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/e2e")
from harness.binaries import cache_folder
from harness.cluster import cluster
from test_cluster_leaves_nothing import run_a_pod
with cluster() as c:
    run_a_pod(c, Path(sys.argv[2]))
    print("runs", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_cluster_left_is_cleared_away(data):
    before = machine()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, TESTS, data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "runs\n"
        processes = processes_of(running().folder)
        check_that_it_is_seen(before, machine(), processes)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert changes(before) != {}  # the pod outlives whoever started it
        assert still_running(processes) != {}
    finally:
        process.kill()
        process.communicate()
        clear()

    assert still_running(processes) == {}
    assert changes(before) == {}
    assert running() is None
