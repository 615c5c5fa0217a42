"""The node: kubelet, kube-proxy and CoreDNS as processes beside containerd."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import network
from harness.binaries import COREDNS, KUBE_PROXY, KUBELET, binary
from harness.control_plane import ControlPlane
from harness.processes import free_port
from harness.program import Program, flags

NAME = "node1"
GPU = "nvidia.com/gpu"
_SBIN = {"PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
_DNS_RIGHTS = [
    {
        "apiGroups": [""],
        "resources": ["endpoints", "services", "pods", "namespaces"],
        "verbs": ["list", "watch"],
    },
    {
        "apiGroups": ["discovery.k8s.io"],
        "resources": ["endpointslices"],
        "verbs": ["list", "watch"],
    },
]


@dataclass(frozen=True)
class Node:
    """What runs on the node beside containerd and the pods."""

    kubelet: Program
    kube_proxy: Program
    coredns: Program

    def stop(self, grace: float) -> None:
        """Stop the processes; the pods go on."""
        for program in (self.kubelet, self.kube_proxy, self.coredns):
            program.stop(grace)


def prepare_node(plane: ControlPlane, folder: Path, socket: Path) -> Node:
    """Write what the three programs read and return them; nothing is started."""
    folder.mkdir(parents=True, exist_ok=True)
    return Node(
        _kubelet(plane, folder, socket), _kube_proxy(plane, folder), _coredns(plane, folder)
    )


def _kubelet(plane: ControlPlane, folder: Path, socket: Path) -> Program:
    serving = plane.authority.issue(
        "kubelet-serving", f"/CN={NAME}", hosts=[NAME], addresses=[network.ADDRESS]
    )
    kubeconfig = plane.kubeconfig_of(
        "kubelet", f"/O=system:nodes/CN=system:node:{NAME}", network.ADDRESS
    )
    configuration = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": network.ADDRESS,
        "port": free_port(),
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(plane.authority.own.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.certificate),
        "tlsPrivateKeyFile": str(serving.key),
        "containerRuntimeEndpoint": f"unix://{socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDomain": "cluster.local",
        "clusterDNS": [network.ADDRESS],
        "resolvConf": "",  # the machine's own would lead pods out of the cluster
        "maxPods": 500,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
        "serializeImagePulls": False,
        "podLogsDir": str(folder / "logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        # A lost node is noticed within seconds only if a healthy one is heard of as often.
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 8,
    }
    options = {
        "config": _write(folder / "kubelet.yaml", configuration),
        "kubeconfig": kubeconfig,
        "hostname-override": NAME,
        "node-ip": network.ADDRESS,
        "root-dir": folder / "kubelet",
        "cert-dir": folder / "kubelet/pki",
        "node-labels": "accel=h100",
    }
    return Program(KUBELET, [binary(KUBELET), *flags(options)], folder / "kubelet.log", _SBIN)


def _kube_proxy(plane: ControlPlane, folder: Path) -> Program:
    kubeconfig = plane.kubeconfig_of("kube-proxy", "/CN=system:kube-proxy", network.ADDRESS)
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "127.0.0.1",
        "healthzBindAddress": f"127.0.0.1:{free_port()}",
        "metricsBindAddress": f"127.0.0.1:{free_port()}",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": network.PODS,
        "hostnameOverride": NAME,
        "mode": "iptables",
        "nodePortAddresses": [network.PODS],
        # zeros leave the machine's own settings of connection tracking alone
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
    }
    path = _write(folder / "kube-proxy.yaml", configuration)
    log = folder / "kube-proxy.log"
    return Program(KUBE_PROXY, [binary(KUBE_PROXY), *flags({"config": path})], log, _SBIN)


def _coredns(plane: ControlPlane, folder: Path) -> Program:
    kubeconfig = plane.kubeconfig_of("coredns", "/CN=system:coredns", network.ADDRESS)
    # No cache, so that a test never sees an old answer; no forwarding, so that nothing leaves.
    path = folder / "Corefile"
    path.write_text(
        f".:53 {{\n"
        f"  bind {network.ADDRESS}\n"
        f"  errors\n"
        f"  kubernetes cluster.local in-addr.arpa {{\n"
        f"    kubeconfig {kubeconfig}\n"
        f"    pods insecure\n"
        f"    ttl 1\n"
        f"  }}\n"
        f"}}\n"
    )
    return Program(COREDNS, [binary(COREDNS), "-conf", path], folder / "coredns.log")


def grant_dns(plane: ControlPlane) -> None:
    """Let CoreDNS read what it answers from."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    name = {"metadata": {"name": "system:coredns"}}
    plane.api.create(f"{rbac}/clusterroles", {**name, "rules": _DNS_RIGHTS})
    binding = {
        **name,
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:coredns",
        },
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}
        ],
    }
    plane.api.create(f"{rbac}/clusterrolebindings", binding)


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=1))  # JSON is YAML
    return path
