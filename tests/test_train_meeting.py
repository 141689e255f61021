"""Ranks find those of their own start, whatever earlier ones have left in the store."""

import random
import socket
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from cxrdist.errors import UserError
from cxrdist.train import meeting
from cxrdist.train.engine import process_group
from cxrdist.train.meeting import fault_of_name, own_part
from cxrdist.world import CHOOSE_NETWORK, World

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


@pytest.mark.parametrize("faulty", [{0}, {2}, {0, 1}, set()])
@pytest.mark.parametrize("several", [True, False])
def test_all_go_on_or_none_where_one_of_several_machines_cannot_be_reached(monkeypatch, several, faulty):
    monkeypatch.setattr(meeting, "_machine", lambda: str(threading.get_ident()) if several else "one")
    store, said = HashStore(), [""] * 3

    def work(rank: int) -> None:
        fault = f"127.0.1.1 for 'host{rank}'" if rank in faulty else ""
        try:
            own_part(store, rank=rank, world_size=3, timeout=PLENTY, fault=fault)
        except UserError as error:
            said[rank] = str(error)

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(set(said)) == 1
    if several and faulty:
        assert f"must lead to its address in the network, got 127.0.1.1 for 'host{max(faulty)}'. " in said[0]
    else:
        assert not said[0]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["127.0.1.1"], "127.0.1.1 for "),
        (["127.0.1.1", "::1"], "127.0.1.1, ::1 for "),
        ([], "none for "),
        (["10.0.0.5"], ""),
        (["127.0.1.1", "10.0.0.5"], ""),
        (["fe80::1%eth0"], ""),
    ],
)
def test_a_name_that_leads_only_to_its_own_machine_is_a_fault_unless_a_network_is_named(monkeypatch, own, told):
    def answer(*_: object, **__: object) -> list:
        if not own:
            raise OSError("not known")
        return [(None, None, None, "", (address, 0)) for address in own]

    # /etc/hosts is not ours to change.
    monkeypatch.setattr("socket.getaddrinfo", answer)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert fault_of_name() == (f"{told}{socket.gethostname()!r}" if told else "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    assert fault_of_name() == ""


def test_ranks_that_cannot_reach_each_other_end_with_a_sentence(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with remote=[127.0.1.1]:36778.\nframe #0: c10::Error")

    monkeypatch.setattr("torch.distributed.init_process_group", fail)
    with (
        pytest.raises(UserError, match=r"got: Gloo .* remote=\[127\.0\.1\.1\]:36778\. `cxrdist doctor`") as ended,
        process_group(World()),
    ):
        pass
    assert "frame" not in str(ended.value) and CHOOSE_NETWORK in str(ended.value)
