"""Ranks that meet, in a store in which an earlier start of the same job may have met.

An elastic torchrun starts the ranks again beside the same store, and its prefix is none of the start: a rank that is
early reads where rank 0 of the start before could be reached, and waits for it in vain (torch 2.15).
"""

import ipaddress
import json
import os
import secrets
import socket
import time
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from cxrdist.errors import UserError
from cxrdist.world import World

PAUSE_S = 0.02


def check_name(world: World) -> None:
    """Make sure that ranks on other machines can reach this one, where gloo goes by the machine's name.

    Debian writes ``127.0.1.1 NAME`` into /etc/hosts: others would be told that address, and wait at their own.

    Raises:
        UserError: If there are other machines, and the name of this one leads to itself alone or nowhere.
    """
    if world.local_world_size >= world.world_size or os.environ.get("GLOO_SOCKET_IFNAME"):
        return
    try:
        rows = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        rows = []
    addresses = {str(row[4][0]).partition("%")[0] for row in rows}
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise UserError(
            "The name of each machine must lead to its address in the network, got "
            f"{', '.join(sorted(addresses)) or 'none'} for {socket.gethostname()!r}. Write that address into "
            "/etc/hosts, or `export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0` with the network's name."
        )


def own_part(store: Any, *, rank: int, world_size: int, timeout: timedelta) -> PrefixStore:
    """Return the part of `store` that belongs to this start alone; every rank must call it.

    Each rank writes a word of its own that nobody knew before.  Rank 0 writes its own with the words that it reads, and
    again when one of them changes; a rank that finds its word there answers to rank 0's.  So neither takes what an
    earlier start has left for the other's.

    Raises:
        UserError: If not all ranks come within `timeout`.
    """
    word = secrets.token_hex(8)
    place = PrefixStore("cxrdist/meeting", store)
    until = time.monotonic() + timeout.total_seconds()
    name = _lead(place, word, world_size, until) if rank == 0 else _follow(place, word, rank, until)
    return PrefixStore(f"cxrdist/start/{name}", store)


def _lead(place: PrefixStore, word: str, world_size: int, until: float) -> str:
    missing = set(range(1, world_size))
    told: dict[str, str] = {}
    while True:
        words = {str(rank): place.get(f"here/{rank}").decode() for rank in missing if place.check([f"here/{rank}"])}
        if not told or words.items() - told.items():
            told |= words
            place.set("leader", json.dumps({"name": word, "words": told}))
        missing -= {rank for rank in missing if place.check([f"answer/{word}/{rank}"])}
        if not missing:
            return word
        _pause(until, f"rank {', '.join(map(str, sorted(missing)[:8]))}")


def _follow(place: PrefixStore, word: str, rank: int, until: float) -> str:
    place.set(f"here/{rank}", word)
    while True:
        if place.check(["leader"]):
            leader = json.loads(place.get("leader"))
            if leader["words"].get(str(rank)) == word:
                place.set(f"answer/{leader['name']}/{rank}", "1")
                return str(leader["name"])
        _pause(until, "rank 0")


def _pause(until: float, absent: str) -> None:
    if time.monotonic() > until:
        raise UserError(f"All ranks must start together, got none of {absent}. Look at what that rank's machine says.")
    time.sleep(PAUSE_S)
