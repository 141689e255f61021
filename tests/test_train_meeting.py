"""Ranks find those of their own start, whatever earlier ones have left in the store."""

import random
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from cxrdist.errors import UserError
from cxrdist.train.meeting import check_name, own_part
from cxrdist.world import World

PLENTY = timedelta(seconds=20)


def start(store: HashStore, world_size: int, rng: random.Random) -> list[str]:
    """Let all ranks start at random moments; return what each reads that rank 0 has written in their part."""
    read = [""] * world_size
    secret = str(rng.random())
    delays = [rng.choice([0, 0, rng.uniform(0, 0.15)]) for _ in range(world_size)]

    def work(rank: int) -> None:
        time.sleep(delays[rank])
        part = own_part(store, rank=rank, world_size=world_size, timeout=PLENTY)
        if rank == 0:
            part.set("address", secret)
        read[rank] = part.get("address").decode()

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert read == [secret] * world_size
    return read


def test_each_start_reads_its_own_rank_0_whoever_comes_first_and_however_many_there_were():
    seed = random.randrange(10**6)
    print(f"delays drawn with seed {seed}")
    rng = random.Random(seed)
    store = HashStore()
    for _ in range(12):
        start(store, rng.choice([2, 3, 5]), rng)


def test_a_rank_that_does_not_come_is_named():
    short = timedelta(seconds=0.2)
    with pytest.raises(UserError, match="All ranks must start together, got none of rank 1, 2"):
        own_part(HashStore(), rank=0, world_size=3, timeout=short)
    with pytest.raises(UserError, match="got none of rank 0"):
        own_part(HashStore(), rank=2, world_size=3, timeout=short)


@pytest.mark.parametrize(
    ("addresses", "told"),
    [(["127.0.1.1"], "127.0.1.1"), (["127.0.1.1", "::1"], "127.0.1.1, ::1"), ([], "none")],
)
def test_a_name_that_leads_only_to_its_own_machine_is_told_before_others_wait_for_it(monkeypatch, addresses, told):
    lead_to(addresses, monkeypatch)
    with pytest.raises(UserError, match=f"must lead to its address in the network, got {told} for "):
        check_name(World(rank=1, world_size=4, local_rank=1, local_world_size=2))


@pytest.mark.parametrize("addresses", [["10.0.0.5"], ["127.0.1.1", "10.0.0.5"], ["fe80::1%eth0"]])
def test_a_name_that_leads_to_the_network_is_taken(monkeypatch, addresses):
    lead_to(addresses, monkeypatch)
    check_name(World(world_size=4, local_world_size=2))


def test_on_one_machine_or_where_the_network_is_named_the_name_does_not_matter(monkeypatch):
    lead_to(["127.0.1.1"], monkeypatch)
    check_name(World(world_size=2, local_world_size=2))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    check_name(World(world_size=4, local_world_size=2))


def lead_to(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this machine's name lead to `addresses`; /etc/hosts is not ours to change."""
    rows = [(None, None, None, "", (address, 0)) for address in addresses]

    def answer(*_: object, **__: object) -> list:
        if not rows:
            raise OSError("not known")
        return rows

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", answer)
