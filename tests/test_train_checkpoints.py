"""Checkpoints are there whole or not at all, whatever dies at whatever moment; ranks speak through the folder alone."""

import gc
import json
import logging
import multiprocessing
import os
import random
import resource
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from cxrdist.errors import UserError
from cxrdist.train import commit
from cxrdist.train.checkpoints import (
    Checkpoints,
    Retention,
    check_checkpoint,
    checkpoint_name,
    latest_checkpoint,
    verify_checkpoint,
)
from cxrdist.train.pieces import EARLIER, FORMAT, RECORD, Piece, Reader, rank_file, record_text
from cxrdist.train.snapshot import Snapshot

SIZE = 3000
"""Values of the one parameter that is saved here; after step s they are s + 0, s + 1, ..."""


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What a killed process has written is there without it; only a power cut takes it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def whole(step: int) -> torch.Tensor:
    return torch.arange(SIZE, dtype=torch.float32) + step


def pieces_of(rank: int, world_size: int, step: int) -> list[Piece]:
    begin, end = (SIZE * place // world_size for place in (rank, rank + 1))
    return [
        Piece("blocks.0.weight", "weight", (SIZE,), begin, whole(step)[begin:end]),
        Piece("blocks.0.weight", "exp_avg", (SIZE,), begin, -whole(step)[begin:end]),
    ]


def start(
    folder: Path, rank: int = 0, world_size: int = 1, *, keep: Retention | None = None, token: str | None = None, **more
) -> Checkpoints:
    return Checkpoints(
        folder,
        rank=rank,
        world_size=world_size,
        keep=keep or Retention(last=2),
        token=token or secrets.token_hex(4),
        **{"in_background": True, "resumed": None, "timeout_s": 20.0, **more},
    )


def save(to: Checkpoints, step: int, score: float | None = None) -> None:
    to.save(step, pieces_of(to._rank, to._world_size, step), {"step": step}, score=score)


def save_all(folder: Path, *steps: int, **more) -> None:
    """Save steps as one rank, the step being the score as well."""
    checkpoints = start(folder, keep=Retention(last=99), **more)
    for step in steps:
        save(checkpoints, step, score=float(step))
    checkpoints.close()


def there(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith((".partial", ".removed", ".rep", ".failed"))]


def assert_sound(folder: Path) -> int | None:
    """Check that the latest checkpoint is complete and says what its step says; return the step."""
    name = latest_checkpoint(folder)
    if name is None:
        return None
    assert verify_checkpoint(folder, name) == []
    reader = Reader(folder / name)
    step = reader.facts["step"]
    assert checkpoint_name(step) == name
    assert torch.equal(reader.full("blocks.0.weight", "weight"), whole(step))
    assert torch.equal(reader.full("blocks.0.weight", "exp_avg"), -whole(step))
    return step


def fork(work: Callable[..., object], *args) -> multiprocessing.Process:
    def clean() -> None:
        gc.freeze()  # garbage of this process waits for threads that the child does not have
        work(*args)

    process = multiprocessing.get_context("fork").Process(target=clean)
    process.start()
    return process


def codes_of(*processes: multiprocessing.Process) -> list[int | None]:
    for process in processes:
        process.join(30)
        process.kill()
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("in_background", [True, False])
def test_what_is_saved_is_the_state_at_the_call(tmp_path, in_background):
    checkpoints = start(tmp_path, in_background=in_background)
    for step in range(1, 5):
        pieces = pieces_of(0, 1, step)
        checkpoints.save(step, pieces, {"step": step})
        for piece in pieces:
            piece.tensor.fill_(float("nan"))  # training goes on
        if not in_background:
            assert assert_sound(tmp_path) == step
    checkpoints.close()
    assert assert_sound(tmp_path) == 4
    assert there(tmp_path) == [3, 4]
    assert hidden(tmp_path) == []


def test_nothing_is_committed_before_every_rank_has_written(tmp_path):
    ranks = [start(tmp_path, rank, 3, token="one") for rank in range(3)]
    for checkpoints in ranks[:2]:
        save(checkpoints, 1)
    time.sleep(0.2)
    assert latest_checkpoint(tmp_path) is None
    assert there(tmp_path) == []
    save(ranks[2], 1)
    ranks[2].wait()  # on any rank: the commit is visible
    assert assert_sound(tmp_path) == 1
    for checkpoints in ranks:
        checkpoints.close()


def test_a_save_waits_for_the_one_before(tmp_path):
    first, second = (start(tmp_path, rank, 2, token="one") for rank in range(2))
    save(first, 1)
    other = fork(lambda: (time.sleep(0.3), [save(second, step) for step in (1, 2)], second.close()))
    save(first, 2)
    assert assert_sound(tmp_path) >= 1  # the second one may be there by now
    first.close()
    assert assert_sound(tmp_path) == 2
    assert codes_of(other) == [0]


def test_a_rank_that_does_not_come_is_a_sentence_on_every_rank_and_the_checkpoint_before_is_whole(tmp_path):
    out = tmp_path / "run/checkpoints"
    save_all(out, 1)
    ranks = [start(out, rank, 4, token="one", timeout_s=0.3, resumed="step-00000001") for rank in range(4)]
    save(ranks[0], 2)
    save(ranks[2], 2)
    for rank in (0, 2):
        sentence = r"got none from rank 1, 3 within 0.3 s \[in run\]. The run folder must be on a file system that all"
        with pytest.raises(UserError, match=sentence):
            ranks[rank].wait()
        ranks[rank].close()  # told once
    assert assert_sound(out) == 1
    assert there(out) == [1]
    assert [name for name in hidden(out) if not name.startswith(".failed")] == []


def test_a_folder_that_is_not_shared_is_told_on_the_other_ranks(tmp_path):
    other = start(tmp_path / "run/checkpoints", 1, 2, timeout_s=0.1, in_background=False)
    with pytest.raises(UserError, match=r"must be committed by rank 0, got nothing from it within 0.1 s on rank 1"):
        save(other, 1)


def test_a_rank_that_is_still_writing_is_waited_for(tmp_path):
    first, second = (start(tmp_path, rank, 2, token="one", timeout_s=0.5) for rank in range(2))
    save(first, 1)
    folder = tmp_path / ".partial-step-00000001-one-1"
    for size in range(6):
        time.sleep(0.2)
        (folder / rank_file(1)).write_bytes(bytes(size))
    save(second, 1)
    first.close()
    second.close()
    assert assert_sound(tmp_path) == 1


@pytest.mark.parametrize("poor", [0, 2])
@pytest.mark.parametrize("in_background", [True, False])
def test_a_disk_that_is_full_on_one_rank_is_a_sentence_on_all_and_the_checkpoint_before_is_whole(
    tmp_path, poor, in_background
):
    out = tmp_path / "run/checkpoints"
    save_all(out, 1)

    def work(rank: int) -> None:
        checkpoints = start(out, rank, 3, token="one", in_background=in_background, resumed="step-00000001")
        save(checkpoints, 2)
        checkpoints.wait()
        if rank == poor:  # the system lets no file grow beyond this, wherever the process writes
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        began = time.monotonic()
        with pytest.raises(
            UserError,
            match=rf"^A checkpoint must be writable, got 'File too large' on rank {poor} \[in run\]\. "
            r"The checkpoint before it is whole: make room, then continue with --resume auto\.$",
        ):
            save(checkpoints, 3)
            checkpoints.wait()
        assert time.monotonic() - began < 10

    assert codes_of(*(fork(work, rank) for rank in range(3))) == [0, 0, 0]
    assert assert_sound(out) == 2
    assert list(out.glob(".partial-*")) == []
    save_all(out, 3, resumed="step-00000002")
    assert (assert_sound(out), hidden(out)) == (3, [])


def test_a_failed_save_is_told_at_the_next_call_and_a_later_one_works(tmp_path, monkeypatch):
    checkpoints = start(tmp_path / "run/checkpoints")
    with monkeypatch.context() as patched:
        patched.setattr(commit, "sync", lambda folder: (folder / "gone").stat())
        save(checkpoints, 1)
        checkpoints._thread.join()
    with pytest.raises(UserError, match=r"A checkpoint must be writable, got 'No such file or directory' \[in run\]\."):
        save(checkpoints, 2)
    save(checkpoints, 3)
    checkpoints.close()
    assert assert_sound(tmp_path / "run/checkpoints") == 3
    assert hidden(tmp_path / "run/checkpoints") == []


def test_an_own_mistake_is_raised_as_it_is(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        start(tmp_path).save(1, [], {"path": tmp_path})
    with pytest.raises(ValueError, match="one token"):
        Checkpoints(tmp_path, rank=0, world_size=2, keep=Retention(), in_background=True, resumed=None)


def test_what_ranks_of_a_killed_start_left_or_still_write_is_never_taken(tmp_path):
    old = start(tmp_path, 1, 2, token="old", timeout_s=0.5)
    save(old, 1)
    while not list(tmp_path.glob(".partial-*old*/rank-00001.json")):  # it writes in a thread
        time.sleep(0.005)
    new = start(tmp_path, 0, 2, token="new", timeout_s=0.5)
    assert not list(tmp_path.glob(".partial-*old*/*.json"))
    (tmp_path / ".partial-step-00000001-old-1").mkdir(exist_ok=True)
    (tmp_path / ".partial-step-00000001-old-1" / rank_file(1)).touch()
    save(new, 1)
    with pytest.raises(UserError, match="got none from rank 1"):
        new.wait()
    with pytest.raises(UserError, match=r"must be committed by rank 0|must be writable"):
        old.wait()
    assert latest_checkpoint(tmp_path) is None
    assert there(tmp_path) == []


@pytest.mark.parametrize("kind", ["bit", "cut", "longer", "gone"])
def test_any_damage_is_told_and_the_newest_sound_checkpoint_is_taken(tmp_path, kind, caplog):
    seed = random.randrange(10**6)
    print(f"drawn with seed {seed}")
    rng = random.Random(seed)
    for case in range(8):
        out = tmp_path / str(case)
        ranks = [start(out, rank, 2, token="one", keep=Retention(last=9)) for rank in range(2)]
        for step in (1, 2, 3):
            for checkpoints in ranks:
                save(checkpoints, step)
        for checkpoints in ranks:
            checkpoints.close()
        file = rng.choice([RECORD, rank_file(0), rank_file(1)])
        path = out / checkpoint_name(3) / file
        content = bytearray(path.read_bytes())
        if kind == "bit":
            place = rng.randrange(len(content))
            content[place] ^= 1 << rng.randrange(8)
            if chr(content[place]).isspace() and file == RECORD:
                content[place] = 0  # a space for a line's end changes nothing that is read
        elif kind == "cut":
            del content[rng.randrange(len(content) - 1) :]
        elif kind == "longer":
            content += b"x"
        path.write_bytes(content)
        if kind == "gone":
            path.unlink()
        (wrong,) = verify_checkpoint(out, checkpoint_name(3))
        assert wrong.startswith(f"{file} ")
        caplog.clear()
        assert assert_sound(out) == 2
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert wrong in warning and "Taking step-00000002 instead" in warning


@pytest.mark.parametrize("told", [None, "step-00000007", "", "../elsewhere", "\x00\xff"])
def test_a_latest_that_names_nothing_falls_back_with_a_warning(tmp_path, told, caplog):
    save_all(tmp_path, 1, 2)
    if told is None:
        (tmp_path / "latest").unlink()
    else:
        (tmp_path / "latest").write_text(told, encoding="latin-1")
    assert assert_sound(tmp_path) == 2
    assert "`latest` must name a checkpoint that is there" in caplog.text


def test_no_sound_checkpoint_is_a_sentence_with_ways_out(tmp_path):
    save_all(tmp_path, 1, 2)
    for path in tmp_path.glob(f"step-*/{rank_file(0)}"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"rank-00000.safetensors has 0 bytes.*step-00000002.*or remove the folder"):
        latest_checkpoint(tmp_path)
    for path in tmp_path.glob("step-*"):
        shutil.rmtree(path)
    with pytest.raises(UserError, match="`latest` must name a checkpoint that is there, got 'step-00000002'"):
        latest_checkpoint(tmp_path)
    (tmp_path / "latest").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "new") is None


def test_an_earlier_version_s_checkpoint_is_a_sentence_with_a_way_out(tmp_path):
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004" / EARLIER).touch()
    (tmp_path / "latest").write_text("step-00000004\n")
    with pytest.raises(UserError, match=r"got an earlier version's .*step-00000004.*with the version that began it"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_of_another_format_is_a_sentence_and_no_other_one_is_taken_for_it(tmp_path):
    save_all(tmp_path, 1, 2)
    for step in (1, 2):
        record = json.loads((tmp_path / checkpoint_name(step) / RECORD).read_text())
        del record["sha256"]
        (tmp_path / checkpoint_name(step) / RECORD).write_text(record_text(record | {"format": FORMAT + 1}))
        with pytest.raises(
            UserError, match=r"got another version's, 2 and not 1 .*step-0000000.*the version that began"
        ):
            check_checkpoint(tmp_path, checkpoint_name(step))
    with pytest.raises(UserError, match=r"got another version's, 2 and not 1 .*step-00000002"):
        latest_checkpoint(tmp_path)
    assert verify_checkpoint(tmp_path, checkpoint_name(2)) == ["its format is 2, not 1"]


def test_a_checkpoint_that_is_looked_at_by_name_is_sound_or_a_sentence(tmp_path):
    save_all(tmp_path, 1)
    check_checkpoint(tmp_path, checkpoint_name(1))
    (tmp_path / checkpoint_name(1) / rank_file(0)).write_bytes(b"")
    with pytest.raises(UserError, match=r"got 'rank-00000.safetensors has 0 bytes.*step-00000001\]. Bring that folder"):
        check_checkpoint(tmp_path, checkpoint_name(1))


def test_a_later_checkpoint_than_the_one_resumed_from_scores_for_nothing_and_goes_with_the_first_commit(tmp_path):
    save_all(tmp_path, 2, 4, 6, 8)
    for step in (6, 8):
        (tmp_path / checkpoint_name(step) / rank_file(0)).write_bytes(b"")
    name = latest_checkpoint(tmp_path)
    assert name == "step-00000004"
    checkpoints = start(tmp_path, keep=Retention(last=1, best=1), resumed=name)
    assert there(tmp_path) == [2, 4, 6, 8]  # nothing goes before the commit
    save(checkpoints, 7, score=3.0)  # 6 and 8 have the higher scores, and are not this run's
    checkpoints.wait()
    assert there(tmp_path) == [4, 7]
    assert assert_sound(tmp_path) == 7
    save(checkpoints, 8, score=9.0)
    checkpoints.close()
    assert there(tmp_path) == [8]


def test_a_new_run_takes_over_nothing(tmp_path):
    save_all(tmp_path, 2, 4)
    checkpoints = start(tmp_path, keep=Retention(last=9, best=9), resumed=None)
    assert there(tmp_path) == [2, 4]
    save(checkpoints, 3)
    checkpoints.close()
    assert there(tmp_path) == [3]


def test_retention_keeps_the_last_the_best_and_the_multiples_and_nothing_else():
    seed = random.randrange(10**6)
    print(f"drawn with seed {seed}")
    rng = random.Random(seed)
    for _ in range(300):
        keep = Retention(last=rng.randint(1, 4), best=rng.randint(0, 3), every=rng.choice([None, 2, 5]))
        scores = {
            step: rng.choice([None, float("nan"), *range(4)]) for step in rng.sample(range(1, 40), rng.randint(1, 12))
        }
        kept = keep.kept(scores)
        newest = sorted(scores)[-keep.last :]
        defined = {step: score for step, score in scores.items() if score is not None and score >= 0}
        best = sorted(defined, key=lambda step: (defined[step], -step))[len(defined) - min(keep.best, len(defined)) :]
        multiples = [step for step in scores if keep.every and step % keep.every == 0]
        assert kept == {*newest, *best, *multiples}
    assert Retention().kept({1: 0.5, 2: 0.7, 3: 0.7, 4: None}) == {2, 4}  # of equals the earlier, as a run chooses


def test_the_folder_holds_what_retention_keeps_after_every_save_and_resume(tmp_path):
    seed = random.randrange(10**6)
    print(f"drawn with seed {seed}")
    rng = random.Random(seed)
    keep = Retention(last=2, best=2, every=5)
    scores: dict[int, float | None] = {}
    checkpoints = start(tmp_path, keep=keep)
    for step in range(1, 31):
        scores[step] = rng.choice([None, rng.random()])
        save(checkpoints, step, scores[step])
        if rng.random() < 0.3:
            checkpoints.close()
            checkpoints = start(tmp_path, keep=keep, resumed=latest_checkpoint(tmp_path))
        checkpoints.wait()
        scores = {other: scores[other] for other in keep.kept(scores)}
        assert there(tmp_path) == sorted(scores)
    checkpoints.close()


def test_a_kill_at_any_operation_on_the_disk_leaves_a_sound_checkpoint(tmp_path):
    """Also while a checkpoint takes the place of one of its own step, the only one that is there."""
    operations = [(os, "fsync"), (shutil, "rmtree"), (Path, "rename"), (Path, "replace"), (Path, "mkdir")]
    operations += [(Path, "unlink"), (Path, "open")]

    def work(out: Path, call: int, told: Connection) -> None:
        calls = count(1)

        def dying(original: Callable) -> Callable:
            def counted(*args, **kwargs):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)

            return counted

        for owner, name in operations:
            setattr(owner, name, dying(getattr(owner, name)))
        checkpoints = start(out, keep=Retention(last=1), in_background=False)
        for number, step in enumerate((1, 1, 2)):
            save(checkpoints, step)
            told.send(number)

    for call in count(1):
        out = tmp_path / str(call)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        (code,) = codes_of(fork(work, out, call, sender))
        sender.close()
        committed = -1
        while receiver.poll():
            try:
                committed = receiver.recv()
            except EOFError:
                break
        step = assert_sound(out) if out.is_dir() else None
        assert step == 2 or (step == 1 and committed < 2) or (step is None and committed < 0)
        resumed = latest_checkpoint(out)
        checkpoints = start(out, keep=Retention(last=1), resumed=resumed, in_background=False)
        assert assert_sound(out) == step
        save(checkpoints, 3)
        assert (there(out), hidden(out), assert_sound(out)) == ([3], [], 3)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert call > 40


@pytest.mark.parametrize("same", [False, True])
def test_nothing_is_renamed_before_it_is_on_the_disk(tmp_path, same, monkeypatch):
    """So that a power cut leaves what a kill leaves."""
    synced: dict[int, int] = {}
    """For each inode: when it was changed last before it was brought to the disk."""
    happened: list[str] = []
    """In order: the target of each renaming, and each `fsync` of the folder."""

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_mtime_ns
        if status.st_ino == tmp_path.stat().st_ino:
            happened.append("fsync")

    def checked(original: Callable) -> Callable:
        def rename(path: Path, target: Path) -> Path:
            if not path.name.startswith("step-"):  # these only go
                inside = [path, *path.iterdir()] if path.is_dir() else [path]
                assert all(synced.get(each.stat().st_ino) == each.stat().st_mtime_ns for each in inside)
                happened.append(target.name)
            return original(path, target)

        return rename

    checkpoints = start(tmp_path, in_background=False)
    save(checkpoints, 2 if same else 1)
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, checked(getattr(Path, name)))
    save(checkpoints, 2)
    assert happened == ["rank-00000.json", RECORD, ".latest", "step-00000002", "fsync", "latest", "fsync"]


