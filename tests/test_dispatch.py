"""One contract for every map."""

import os
import signal
import threading
from collections.abc import Callable

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
