"""A rank that dies or hangs: what the ranks conclude from their beats, and jobs of two and three that lose one."""

import datetime
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import TIMEOUT_S, fork, forks, wait

from cxrdist.errors import UserError
from cxrdist.train import watchdog
from cxrdist.train.heartbeats import (
    Beat,
    Board,
    Seen,
    Verdict,
    describe,
    find_ended,
    find_hanging,
    has_ended,
    identify,
    note,
)
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.watchdog import RankLostError, Watchdog, watch
from cxrdist.world import World

ME = identify()
ELSEWHERE = Beat(host="far", place="elsewhere", pid=1, born="1")


def seen(*beats: Beat, lived: float = 100.0, moved: float = 100.0) -> dict[int, Seen]:
    return {rank: Seen(beat, lived, moved) for rank, beat in enumerate(beats)}


def ended_process() -> Beat:
    """Return the beat of a process of this machine that has ended since."""
    process = subprocess.Popen(["sleep", "60"])
    while not (beat := replace(ME, pid=process.pid)).born:
        time.sleep(0.01)
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    beat = replace(beat, born=stat[19])
    assert not has_ended(beat)
    process.kill()
    while not has_ended(beat):  # already as long as nobody has asked how it ended
        time.sleep(0.01)
    process.wait()
    return beat


def test_a_process_that_is_gone_is_found_at_once_and_one_that_left_in_good_order_is_not_missed():
    gone = ended_process()
    assert find_ended(seen(ME, gone), own=ME, now=100, silent_after=30) == (1, "ended")
    assert find_ended(seen(ME, replace(gone, left=True)), own=ME, now=100, silent_after=30) is None
    assert find_ended(seen(ME, ME), own=ME, now=100, silent_after=30) is None


def test_a_later_process_with_the_same_number_does_not_stand_for_a_dead_one():
    assert has_ended(replace(ME, born="1"))


def test_a_rank_on_another_machine_is_missed_when_it_is_silent_and_one_on_this_machine_is_not():
    silent = seen(ME, ELSEWHERE, lived=60)
    assert find_ended(silent, own=ME, now=100, silent_after=30) == (1, "silent")
    assert find_ended(silent, own=ME, now=80, silent_after=30) is None
    assert find_ended(seen(ME, ME, lived=60), own=ME, now=100, silent_after=30) is None


def test_as_long_as_one_rank_moves_none_hangs():
    ranks = seen(ME, ME, ME, moved=10) | {2: Seen(ME, 100, 99)}
    assert find_hanging(ranks, world_size=3, now=100, hang_after=50) == []
    ranks |= {2: Seen(ME, 100, 49)}
    assert len(find_hanging(ranks, world_size=3, now=100, hang_after=50)) == 3


@pytest.mark.parametrize(
    ("beats", "blamed"),
    [
        ([Beat(ticks=7), Beat(ticks=6), Beat(ticks=7)], [1]),  # the one behind
        ([Beat(ticks=7, waits=True), Beat(ticks=7), Beat(ticks=7, waits=True)], [1]),  # the one that nobody keeps
        ([Beat(ticks=7)] * 3, [0, 1, 2]),
    ],
)
def test_the_rank_that_the_others_wait_for_is_blamed(beats, blamed):
    hanging = find_hanging(seen(*beats, moved=10), world_size=3, now=100, hang_after=50)
    assert [rank for rank, _ in hanging] == blamed


def test_a_rank_that_no_longer_speaks_is_blamed_before_one_that_is_behind():
    ranks = seen(Beat(ticks=7), Beat(ticks=6), moved=10) | {0: Seen(Beat(ticks=7), lived=20, moved=10)}
    assert find_hanging(ranks, world_size=2, now=100, hang_after=50) == [(0, "hangs")]


def test_a_rank_that_never_came_is_blamed():
    assert find_hanging(seen(Beat(), moved=10), world_size=2, now=100, hang_after=50) == [(1, "absent")]


