"""The network of a one-node cluster: one bridge for all pods, and nothing of it afterwards.

The bridge's address is at once the node's, the pods' gateway, the API server's and the DNS
server's. Pods reach each other and this machine, nothing outside of it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from harness.commands import PATH, attempt, run

BRIDGE = "finetune0"
ADDRESS = "10.244.0.1"
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
_CHAIN = "FINETUNE-INPUT"
_OURS = re.compile(r"KUBE-|CNI-|FINETUNE-")
FAMILIES = ("iptables", "ip6tables")
_BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_NAMESPACES = Path("/run/netns")


def exists() -> bool:
    """Whether the bridge is there: a cluster runs, or one was killed."""
    return Path(f"/sys/class/net/{BRIDGE}").exists()


def foreign_node() -> bool:
    """Whether somebody else's Kubernetes node left its rules in iptables."""
    return not exists() and any("KUBE-" in _rules(command, "nat") for command in FAMILIES)


def load_modules() -> None:
    """Load what a kernel may have as modules; one that has it built in comes without modprobe."""
    if shutil.which("modprobe", path=PATH):
        for module in ("overlay", "br_netfilter"):
            attempt("modprobe", module)


def make() -> None:
    """Make the bridge, and keep pods from anything beyond it."""
    if _BRIDGED.exists():  # else answers of a service's pods go past its address translation
        _BRIDGED.write_text("1")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", PODS.replace("10.244.0.0", ADDRESS), "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    run("iptables", "-w", "-I", "FORWARD", "-i", BRIDGE, "!", "-o", BRIDGE, "-j", "REJECT")
    # Where something else on the machine lets nothing pass by default, pods reach each other still.
    run("iptables", "-w", "-I", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT")
    run("iptables", "-w", "-N", _CHAIN)
    for inside in ("lo", BRIDGE):
        run("iptables", "-w", "-A", _CHAIN, "-i", inside, "-j", "RETURN")
    run("iptables", "-w", "-I", "INPUT", "-j", _CHAIN)


def keep_inside(port: int) -> None:
    """Refuse a port of this machine to all but itself and the pods."""
    run("iptables", "-w", "-A", _CHAIN, "-p", "tcp", "--dport", str(port), "-j", "REJECT")


def plugin_configuration(folder: Path) -> Path:
    """Write what the container network plugins read; returns the folder."""
    ranges = [[{"subnet": PODS, "rangeStart": "10.244.1.1", "gateway": ADDRESS}]]
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {"type": "host-local", "dataDir": str(folder / "addresses"), "ranges": ranges},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}
    plugins = {"cniVersion": "0.4.0", "name": "finetune", "plugins": [bridge, ports]}
    configured = folder / "net.d"
    configured.mkdir(parents=True, exist_ok=True)
    (configured / "10-finetune.conflist").write_text(json.dumps(plugins, indent=1))
    return configured


def pod_namespaces() -> set[str]:
    """Return the names of the network namespaces that container runtimes made for pods."""
    if not _NAMESPACES.is_dir():
        return set()
    return {path.name for path in _NAMESPACES.iterdir() if path.name.startswith("cni-")}


def remove_namespaces(names: Iterable[str]) -> None:
    """Remove network namespaces; whatever runs in them loses its network."""
    for name in names:
        attempt("umount", "-l", _NAMESPACES / name)
        (_NAMESPACES / name).unlink(missing_ok=True)


def remove(kept: Mapping[str, Sequence[str]]) -> None:
    """Remove the bridge, its pods' interfaces and every rule that came with the cluster.

    Tables of iptables that are not in ``kept`` were not there before and are emptied altogether.
    """
    for link in _links():
        attempt("ip", "link", "delete", link)
    attempt("ip", "link", "delete", BRIDGE)
    for command in FAMILIES:
        for table in sorted(tables(command)):
            _remove_rules(command, table)
            if table not in kept[command]:
                attempt(command, "-w", "-t", table, "-X")


def _links() -> list[str]:
    if not exists():
        return []
    found = json.loads(run("ip", "-j", "link", "show", "master", BRIDGE) or "[]")
    return [link["ifname"] for link in found if "ifname" in link]


def _rules(command: str, table: str) -> str:
    saved = run(f"{command}-save", "-t", table) if table in tables(command) else ""
    return "\n".join(line for line in saved.splitlines() if line.startswith(("-A", ":")))


def tables(command: str) -> set[str]:
    """Return the tables that have been touched; asking any other way would make them."""
    return set(re.findall(r"^\*(\S+)", run(f"{command}-save"), re.MULTILINE))


def _remove_rules(command: str, table: str) -> None:
    lines = _rules(command, table).splitlines()
    chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
    ours = [chain for chain in chains if _OURS.match(chain)]
    jumps = [line for line in lines if line.startswith("-A") and _leads_to_us(line)]
    changes = [line.replace("-A", "-D", 1) for line in jumps]
    changes += [f"-F {chain}" for chain in ours] + [f"-X {chain}" for chain in ours]
    if changes:
        text = "\n".join([f"*{table}", *changes, "COMMIT", ""])
        run(f"{command}-restore", "-w", "--noflush", text=text)


def _leads_to_us(rule: str) -> bool:
    words = rule.split()
    if _OURS.match(words[1]):
        return False  # in a chain that is flushed as a whole
    target = words[words.index("-j") + 1] if "-j" in words else ""
    return bool(_OURS.match(target)) or ("-i", BRIDGE) in pairwise(words)