def kill_at_random_moments(folder: Path, *, kills: int) -> None:
    seed = random.randrange(10**6)
    print(f"drawn with seed {seed}")
    rng = random.Random(seed)
    reached = 0

    def work(rank: int, world_size: int, token: str, resumed: str | None, first: int) -> None:
        checkpoints = start(folder, rank, world_size, token=token, resumed=resumed, keep=Retention(last=2, every=50))
        for step in range(first, 10**6):
            save(checkpoints, step, score=float(step % 7))

    for kill in range(kills):
        world_size = rng.randint(1, 4)
        resumed = latest_checkpoint(folder)
        ranks = [fork(work, rank, world_size, f"kill{kill}", resumed, reached + 1) for rank in range(world_size)]
        time.sleep(rng.uniform(0.02, 0.5))
        rng.shuffle(ranks)
        for process in ranks:
            process.kill()
            time.sleep(rng.choice([0, 0, 0.01]))  # the others go on for a moment
        assert codes_of(*ranks) == [-signal.SIGKILL] * world_size
        step = assert_sound(folder) if folder.is_dir() else None
        assert (step or 0) >= reached
        reached = step or 0
    print(f"{kills} kills, {reached} steps")
    assert reached > kills


def test_ranks_killed_at_random_moments_leave_a_sound_checkpoint_that_others_continue_from(tmp_path):
    kill_at_random_moments(tmp_path / "checkpoints", kills=8)