def test_beats_are_dated_by_the_clock_of_their_reader():
    first = note(None, Beat(number=1, ticks=1), 10)
    assert note(first, Beat(number=1, ticks=1), 20) == replace(first)
    assert note(first, Beat(number=2, ticks=1), 20) == Seen(Beat(number=2, ticks=1), lived=20, moved=10)
    assert note(first, Beat(number=2, ticks=2), 20) == Seen(Beat(number=2, ticks=2), lived=20, moved=20)


def test_the_sentence_says_which_rank_where_its_last_step_and_the_way_on():
    beat = Beat(step=120, phase="validation", host="gpu07", where="read in data/loader.py:9")
    ranks = seen(beat, beat, beat)
    assert describe([(2, "ended")], ranks, world_size=3) == (
        "Rank 2 (host gpu07) ended; its last step was 120. Continue with --resume auto."
    )
    assert describe([(1, "hangs"), (2, "hangs")], ranks, world_size=3) == (
        "Rank 1 (host gpu07) hangs in its validation (`read in data/loader.py:9`), and so does rank 2; "
        "its last step was 120. Continue with --resume auto."
    )
    assert describe([(r, "hangs") for r in range(3)], ranks, world_size=3).startswith("Every rank hangs; rank 0 (host")


@pytest.mark.parametrize(
    "error", [UserError("Connection closed by peer"), Interrupted(15, 3), RuntimeError("shape"), ValueError("nccl")]
)
def test_an_error_of_ones_own_is_not_put_on_another(error):
    assert not watchdog._may_be_of_a_peer(error)


@pytest.mark.parametrize(
    "sentence",
    [
        "[gloo/transport/tcp/pair.cc:544] Connection closed by peer [127.0.0.1]:48513",
        "NCCL error in: ProcessGroupNCCL.cpp:1275, unhandled system error",
        "Timed out waiting 1800000ms for recv operation to complete",
    ],
)
def test_what_collectives_say_of_a_lost_peer_is_looked_into(sentence):
    assert watchdog._may_be_of_a_peer(RuntimeError(sentence))


@pytest.mark.parametrize(
    ("sentence", "given_up"),
    [
        ("Timed out waiting 1800000ms for recv operation to complete", True),
        ("NCCL watchdog: collective operation timeout", True),
        ("wait time out", True),
        ("CUDA runtime error: peer access is not supported", False),
        ("Connection closed by peer this time", False),
    ],
)
def test_only_what_speaks_of_a_timeout_is_taken_for_one(sentence, given_up):
    assert (watchdog.TIMED_OUT.search(sentence) is not None) == given_up


def test_a_world_of_one_is_not_watched():
    with watch(World(), hang_after=0.1) as alone:
        alone.at(1, "step")
        assert alone.explain(RuntimeError("Connection closed by peer")) is None


def test_one_rank_leaves_the_mark_of_a_job_where_the_folder_is_shared_and_one_on_each_machine_where_it_is_not(tmp_path):
    store, machines = dist.HashStore(), [tmp_path / "0", tmp_path / "1"]
    for machine in machines:
        machine.mkdir()
    ranks = [Board(store, rank=rank, world_size=6, folder=machines[rank % 2]) for rank in range(4)]
    assert [rank.claim() for rank in ranks] == [True, True, False, False]
    assert Board(store, rank=4, world_size=6).claim() is None
    assert Board(store, rank=5, world_size=6, folder=tmp_path / "absent").claim() is None


def test_the_mark_of_an_earlier_job_silences_nobody_and_goes(tmp_path):
    for job_number in range(3):
        boards = [Board(dist.HashStore(), rank=0, world_size=2, folder=tmp_path)]
        boards.append(Board(boards[0].store.underlying_store, rank=1, world_size=2, folder=tmp_path))
        assert [board.claim() for board in boards] == [True, False], job_number
        assert len(list(tmp_path.iterdir())) == 1


