"""Work in forked processes, alone or as the ranks of one job."""

import gc
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable

import pytest
import torch

from cxrdist.world import World

forks = pytest.mark.skipif(torch.cuda.is_available(), reason="forks training processes, which CUDA does not allow")
TIMEOUT_S = 60.0


def fork(work: Callable[[], object]) -> int:
    """Begin `work` in a forked process, which ends with 0, or with 1 after an error; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    gc.freeze()  # garbage of this process waits for threads that the child does not have
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(child: int) -> int | None:
    """Return how a child has ended, negative for a signal; None while it runs."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def kill(child: int) -> int:
    """End a child at once; return how it has ended, which it may have done by itself."""
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait(child: int, timeout_s: float = TIMEOUT_S) -> int:
    """Return how a child ends, negative for a signal."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        code = exit_code(child)
        if code is not None:
            return code
        time.sleep(0.01)
    kill(child)
    raise TimeoutError("a forked process did not end")


def in_children(*works: Callable[[], object], timeout_s: float = TIMEOUT_S) -> list[int]:
    """Run each of `works` in a process of its own; return how each ended, negative for a signal."""
    children = [fork(work) for work in works]
    codes: dict[int, int] = {}
    try:
        for child in children:
            codes[child] = wait(child, timeout_s)
    finally:
        for child in children[len(codes) + 1 :]:
            kill(child)
    return list(codes.values())


def rank_works(world_size: int, work: Callable[[World], object]) -> list[Callable[[], object]]:
    """Return what each of `world_size` processes has to do to be one rank of a job; they meet at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def of_rank(number: int) -> Callable[[], object]:
        def begin() -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            work(World(number, world_size, number))

        return begin

    return [of_rank(number) for number in range(world_size)]


def on_two_ranks(work: Callable[[World], object]) -> list[int]:
    """Run `work` on two ranks, which join in a process group by themselves; return how each ended."""
    return in_children(*rank_works(2, work))
