"""Where no node can run, what is said; which images and rules belong to a cluster of ours."""

import hashlib
import json
import signal
import subprocess
import sys
import tarfile

import pytest

from finetune_cli.run.processes import boot_id, start_ticks
from harness import cluster_command, containerd, machine, network, paused, scratch_images
from harness.processes import free_port


@pytest.fixture
def debian(monkeypatch):
    """A machine on which a node can run."""
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "missing_packages", list)
    monkeypatch.setattr(network, "exists", lambda: False)
    monkeypatch.setattr(network, "foreign_node", lambda: False)
    monkeypatch.setattr(network, "load_modules", lambda: None)
    return monkeypatch


def test_a_machine_that_has_all_is_taken(debian):
    machine.check()


def test_without_root_it_says_so(debian):
    debian.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="a node needs root"):
        machine.check()


def test_missing_packages_come_with_the_command(debian):
    debian.setattr(machine, "missing_packages", lambda: ["containerd", "runc"])
    with pytest.raises(RuntimeError) as refused:
        machine.check()
    assert str(refused.value) == (
        "packages of a node are not installed; run: "
        "apt-get install --yes --no-install-recommends containerd runc"
    )


def test_another_users_cluster_is_named(debian):
    debian.setattr(network, "exists", lambda: True)
    with pytest.raises(RuntimeError, match="interface finetune0 is there"):
        machine.check()


def test_another_kubernetes_is_named(debian):
    debian.setattr(network, "foreign_node", lambda: True)
    with pytest.raises(RuntimeError, match="another Kubernetes node's rules are in iptables"):
        machine.check()


def test_packages_are_missed_by_what_they_bring(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PATH", str(tmp_path))
    monkeypatch.setattr(machine, "_FILES", {str(tmp_path / "bridge"): "network-plugins"})
    for command in ("containerd", "ctr", "iptables", "ip", "openssl", "mount"):
        (tmp_path / command).touch(mode=0o755)
    assert machine.missing_packages() == ["conntrack", "network-plugins", "runc"]
    both = ["buildah", "conntrack", "debootstrap", "network-plugins", "runc"]
    assert machine.missing_packages(images=True) == both


def test_other_tags_of_what_is_wanted_are_outdated():
    there = {
        "finetune.local/trainer:old",
        "finetune.local/trainer:new",
        "finetune.local/operator:old",
        "finetune.local/pause:1",
        "sha256:0123",
    }
    assert containerd._outdated(there, ["finetune.local/trainer:new"]) == [
        "finetune.local/trainer:old"
    ]


def test_a_digest_that_no_name_stands_for_is_nameless():
    images = {
        "finetune.local/trainer:new": "sha256:a",
        "sha256:1": "sha256:a",
        "sha256:2": "sha256:b",
    }
    assert containerd._nameless(images) == ["sha256:2"]


@pytest.mark.parametrize(
    ("rule", "ours"),
    [
        ("-A INPUT -j FINETUNE-INPUT", True),
        ("-A FORWARD -i finetune0 ! -o finetune0 -j REJECT", True),
        ('-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES', True),
        ("-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT", True),
        ("-A INPUT -i eth0 -j DROP", False),
        ("-A FORWARD -i finetune01 -j DROP", False),
        ("-A INPUT -p tcp", False),
        ("-A KUBE-SERVICES -j KUBE-SVC-1", False),  # goes when its chain is flushed
    ],
)
def test_only_rules_of_the_cluster_are_removed(rule, ours):
    assert network._leads_to_us(rule) is ours


def test_an_image_of_one_program_holds_it(tmp_path):
    image = scratch_images._made(tmp_path, "finetune.local/one:1", ["/one"], {"one": b"\x7fELF"})
    again = scratch_images._made(tmp_path, "finetune.local/one:1", ["/one"], {"one": b"\x7fELF"})
    other = scratch_images._made(tmp_path, "finetune.local/one:1", ["/one"], {"one": b"other"})

    assert again == image
    assert other.archive != image.archive
    with tarfile.open(image.archive) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json"))
        configuration = archive.extractfile(manifest["Config"]).read()
        layer = archive.extractfile(manifest["Layers"][0]).read()
    assert manifest["RepoTags"] == ["finetune.local/one:1"]
    assert manifest["Config"] == f"{hashlib.sha256(configuration).hexdigest()}.json"
    facts = json.loads(configuration)
    assert facts["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert facts["config"]["Cmd"] == ["/one"]


@pytest.mark.parametrize("known", ["its start", "nothing", "another boot"])
def test_a_process_that_has_the_id_of_a_killed_cluster_is_left_alone(monkeypatch, tmp_path, known):
    """The cluster's own process is known by when it began, and by the boot in which it did."""
    monkeypatch.setattr(cluster_command, "cache", lambda: tmp_path)
    monkeypatch.setattr(cluster_command, "clear", lambda: None)
    monkeypatch.setattr(cluster_command, "running", lambda: None)
    with subprocess.Popen(["sleep", "60"]) as process:
        facts = {"pid": process.pid, "port": 1, "authority": "a", "kubeconfig": "k", "folder": "f"}
        facts |= {"identity": ["c", "k"], "boot": boot_id(), "start": start_ticks(process.pid)}
        if known == "nothing":
            del facts["boot"], facts["start"]
        if known == "another boot":
            facts["boot"] = "0"
        (tmp_path / "standing.json").write_text(json.dumps(facts))
        if known == "its start":
            with pytest.raises(RuntimeError, match=f"it runs already .process {process.pid}.: its"):
                cluster_command.up()
            process.terminate()
        else:
            cluster_command.down()
            assert process.poll() is None
            process.terminate()


def test_a_free_port_is_never_one_that_a_connection_or_a_service_is_given():
    found = [free_port() for _ in range(50)]
    assert len(set(found)) == 50
    assert min(found) >= 20_000
    assert max(found) < 30_000


def test_who_stands_still_is_told_once_a_signal_waits(monkeypatch):
    heard = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print(); signal.pause()"
    command = [sys.executable, "-c", heard]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        monkeypatch.setattr(paused, "processes_of", lambda pod: [process.pid])
        standing = paused.pause([{}])
        assert standing == [process.pid]
        assert not paused.told({})
        process.send_signal(signal.SIGTERM)
        assert paused.told({})
        paused.let_go_on(standing)
        assert process.wait(30) == 7
        assert not paused.told({})