def test_what_a_rank_has_said_without_the_store_no_other_says_with_it(tmp_path):
    store, verdict = dist.HashStore(), Verdict(0, "hangs", "Rank 0 hangs.", speaker=1)
    boards = [Board(store, rank=rank, world_size=3, folder=tmp_path) for rank in range(3)]
    first, later = (Watchdog(World(rank, 3, rank), boards[rank], hang_after=1) for rank in (2, 1))
    first._alone = True
    assert first._speaks(verdict)
    assert not later._speaks(verdict)
    assert first._speaks(verdict)  # it may find that its main thread never came to print it


Ranks = list[tuple[int | None, str]]
"""How each rank ended (None: it had to be killed) and what it said."""


def job(
    size: int,
    act: Callable[[int, int], None],
    folder: Path,
    *,
    hang_after: float = 30,
    steps: int = 1000,
    stopped: tuple[int, ...] = (),
) -> Ranks:
    """Run ranks that do no more than meet in each step; `act(rank, step)` is what befalls them."""
    listening = socket.create_server(("127.0.0.1", 0))  # held until rank 0 has it, so nobody else can take the port
    children = []
    for rank in range(size):
        said = folder / str(rank)
        children.append(fork(partial(_be_rank, World(rank, size, rank), listening, act, said, hang_after, steps)))
    listening.close()
    # A rank that a test has stopped must be seen by the others until they have ended.
    order = sorted(range(size), key=lambda rank: rank in stopped)
    codes = {rank: _end(children[rank], 0 if rank in stopped else TIMEOUT_S) for rank in order}
    return [(codes[rank], (folder / str(rank)).read_text()) for rank in range(size)]


def _be_rank(
    world: World, listening: socket.socket, act: Callable[[int, int], None], said: Path, hang_after: float, steps: int
) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    code = 3
    try:
        store = dist.TCPStore(
            "127.0.0.1",
            listening.getsockname()[1],
            world.world_size,
            world.is_main,
            master_listen_fd=listening.fileno() if world.is_main else None,
        )
        limit = datetime.timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.world_size, timeout=limit)
        code = _train(world, act, said.parent, hang_after, steps)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _train(world: World, act: Callable[[int, int], None], folder: Path, hang_after: float, steps: int) -> int:
    try:
        with watch(world, hang_after=hang_after, folder=folder) as watched:
            try:
                for step in range(steps):
                    watched.at(step, "step")
                    act(world.rank, step)
                    time.sleep(0.02)
                    dist.all_reduce(torch.ones(1))
            except RuntimeError as error:
                lost = watched.explain(error)
                if lost is None:
                    raise
                raise lost from None
    except RankLostError as lost:
        if not lost.told:
            print(f"Error: {lost}", file=sys.stderr)
        return 1
    except ValueError:
        return 2
    return 0


def _end(child: int, timeout_s: float) -> int | None:
    try:
        return wait(child, timeout_s)
    except TimeoutError:
        return None


def befalls(rank: int, signum: int, *, at: int = 40) -> Callable[[int, int], None]:
    def act(this: int, step: int) -> None:
        if (this, step) == (rank, at):
            os.kill(os.getpid(), signum)

    return act


def lines(ranks: Ranks) -> list[str]:
    return [line for _, said in ranks for line in said.splitlines() if line.startswith("Error: ")]


@forks
@pytest.mark.parametrize(("size", "victim"), [(2, 1), (3, 2), (2, 0)])
def test_a_killed_rank_ends_the_job_with_one_line_that_names_it(tmp_path, size, victim):
    ranks = job(size, befalls(victim, signal.SIGKILL), tmp_path)
    assert [code for code, _ in ranks] == [-signal.SIGKILL if rank == victim else 1 for rank in range(size)]
    (line,) = lines(ranks)
    host = socket.gethostname()
    assert line.startswith(f"Error: Rank {victim} (host {host}) ended; its last step was ")
    assert line.endswith(". Continue with --resume auto.")
    assert 0 <= int(line.split("last step was ")[1].split(".")[0]) <= 40


