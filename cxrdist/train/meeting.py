"""Ranks that meet, in a store in which an earlier start of the same job may have met.

An elastic torchrun starts the ranks again beside the same store, and its prefix is none of the start: a rank that is
early reads where rank 0 of the start before could be reached, and waits for it in vain (torch 2.15).
"""

import hashlib
import ipaddress
import json
import os
import secrets
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from cxrdist.errors import UserError
from cxrdist.world import CHOOSE_NETWORK, addresses

PAUSE_S = 0.02


def own_part(store: Any, *, rank: int, world_size: int, timeout: timedelta, fault: str = "") -> PrefixStore:
    """Return the part of `store` that belongs to this start alone; every rank must call it.

    Each rank writes a word of its own that nobody knew before.  Rank 0 writes its own with the words that it reads, and
    again when one of them changes; a rank that finds its word there answers to rank 0's.  So neither takes what an
    earlier start has left for the other's.

    With its word a rank says on which machine it is, and `fault`: why none on another one could reach it, see
    `fault_of_name`.  Rank 0 judges, so that all go on or none: one that ended alone would leave the others waiting.

    Raises:
        UserError: If not all ranks come within `timeout`, or one of several machines has a fault.
    """
    word = secrets.token_hex(8)
    place = PrefixStore("cxrdist/meeting", store)
    until = time.monotonic() + timeout.total_seconds()
    said = f"{word} {_machine()} {fault}"
    if rank == 0:
        name, words = word, _lead(place, said, world_size, until)
        place.set(f"verdict/{name}", f"wrong: {fault}" if (fault := _judge([said, *words])) else "well")
    else:
        name = _follow(place, said, rank, until)
        while not place.check([f"verdict/{name}"]):
            _pause(until, "rank 0")
        fault = place.get(f"verdict/{name}").decode().partition("wrong: ")[2]
    if fault:
        raise UserError(
            f"The name of each machine must lead to its address in the network, got {fault}. Write that address into "
            f"/etc/hosts, or {CHOOSE_NETWORK} with the network's name."
        )
    return PrefixStore(f"cxrdist/start/{name}", store)


def _judge(said: list[str]) -> str:
    """Return a fault that matters; on one machine none does."""
    machines, faults = zip(*(one.split(" ", 2)[1:] for one in said), strict=True)
    return max(faults) if len(set(machines)) > 1 else ""


def fault_of_name() -> str:
    """Return where this machine's name leads, if that is to itself alone or nowhere; empty: all is well.

    Gloo goes by the name unless it is told a network.  Debian writes ``127.0.1.1 NAME`` into /etc/hosts: others would
    be told that address, and wait at their own.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
        return ""
    own = addresses(socket.gethostname())
    if not all(ipaddress.ip_address(address).is_loopback for address in own):
        return ""
    return f"{', '.join(sorted(own)) or 'none'} for {socket.gethostname()!r}"


def _machine() -> str:
    """Return a word that ranks on one machine have in common, and others do not."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot = ""
    return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:8]


def _lead(place: PrefixStore, said: str, world_size: int, until: float) -> list[str]:
    """Return what the other ranks said, once all have answered."""
    word = said.split(maxsplit=1)[0]
    missing = set(range(1, world_size))
    told: dict[str, str] = {}
    while True:
        words = {str(rank): place.get(f"here/{rank}").decode() for rank in missing if place.check([f"here/{rank}"])}
        if not told or words.items() - told.items():
            told |= words
            place.set("leader", json.dumps({"name": word, "words": told}))
        missing -= {rank for rank in missing if place.check([f"answer/{word}/{rank}"])}
        if not missing:
            return [*told.values()]
        _pause(until, f"rank {', '.join(map(str, sorted(missing)[:8]))}")


def _follow(place: PrefixStore, said: str, rank: int, until: float) -> str:
    """Return rank 0's word."""
    place.set(f"here/{rank}", said)
    while True:
        if place.check(["leader"]):
            leader = json.loads(place.get("leader"))
            if leader["words"].get(str(rank)) == said:
                place.set(f"answer/{leader['name']}/{rank}", "1")
                return str(leader["name"])
        _pause(until, "rank 0")


def _pause(until: float, absent: str) -> None:
    if time.monotonic() > until:
        raise UserError(f"All ranks must start together, got none of {absent}. Look at what that rank's machine says.")
    time.sleep(PAUSE_S)
