"""What machines need to meet: a name that leads here, one network among several, and InfiniBand that may be used.

On one machine all works without; so most of it is a note.  Findings name networks by their interface, never addresses.
"""

import os
import re
import resource
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cxrdist.doctor.finding import Finding, Probe, State, size
from cxrdist.world import CHOOSE_NETWORK, addresses, is_own

INTERFACES = Path("/sys/class/net")
INFINIBAND = Path("/sys/class/infiniband")
DEVICES = Path("/dev/infiniband")
VIRTUAL = re.compile(r"lo|docker|br-|veth|virbr|cni|flannel|cali|podman|ifb|dummy|tun|tap|wg|tailscale|lxc|lxd|nerdctl")
"""Interfaces that lead to no other machine of a cluster, by how their names begin."""
CHOICES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
MEANING = "Nothing on one machine. Between machines"


def name() -> Iterator[Finding]:
    """Whether this machine's name leads to an address of it that others can reach."""
    yield judge_name({address: is_own(address) for address in addresses(socket.gethostname())})


def judge_name(ours: Mapping[str, bool]) -> Finding:
    """Return the finding for the addresses that this machine's name leads to; true: it is one of this machine."""
    chosen = f"{CHOOSE_NETWORK} with the network's name (`ip -br address`)"
    if not ours:
        text = "leads to no address"
        return Finding("host name", "note", text, f"{MEANING}, write it into /etc/hosts with its address, or {chosen}.")
    loops = [address for address in ours if address.startswith("127.") or address == "::1"]
    if len(loops) == len(ours):
        remedy = f"{MEANING}, write the network's address in place of 127.0.1.1 into /etc/hosts, or {chosen}."
        return Finding("host name", "note", "leads to this machine's inside (127.0.0.0/8), not to the network", remedy)
    if not any(ours[address] for address in ours if address not in loops):
        remedy = f"{MEANING}, mend /etc/hosts or the DNS entry, or {chosen}."
        return Finding("host name", "note", "leads to an address that this machine does not have", remedy)
    return Finding("host name", "ok", "leads to an address of this machine")


def networks() -> Iterator[Finding]:
    """Networks that lead to other machines, and which of them NCCL and gloo take."""
    told = {choice: os.environ.get(choice, "") for choice in CHOICES}
    yield judge_networks(_interfaces(), told)


def judge_networks(interfaces: Sequence[str], choices: Mapping[str, str]) -> Finding:
    """Return the finding for the networks that are up, and the variables that choose one (empty: not set)."""
    outward = [one for one in interfaces if not VIRTUAL.match(one)]
    shown = ", ".join(re.sub(r"enx[0-9a-f]+", "enx...", one) for one in outward) or "none"
    wrong = [choice for choice, value in choices.items() if value and not _takes(choice, value, interfaces)]
    if wrong:
        remedy = f"`unset {' '.join(wrong)}`, or give the name of a network that is up here."
        return Finding("networks", "problem", f"{shown}; {', '.join(wrong)} names none that is up", remedy)
    if len(outward) > 1 and not all(choices.values()):
        remedy = (
            f"{MEANING}, name the one that reaches all: `export NCCL_SOCKET_IFNAME={outward[0]} "
            f"GLOO_SOCKET_IFNAME={outward[0]}` (`ip -br address` tells which is which)."
        )
        if shown != ", ".join(outward):
            remedy = f"{MEANING}, let NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the one that reaches all."
        return Finding("networks", "note", f"{shown}: several, of which gloo and NCCL may take the wrong one", remedy)
    return Finding("networks", "ok", shown if outward else "none: this machine reaches no other")


