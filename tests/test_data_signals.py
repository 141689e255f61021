"""Reading processes and the signals that launchers send to everything below them."""

import multiprocessing
import os
import signal
import time

import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cxrdist.data.signals import STOPS, heed_only_the_parent


class Slow(Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, number):
        time.sleep(0.01)
        return torch.tensor(number)


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def loader() -> DataLoader:
    options = {"worker_init_fn": lambda _: heed_only_the_parent(), "multiprocessing_context": "fork"}
    return DataLoader(Slow(), batch_size=1, num_workers=1, **options)


@pytest.mark.parametrize("signum", STOPS)
def test_a_signal_of_the_launcher_leaves_the_reading_to_go_on(signum):
    read, others = [], children()
    for batch in loader():
        read.append(int(batch))
        if len(read) == 10:
            (worker,) = children() - others
            launcher = os.fork()
            if not launcher:  # not the worker's parent
                os.kill(worker.pid, signum)
                os._exit(0)
            os.waitpid(launcher, 0)
    assert read == list(range(30))


def test_where_no_thread_learns_who_a_signal_is_from_the_parent_s_still_ends_the_reading(monkeypatch):
    monkeypatch.delattr(signal, "sigtimedwait")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        heed_only_the_parent()
        assert set(STOPS) & signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(STOPS) - {signal.SIGTERM}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_the_process_that_is_read_for_can_end_the_reading():
    others = children()
    batches = iter(loader())
    next(batches)
    (worker,) = children() - others
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error here for a lost worker
    try:
        worker.terminate()
        assert worker.wait(10) == 0
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_reading_begun_as_its_process_was_killed_ends_by_itself():
    """The parent is gone before the reading process looks who it is; else it would wait for a stranger's end."""
    told, tell = os.pipe()
    trainer = os.fork()
    if not trainer:

        def begin() -> None:
            os.write(tell, str(os.getpid()).encode())
            time.sleep(0.5)  # the parent dies here
            heed_only_the_parent()
            time.sleep(60)

        multiprocessing.get_context("fork").Process(target=begin).start()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(trainer, 0)
    reader = int(os.read(told, 20))
    until = time.monotonic() + 20
    while psutil.pid_exists(reader) and psutil.Process(reader).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)
