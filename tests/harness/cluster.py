"""A real cluster of one node on this machine, from released components, and nothing left of it.

``with cluster(images=[...]) as c:`` in tests; ``python -m harness.cluster up|down`` by hand.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import machine, network
from harness.access import Access, now, until
from harness.binaries import cache_folder
from harness.containerd import ImageArchive, Runtime, runtime
from harness.control_plane import (
    ApiError,
    Authority,
    ControlPlane,
    ServerChoices,
    start_control_plane,
)
from harness.controllers import (
    TrainingOperator,
    apply_definitions,
    controller_manager,
    forget_certificate,
    prepare_training_operator,
    scheduler,
)
from harness.folder_provisioner import (
    FolderProvisioner,
    make_keeper,
    make_storage_classes,
    provisioner,
)
from harness.node import Node, grant_dns, prepare_node
from harness.program import Program
from harness.scratch_images import PAUSE_IMAGE, scratch_images

_POLICY = Path(__file__).with_name("audit-policy.yaml")
_HOSTS = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
WAIT = "FINETUNE_CLUSTER_WAIT"
"""Variable: how many seconds to wait while another cluster runs. None: it is an error at once."""
Say = Callable[[str], None]


def cache() -> Path:
    """Return the folder that outlives clusters: images, and who runs one now."""
    return cache_folder().parent / "cluster"


@dataclass
class Cluster(Access):
    """A running cluster; its methods break and mend it as a test needs."""

    plane: ControlPlane
    runtime: Runtime
    controllers: dict[str, Program] = field(default_factory=dict)
    node_programs: Node | None = None
    training_operator: TrainingOperator | None = None
    provisioner: FolderProvisioner | None = None

    @property
    def audit_log(self) -> Path:
        """One JSON line a request, with the bodies of writes."""
        return self.plane.folder / "audit.log"

    def stop_api_server(self) -> None:
        """Stop the API server; what is stored stays."""
        self.plane.stop_server()

    def start_api_server(self) -> None:
        """Start it again and wait until it answers."""
        self.plane.start_server()

    def stop_kubelet(self) -> None:
        """Stop the kubelet; pods go on, and after a while the node counts as lost."""
        self._node().kubelet.stop()

    def start_kubelet(self) -> None:
        """Start the kubelet and wait until it says that the node is Ready."""
        since = now()
        self._node().kubelet.start()
        self.wait_node_ready(since)

    def stop_training_operator(self) -> None:
        """Stop training-operator, as SIGKILL does."""
        assert self.training_operator is not None
        self.training_operator.program.kill()

    def start_training_operator(self) -> None:
        """Start it again and wait until its webhook answers."""
        assert self.training_operator is not None
        self.training_operator.start()

    def add_images(self, *images: ImageArchive) -> None:
        """Bring more images to the node, and keep those that it has."""
        self.runtime.bring(images, lambda text: None, keep=True)

    def restart_node(self) -> None:
        """Do as a loss of power does: all containers die at once, disks keep what they have."""
        node = self._node()
        node.kubelet.kill()
        self.runtime.program.kill()
        self.runtime.kill_containers()
        machine.unmount_under(self.runtime.state)
        network.remove_namespaces(machine.new_namespaces(self.folder))
        self.runtime.forget_run()
        self.runtime.start()
        self.start_kubelet()

    def _node(self) -> Node:
        assert self.node_programs is not None
        return self.node_programs

    def stop(self) -> None:
        """Stop everything that was started; the machine is as before after ``machine.restore``."""
        with ExitStack() as ends:  # the last first; each, whatever becomes of those before it
            ends.callback(self.plane.stop, 2)
            for program in self.controllers.values():
                ends.callback(program.stop, 2)
            ends.callback(self.runtime.program.stop, 5)
            if self.runtime.program.running():
                ends.callback(self.runtime.end_containers)
            if self.node_programs:
                ends.callback(self.node_programs.stop, 5)
            if self.training_operator:
                ends.callback(self.training_operator.program.stop, 2)
            if self.provisioner:
                ends.callback(self.provisioner.stop)


def _address_options(authority: Authority) -> dict[str, object]:
    """Return what the API server is told about kubelets and aggregated servers."""
    client = authority.issue("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    front = authority.issue("front-proxy", "/CN=front-proxy-client")
    return {
        "bind-address": "0.0.0.0",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "kubelet-client-certificate": client.certificate,
        "kubelet-client-key": client.key,
        "kubelet-certificate-authority": authority.own.certificate,
        "kubelet-preferred-address-types": "InternalIP",
        "requestheader-client-ca-file": authority.own.certificate,
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": front.certificate,
        "proxy-client-key-file": front.key,
        "audit-log-maxsize": 1000,
    }


@contextmanager
def cluster(
    images: Sequence[ImageArchive] = (),
    *,
    gpus: int = 8,
    node_grace: float = 20.0,
    say: Say = lambda text: None,
) -> Iterator[Cluster]:
    """Run a cluster of one node for the length of a block.

    Pods find ``images`` beside a busybox. A kubelet that is silent for ``node_grace`` seconds makes
    the node NotReady. Raises RuntimeError that says what to do where none can run.
    """
    with alone():
        machine.check()
        began = time.monotonic()
        folder = _new_folder()
        started: list[Cluster] = []
        try:
            started.append(_start_control_plane(folder))
            _start(started[0], images, gpus, node_grace, _timed(say, began))
            yield started[0]
        finally:
            try:
                for one in started:
                    one.stop()
            finally:
                forget_certificate()
                machine.restore(folder, _socket(folder))


def _timed(say: Say, began: float) -> Say:
    return lambda text: say(f"{time.monotonic() - began:6.1f} s  {text}")


@contextmanager
def alone() -> Iterator[None]:
    """Hold the one place for a cluster on this machine; clear away what a killed one left."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        _take(lock.fileno(), float(os.environ.get(WAIT, "0")))
        left = running()
        if left and (left.folder / machine.RECORD).is_file():
            forget_certificate()
            machine.restore(left.folder, _socket(left.folder))
        _note().unlink(missing_ok=True)
        try:
            yield
        finally:
            _note().unlink(missing_ok=True)