def infiniband() -> Iterator[Finding]:
    """InfiniBand, RoCE or EFA: whether it is up, may be opened, and may lock the memory it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield from judge_infiniband(_ports(), _may_open(), soft, hard)


def judge_infiniband(ports: Mapping[str, bool], opens: bool, soft: int, hard: int) -> Iterator[Finding]:
    """Yield the findings for fast networks.

    Args:
        ports: Whether one of its ports is up, by device.
        opens: Whether this process may use them.
        soft: Bytes that this process may lock, -1 for any number.
        hard: Bytes up to which it may raise that, -1 for any number.
    """
    limit = "none" if soft == resource.RLIM_INFINITY else size(soft)
    if not ports:
        yield Finding("limit of locked memory", "ok", f"{limit}; no InfiniBand here that needs more")
        return
    up = [device for device, active in ports.items() if active]
    text = f"{len(up)} of {len(ports)} devices up"
    if not up:
        remedy = (
            "Let the network's keepers look at cable and subnet manager (`ibstat`); until then TCP is taken: slower."
        )
        yield Finding("InfiniBand", "note", text, remedy)
    elif not opens:
        remedy = (
            "Give the container its devices: `--device=/dev/infiniband --cap-add=IPC_LOCK`; in Kubernetes by the "
            "network's device plugin. Until then NCCL takes TCP: many times slower."
        )
        yield Finding("InfiniBand", "note", f"{text}, but this process may not open them", remedy)
    else:
        yield Finding("InfiniBand", "ok", text)
    if soft == resource.RLIM_INFINITY:
        yield Finding("limit of locked memory", "ok", limit)
        return
    # Until InfiniBand is taken, nothing needs it.
    state: State = "problem" if up and opens else "note"
    remedy = "InfiniBand needs memory that stays: `ulimit -l unlimited` before the command."
    if hard != resource.RLIM_INFINITY:
        remedy = (
            "InfiniBand needs memory that stays. Container: `--ulimit memlock=-1`. Else, as root: `* - memlock "
            "unlimited` into /etc/security/limits.conf and a new login; for Slurm `LimitMEMLOCK=infinity` of slurmd."
        )
    yield Finding("limit of locked memory", state, limit, remedy)


PROBES: Mapping[str, Probe] = {"host name": name, "networks": networks, "InfiniBand": infiniband}


def _interfaces() -> list[str]:
    """Return the names of the interfaces that are up and have an address."""
    with_v6 = set()
    with suppress(OSError):
        rows = [row.split() for row in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()]
        with_v6 = {row[5] for row in rows if row[3] != "20"}  # 20: a link-local one, which every interface has
    with suppress(OSError):
        return [one for _, one in socket.if_nameindex() if _is_up(one) and (one in with_v6 or _has_v4(one))]
    return []


def _is_up(interface: str) -> bool:
    try:
        state = (INTERFACES / interface / "operstate").read_text(encoding="ascii").strip()
    except OSError:
        return True
    return state in ("up", "unknown")  # `lo` and tunnels say "unknown"


def _has_v4(interface: str) -> bool:
    import fcntl  # noqa: PLC0415 - not on every system

    siocgifaddr = 0x8915  # linux/sockios.h
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        fcntl.ioctl(probe, siocgifaddr, struct.pack("256s", interface.encode()[:15]))
        return True
    return False


def _takes(choice: str, value: str, interfaces: Sequence[str]) -> bool:
    """Return whether `value` of a variable takes one of `interfaces`.

    NCCL's names are beginnings of names, exact after ``=``, and all but those after ``^``; gloo's are exact.
    """
    names = [word.partition(":")[0] for word in value.lstrip("^=").split(",") if word]
    if choice.startswith("GLOO") or value.lstrip("^").startswith("="):
        hit = [one for one in interfaces if one in names]
    else:
        hit = [one for one in interfaces if one.startswith(tuple(names))]
    if value.startswith("^") and choice.startswith("NCCL"):
        return len(hit) < len(interfaces)
    return bool(hit)


def _ports() -> dict[str, bool]:
    found = {}
    with suppress(OSError):
        for device in sorted(INFINIBAND.iterdir()):  # empty where only the kernel's module is loaded
            found[device.name] = any("ACTIVE" in _text(port) for port in device.glob("ports/*/state"))
    return found


def _may_open() -> bool:
    return any(os.access(path, os.R_OK | os.W_OK) for path in DEVICES.glob("uverbs*"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
