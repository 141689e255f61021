"""One contract for every map."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cxrdist.dispatch import Map, fork_map, local_map, process_map, thread_map
from cxrdist.errors import UserError

MAPS: list[Callable[[], Map]] = [
    lambda: local_map,
    lambda: process_map(1),
    lambda: process_map(2),
    lambda: thread_map(1),
    lambda: fork_map(2),
    lambda: thread_map(3),
]


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise UserError("three is refused")
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("build", MAPS)
def test_results_come_in_the_order_of_the_items(build):
    assert list(build()(square, iter(range(20)))) == [number * number for number in range(20)]


@pytest.mark.parametrize("build", MAPS)
@pytest.mark.parametrize("n", [0, 1, 3, 200])
def test_items_of_known_number_are_each_done_once_and_in_order(build, n):
    assert list(build()(square, range(n))) == [number * number for number in range(n)]


def test_an_unordered_map_yields_each_result_once():
    assert sorted(process_map(2, ordered=False)(square, range(20))) == sorted(map(square, range(20)))


@pytest.mark.parametrize("build", MAPS)
def test_an_error_in_the_work_reaches_the_caller_as_it_is(build):
    with pytest.raises(UserError, match="three is refused"):
        list(build()(refuse_three, range(10)))


@pytest.mark.parametrize("build", MAPS)
def test_items_are_taken_only_as_they_are_needed(build):
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = build()(square, items())
    assert next(results) == 0
    results.close()
    assert len(taken) <= 10


@pytest.mark.parametrize("build", [process_map, fork_map])
def test_a_killed_worker_is_a_sentence(build):
    with pytest.raises(UserError, match=r"got one killed .* Run again with fewer than 2 workers"):
        list(build(2)(die, range(2)))


def test_copies_of_a_process_have_the_function_without_its_being_sent():
    unsendable = threading.Lock()
    assert list(fork_map(2)(lambda number: (unsendable.locked(), number), range(5))) == [(False, n) for n in range(5)]


def test_items_and_results_larger_than_a_pipe_pass():
    large = [bytes([number]) * 2**21 for number in range(9)]
    assert list(fork_map(2)(bytes.swapcase, large)) == [item.swapcase() for item in large]


def refuse_connection(number: int) -> None:
    raise ConnectionResetError("by a peer")


def test_an_error_of_the_work_in_a_copy_is_not_taken_for_the_end_of_it():
    with pytest.raises(ConnectionResetError, match="by a peer") as caught:
        list(fork_map(2)(refuse_connection, range(5)))
    assert "in refuse_connection" in caught.value.__notes__[0]


def test_what_cannot_be_sent_from_a_copy_is_an_error_that_says_so():
    with pytest.raises((TypeError, RuntimeError), match=r"cannot pickle|Can't pickle"):
        list(fork_map(2)(lambda _: threading.Lock(), range(5)))


@pytest.mark.parametrize("end", ["done", "leaving", "error"])
def test_no_copy_is_left_when_the_map_has_ended(end):
    results = fork_map(2)(refuse_three if end == "error" else square, range(1000))
    if end == "done":
        list(results)
    elif end == "leaving":
        next(results)
        results.close()
    else:
        with pytest.raises(UserError, match="three"):
            list(results)
    assert multiprocessing.active_children() == []


KILLED_WHILE_ITS_COPIES_WORK = """
import os, signal, sys, time
from cxrdist.dispatch import fork_map

def work(number):
    if number >= 2:
        time.sleep(600)
    return os.getpid()

copies = fork_map(2)(work, iter(range(10)))
print(next(copies), next(copies), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux only")
def test_copies_end_with_a_parent_that_is_killed_at_whatever_they_work():
    said = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_ITS_COPIES_WORK], stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert said.returncode == -signal.SIGKILL
    until = time.monotonic() + 30
    while any(lives(int(pid)) for pid in said.stdout.split()):
        assert time.monotonic() < until
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


@pytest.mark.parametrize("build", [process_map, thread_map, fork_map])
def test_fewer_than_one_worker_is_refused(build):
    with pytest.raises(UserError, match="`workers` must be at least 1, got 0"):
        build(0)


def test_threads_work_side_by_side():
    together = threading.Barrier(2, timeout=60)
    assert sorted(thread_map(2)(lambda _: together.wait(), range(2))) == [0, 1]


@pytest.mark.parametrize("end", ["leaving", "error"])
def test_no_thread_goes_on_after_the_map_has_ended(end):
    before = set(threading.enumerate())
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        return refuse_three(number)

    results = thread_map(2)(work, range(1000))
    if end == "leaving":
        next(results)
        results.close()
    else:
        with pytest.raises(UserError, match="three"):
            list(results)
    assert set(threading.enumerate()) <= before
    assert len(begun) <= 10