def _take(lock: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise RuntimeError(_taken()) from None
            time.sleep(0.2)
        else:
            return


def clear() -> None:
    """Remove what a cluster that was killed left; raises RuntimeError where one runs."""
    with alone():
        pass


@dataclass(frozen=True)
class Running:
    """Which cluster holds this machine: its process, and where its things lie."""

    pid: int
    folder: Path


def running() -> Running | None:
    """Return the cluster that runs, or was killed while it ran."""
    try:
        facts = json.loads(_note().read_text())
        return Running(int(facts["pid"]), Path(facts["folder"]))
    except (OSError, ValueError, KeyError):
        return None


def _note() -> Path:
    return cache() / "running.json"


def _new_folder() -> Path:
    """Make the cluster's folder; from here on a killed cluster can be cleared away."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-cluster-"))
    machine.record(folder)
    _note().write_text(json.dumps({"pid": os.getpid(), "folder": str(folder)}))
    return folder


def _taken() -> str:
    found = running()
    who = (
        f"process {found.pid}, folder {found.folder}"
        if found
        else "it starts, or its images are in use"
    )
    return (
        f"a cluster runs on this machine already ({who}), and there is room for one: "
        "stop it with make cluster-down, or wait for the tests that use it"
    )


def _socket(folder: Path) -> Path:
    return folder / "containerd/containerd.sock"


def _start_control_plane(folder: Path) -> Cluster:
    network.make()
    hosts = (*_HOSTS, "kubernetes.default.svc.cluster.local")
    choices = ServerChoices(network.ADDRESS, hosts, _address_options)
    plane = start_control_plane(audit_policy=_POLICY, parent=folder, choices=choices)
    network.keep_inside(plane.api.port)
    content = runtime(
        cache() / "containerd",
        _socket(folder).parent,
        network.plugin_configuration(folder / "network"),
        PAUSE_IMAGE,
    )
    return Cluster(plane.api, plane.kubeconfig, folder, plane, content)


def _start(
    c: Cluster, images: Sequence[ImageArchive], gpus: int, node_grace: float, say: Say
) -> None:
    say("control plane answers")
    folder, plane = c.folder, c.plane
    for program in (controller_manager(plane, folder, node_grace), scheduler(plane, folder)):
        c.controllers[program.name] = program
        program.start()
    c.runtime.start()
    with _meanwhile(lambda: _bring(c, images, say)):
        grant_dns(plane)
        make_storage_classes(c.api)
        make_keeper(c.api)
        apply_definitions(c.api)
        c.training_operator = prepare_training_operator(plane, folder)
        network.keep_inside(c.training_operator.webhook_port)
        c.training_operator.start()
        say("training-operator is ready")
        c.node_programs = prepare_node(plane, folder / "node", c.runtime.socket)
        until(
            lambda: c.api.get("/api/v1/namespaces/default/serviceaccounts/default"),
            "the default service account was made",
        )
    node, since = c.node_programs, now()
    for program in (node.kubelet, node.kube_proxy, node.coredns):
        program.start()
    identity = plane.authority.issue("provisioner", "/O=system:masters/CN=folder-provisioner")
    c.provisioner = provisioner(c.api, identity, folder / "volumes")
    c.provisioner.start()
    try:
        c.wait_node_ready(since)
    except (RuntimeError, ApiError) as error:
        tail = node.kubelet.process.tail() if node.kubelet.process else ""
        raise RuntimeError(f"{error}\n--- kubelet\n{tail}") from error
    c.set_gpus(gpus)
    say("node is Ready")


def _bring(c: Cluster, images: Sequence[ImageArchive], say: Say) -> None:
    if c.runtime.containers():  # of a cluster that was killed
        c.runtime.end_containers()
    c.runtime.bring([*scratch_images(cache() / "images"), *images], say)


@contextmanager
def _meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do ``work`` in a thread while the block runs; its error is raised at the end."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def main() -> None:
    """Bring a cluster up, or down."""
    from harness.cluster_command import command

    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