@pytest.mark.slow
def test_ranks_killed_at_thirty_random_moments_leave_a_sound_checkpoint(tmp_path):
    kill_at_random_moments(tmp_path / "checkpoints", kills=30)


def test_ranks_of_unequal_speed_save_one_after_the_other(tmp_path):
    def work(rank: int) -> None:
        rng = random.Random(rank)
        checkpoints = start(tmp_path, rank, 4, token="one", keep=Retention(last=1, best=0, every=10))
        for step in range(1, 26):
            save(checkpoints, step)
            time.sleep(rng.choice([0, 0, 0.01]))
        checkpoints.close()
        assert assert_sound(tmp_path) == 25  # on every rank

    assert codes_of(*(fork(work, rank) for rank in range(4))) == [0] * 4
    assert there(tmp_path) == [10, 20, 25]
    assert hidden(tmp_path) == []


def test_copies_of_two_snapshots_share_one_block_of_memory():
    snapshot = Snapshot()
    pieces = [
        *pieces_of(0, 1, 5),
        Piece("n", "buffer", (), 0, torch.tensor([7])),
        Piece("e", "b", (0,), 0, whole(0)[:0]),
    ]
    first = snapshot.take(pieces)
    assert all(torch.equal(copy.tensor, piece.tensor) for copy, piece in zip(first, pieces, strict=True))
    second = snapshot.take(pieces)
    assert [copy.tensor.data_ptr() for copy in first[:3]] == [copy.tensor.data_ptr() for copy in second[:3]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_lies_on_a_gpu_is_saved_as_it_is_at_the_call(tmp_path):
    checkpoints = start(tmp_path)
    for step in (1, 2):
        pieces = [Piece(p.name, p.kind, p.shape, p.start, p.tensor.cuda()) for p in pieces_of(0, 1, step)]
        checkpoints.save(step, pieces, {"step": step})
        for piece in pieces:
            piece.tensor.zero_()
    assert checkpoints._snapshot._block.is_pinned()
    checkpoints.close()
    assert assert_sound(tmp_path) == 2
