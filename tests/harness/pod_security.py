"""The Pod Security Standards as a checker: ``violations(pod)`` lists what *restricted* forbids.

Written from the text of the standards (Kubernetes documentation, "Pod Security Standards", v1.34),
control by control in its order, and not from the code that renders pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"


def violations(pod: dict[str, Any]) -> list[str]:
    """Return every control of *baseline* and *restricted* that a pod or pod template breaks."""
    return [*_baseline(pod), *_restricted(pod)]


def containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every container of a pod with its place."""
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(kind) or []):
            yield f"{kind}[{index}]", container


def _contexts(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "pod", spec.get("securityContext") or {}
    for place, container in containers(spec):
        yield place, container.get("securityContext") or {}


def _baseline(pod: dict[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"host namespaces: {name}"
    for key, value in (pod.get("metadata", {}).get("annotations") or {}).items():
        if key.startswith(APPARMOR) and not (
            value in ("", "runtime/default") or value.startswith("localhost/")
        ):
            yield f"AppArmor: annotation {key}"
    for volume in spec.get("volumes") or []:
        if "hostPath" in volume:
            yield f"hostPath: {volume['name']}"
    for sysctl in (spec.get("securityContext") or {}).get("sysctls") or []:
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"sysctl: {sysctl['name']}"
    for place, context in _contexts(spec):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"HostProcess: {place}"
        apparmor = (context.get("appArmorProfile") or {}).get("type")
        if apparmor not in (None, "RuntimeDefault", "Localhost"):
            yield f"AppArmor: {place}"
        selinux = context.get("seLinuxOptions") or {}
        if (
            selinux.get("type", "") not in SELINUX_TYPES
            or selinux.get("user")
            or selinux.get("role")
        ):
            yield f"SELinux: {place}"
        if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
            yield f"seccomp unconfined: {place}"
    for place, container in containers(spec):
        context = container.get("securityContext") or {}
        if context.get("privileged"):
            yield f"privileged: {place}"
        if context.get("procMount", "Default") != "Default":
            yield f"procMount: {place}"
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"hostPort: {place}"
        hooks = [container.get(f"{kind}Probe") for kind in ("liveness", "readiness", "startup")]
        hooks += list((container.get("lifecycle") or {}).values())
        for hook in hooks:
            for kind in ("httpGet", "tcpSocket"):
                if ((hook or {}).get(kind) or {}).get("host"):
                    yield f"probe or hook with a host: {place}"


def _restricted(pod: dict[str, Any]) -> Iterator[str]:
    spec = pod["spec"]
    of_pod = spec.get("securityContext") or {}
    for volume in spec.get("volumes") or []:
        kinds = set(volume) - {"name"}
        if not kinds <= RESTRICTED_VOLUMES or len(kinds) != 1:
            yield f"volume type: {volume['name']}"
    if of_pod.get("runAsUser") == 0:
        yield "runAsUser: pod"
    if of_pod.get("runAsNonRoot") is False:
        yield "runAsNonRoot: pod"
    for place, container in containers(spec):
        context = container.get("securityContext") or {}
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"allowPrivilegeEscalation: {place}"
        if context.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
            yield f"runAsNonRoot: {place}"
        if context.get("runAsUser") == 0:
            yield f"runAsUser: {place}"
        seccomp = context.get("seccompProfile") or of_pod.get("seccompProfile") or {}
        if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"seccomp: {place}"
        capabilities = context.get("capabilities") or {}
        if "ALL" not in (capabilities.get("drop") or []):
            yield f"capabilities not dropped: {place}"
        if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
            yield f"capabilities added: {place}"