@forks
@pytest.mark.parametrize(("size", "victim"), [(2, 1), (3, 0)])
def test_a_rank_that_is_stopped_ends_the_job_with_a_line_that_names_it(tmp_path, size, victim):
    ranks = job(size, befalls(victim, signal.SIGSTOP), tmp_path, hang_after=3, stopped=(victim,))
    assert [code for rank, (code, _) in enumerate(ranks) if rank != victim] == [1] * (size - 1)
    (line,) = lines(ranks)
    assert line.startswith(f"Error: Rank {victim} (host {socket.gethostname()}) hangs")


@forks
def test_a_rank_that_concludes_after_another_has_spoken_and_ended_is_silent(tmp_path, monkeypatch):
    conclude = Watchdog._without_store

    def conclude_last(self: Watchdog) -> Verdict | None:
        until = time.monotonic() + TIMEOUT_S / 2
        while self.world.rank == 2 and time.monotonic() < until and not has_ended(self._seen[1].beat):
            time.sleep(0.05)
        return conclude(self)

    monkeypatch.setattr(Watchdog, "_without_store", conclude_last)
    ranks = job(3, befalls(0, signal.SIGSTOP), tmp_path, hang_after=2, stopped=(0,))
    assert [code for code, _ in ranks[1:]] == [1, 1]
    (line,) = lines(ranks)
    assert line.startswith(f"Error: Rank 0 (host {socket.gethostname()}) hangs")


@forks
@pytest.mark.slow
def test_a_rank_whose_training_stands_still_is_named_with_the_place_though_it_lives(tmp_path):
    def act(rank: int, step: int) -> None:
        if (rank, step) == (1, 40):
            time.sleep(100)

    ranks = job(3, act, tmp_path, hang_after=3)
    assert [code for code, _ in ranks] == [1, 1, 1]
    (line,) = lines(ranks)
    assert line.startswith(f"Error: Rank 1 (host {socket.gethostname()}) hangs in its step")
    assert "its last step was 40." in line


@forks
def test_a_rank_that_fails_alone_takes_the_others_along(tmp_path):
    def act(rank: int, step: int) -> None:
        if (rank, step) == (1, 40):
            raise UserError("The disk is full.")

    ranks = job(3, act, tmp_path)
    assert [code for code, _ in ranks] == [1, 2, 1]
    (line,) = lines(ranks)
    assert f"Rank 1 (host {socket.gethostname()}) ended with an error, which it tells itself" in line


@forks
@pytest.mark.slow
def test_ranks_that_wait_for_a_slow_one_which_says_that_it_goes_on_are_left_alone(tmp_path):
    slow: list[Watchdog] = []
    begin = watchdog.Watchdog.at

    def remember(self: Watchdog, step: int, phase: str) -> None:
        slow[:] = [self]
        begin(self, step, phase)

    def act(rank: int, step: int) -> None:
        if (rank, step) == (1, 40):
            for _ in range(25):
                time.sleep(0.2)
                begin(slow[0], step, "validation")

    watchdog.Watchdog.at = remember
    try:
        ranks = job(2, act, tmp_path, hang_after=2, steps=50)
    finally:
        watchdog.Watchdog.at = begin
    assert ranks == [(0, ""), (0, "")]


@forks
@pytest.mark.slow
def test_a_job_that_slept_as_a_whole_goes_on(tmp_path):
    def act(rank: int, step: int) -> None:
        if step == 40:
            if os.fork() == 0:  # a scheduler that suspends the job and takes it up again
                time.sleep(7)
                os.kill(os.getppid(), signal.SIGCONT)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGSTOP)

    assert job(2, act, tmp_path, hang_after=3, steps=80) == [(0, ""), (0, "")]
