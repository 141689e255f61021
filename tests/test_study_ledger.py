"""The ledger as a file and as objects: nothing is lost or twice, one run at a time, and only what is new is read."""

import errno
import fcntl
import importlib.util
import json
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from helpers import study_tree

from cxrdist.errors import UsageError, UserError
from cxrdist.study.config import StudyConfig
from cxrdist.study.jobs import Job
from cxrdist.study.journal import ObjectJournal, SupersededError
from cxrdist.study.lease import Lease
from cxrdist.study.ledger import Ledger, ledger_of
from cxrdist.study.objects import DiskStore, RemoteStore, open_store

FORK = multiprocessing.get_context("fork")
LEASE_S, LONG_S = 1.0, 6.0
"""Short, so that a dead run is given up soon; long where none is, beside what a busy machine keeps a thread waiting."""
TAKEN_OVER = "Only the run that holds a study may write its ledger, got one that a later run on"
SECOND = "Only one run of a study may go on at a time, got a second"


def a_job(tmp_path: Path, number: int = 0) -> Job:
    name = f"random--a--seed{number}"
    return Job("cell", "train", name, f"k{number}", tmp_path / "cells" / name, {})


def a_ledger(tmp_path: Path, kind: str, lease_s: float = LEASE_S) -> Ledger:
    url = (tmp_path / "objects").as_uri() if kind == "objects" else None
    return Ledger(tmp_path / "ledger.jsonl", url, lease_s)


def forked(function: Callable[..., None], *arguments: object) -> Any:
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def objects(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "objects").glob("0*.json"))


both = pytest.mark.parametrize("kind", ["file", "objects"])


def append_many(ledger: Ledger, writer: int, count: int) -> None:
    for number in range(count):
        ledger.append("failed", a_job(ledger.path.parent, number), error=f"{writer} {'x' * 3000}")


@both
def test_two_writers_at_once_lose_no_line_and_write_none_twice(tmp_path, kind):
    ledger = a_ledger(tmp_path, kind)
    writers = [forked(append_many, ledger, writer, 200) for writer in range(2)]
    for writer in writers:
        writer.join()
    found = [(line["error"][0], line["name"]) for line in ledger.read()]
    assert len(found) == len(set(found)) == 400
    for writer in "01":
        mine = [name for by, name in found if by == writer]
        assert mine == [a_job(tmp_path, number).name for number in range(200)], "in the order they were written"


@both
def test_a_writer_killed_at_any_moment_leaves_whole_lines_and_no_stop(tmp_path, kind):
    ledger = a_ledger(tmp_path, kind)
    for _ in range(5):
        before = len(ledger.read())
        writer = forked(append_many, ledger, 0, 10_000)
        wait_for(lambda before=before: len(ledger.read()) > before + 3)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    lines = ledger.read()
    assert all(len(line["error"]) == 3002 for line in lines)
    ledger.append("done", a_job(tmp_path))
    assert len(ledger.read()) == len(lines) + 1
    assert a_ledger(tmp_path, kind).read() == ledger.read(), "one who reads all at once sees the same"


@pytest.mark.parametrize("cut", [1, 20, 3000])
def test_a_line_half_written_is_read_once_it_is_whole(tmp_path, cut):
    ledger, other = a_ledger(tmp_path, "file"), a_ledger(tmp_path, "file")
    for number in range(2):
        ledger.append("failed", a_job(tmp_path, number), error="x" * 3000)
    text = ledger.path.read_bytes()
    ledger.path.write_bytes(text[:-cut])
    whole_but_for_its_end = cut == 1
    assert len(other.read()) == len(other.failures()) == 1 + whole_but_for_its_end
    with ledger.path.open("ab") as file:
        file.write(text[-cut:])
    assert [line["key"] for line in other.read()] == ["k0", "k1"] and len(other.failures()) == 2


def test_only_new_lines_are_read(tmp_path):
    ledger, reader = a_ledger(tmp_path, "file"), a_ledger(tmp_path, "file")
    ledger.append("failed", a_job(tmp_path), error="x")
    assert len(reader.read()) == 1
    ledger.path.write_bytes(b"?" * (ledger.path.stat().st_size - 1) + b"\n")
    ledger.append("failed", a_job(tmp_path, 1), error="y")
    assert [line["error"] for line in reader.read()] == ["x", "y"], "what was read is not looked at again"
    assert list(reader.failures().values()) == ["x", "y"]


def test_a_ledger_put_in_place_of_another_is_read_anew(tmp_path):
    ledger, new = a_ledger(tmp_path, "file"), Ledger(tmp_path / "new.jsonl")
    for number in range(3):
        ledger.append("failed", a_job(tmp_path, number))
        new.append("failed", a_job(tmp_path, number + 3))
    assert len(ledger.failures()) == 3
    new.path.replace(ledger.path)
    assert [line["key"] for line in ledger.read()] == ["k3", "k4", "k5"]
    assert {key for _, _, key in ledger.failures()} == {"k3", "k4", "k5"}
    ledger.path.unlink()
    assert ledger.read() == [] and ledger.failures() == {}


@both
@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\x00",
        b"no JSON",
        b"[]",
        b"12",
        b"[" * 100_000,
        b'{"event": [], "kind": 1, "name": 2, "key": 3, "term": 0, "id": "x"}',
        b'{"term": "1"}',
    ],
    ids=range(8),
)
def test_what_is_no_event_is_passed_over(tmp_path, kind, garbage):
    ledger = a_ledger(tmp_path, kind)
    ledger.append("started", a_job(tmp_path))
    if kind == "file":
        with ledger.path.open("ab") as file:
            file.write(garbage + b"\n")
    else:
        (tmp_path / "objects" / "0000000002.json").write_bytes(garbage)
        for name in ("note.txt", f"{'9' * 30}.json", ".0000000003.json"):
            (tmp_path / "objects" / name).write_bytes(garbage)
    fresh = a_ledger(tmp_path, kind)
    for one, number in ((ledger, 1), (fresh, 2)):
        one.append("failed", a_job(tmp_path, number))
    for one in (ledger, fresh, a_ledger(tmp_path, kind)):
        assert [line["key"] for line in one.read()] == ["k0", "k1", "k2"]
        assert len(one.failures()) == 2
    with ledger.hold():
        fresh.append("done", a_job(tmp_path))


def hold(ledger: Ledger, told: Any, end: Any) -> None:
    try:
        with ledger.hold():
            told.put("held")
            end.wait()
    except UserError as error:
        told.put(str(error))


@both
def test_of_two_runs_started_at_once_one_holds_the_study(tmp_path, kind):
    for _ in range(2):
        told, end = FORK.Queue(), FORK.Event()
        runs = [forked(hold, a_ledger(tmp_path, kind, LONG_S), told, end) for _ in range(2)]
        answers = sorted(told.get(timeout=20) for _ in runs)
        end.set()
        for run in runs:
            run.join()
        assert answers[1] == "held" and answers[0].startswith(SECOND), answers
        assert not a_ledger(tmp_path, kind).held()


@both
def test_a_study_is_held_until_its_run_ends_or_dies(tmp_path, kind):
    first, second, told = a_ledger(tmp_path, kind), a_ledger(tmp_path, kind), FORK.Queue()
    run = forked(hold, first, told, FORK.Event())
    assert told.get(timeout=20) == "held" and second.held()
    with pytest.raises(UserError, match=SECOND), second.hold():
        pass
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    started = time.monotonic()
    with second.hold():
        waited = time.monotonic() - started
        assert second.held() and a_ledger(tmp_path, kind).held()
        second.append("started", a_job(tmp_path))
        assert second.states([a_job(tmp_path)]) == {a_job(tmp_path).identity: "running"}
    assert kind == "file" or waited >= LEASE_S, waited
    assert second.states([a_job(tmp_path)]) == {a_job(tmp_path).identity: "stopped"}
    started = time.monotonic()
    with first.hold():
        assert time.monotonic() - started < LEASE_S, "a run that ended says so"


def run_until_told(ledger: Ledger, told: Any, go: Any) -> None:
    try:
        with ledger.hold():
            ledger.append("started", a_job(ledger.path.parent))
            told.put("held")
            go.get()
            ledger.append("done", a_job(ledger.path.parent))
            told.put("written")
    except UserError as error:
        told.put(str(error))


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("kind", ["file without locks", "objects"])
def test_a_run_that_slept_too_long_writes_nothing_more(tmp_path, kind, monkeypatch):
    if kind != "objects":
        no_locks(monkeypatch)
    told, go = FORK.Queue(), FORK.Queue()
    asleep = forked(run_until_told, a_ledger(tmp_path, kind), told, go)
    assert told.get(timeout=20) == "held"
    os.kill(asleep.pid, signal.SIGSTOP)
    second = a_ledger(tmp_path, kind)
    with second.hold():
        os.kill(asleep.pid, signal.SIGCONT)
        go.put("on")
        sentence = told.get(timeout=20)
        asleep.join()
        second.append("started", a_job(tmp_path, 1))
        with pytest.raises(UserError, match=SECOND), a_ledger(tmp_path, kind).hold():
            pass  # what the first wrote when it woke and ended did not set the study free
    assert sentence.startswith(TAKEN_OVER) and sentence.count("\n") == 0
    assert [line["event"] for line in second.read()] == ["started", "started"]


@pytest.mark.parametrize("kind", ["file without locks", "objects"])
def test_a_run_whose_hold_was_taken_over_learns_it_without_writing(tmp_path, kind, monkeypatch):
    if kind != "objects":
        no_locks(monkeypatch)
    first, second = a_ledger(tmp_path, kind), a_ledger(tmp_path, kind, lease_s=LONG_S)
    with first.hold():
        time.sleep(LEASE_S / 4)
        assert not first.lost
        assert second._objects.begin(
            {"event": "hold"}, after=second._objects.term()
        )  # as if this run had slept meanwhile
        wait_for(lambda: first.lost, seconds=LEASE_S * 5)
        assert str(first.superseded()).startswith(TAKEN_OVER) and not pickle.loads(pickle.dumps(first)).lost
    assert not first.lost


@pytest.mark.parametrize("kind", ["file without locks", "objects"])
def test_trials_of_a_run_write_under_its_hold_and_no_longer(tmp_path, kind, monkeypatch):
    if kind != "objects":
        no_locks(monkeypatch)
    ledger = a_ledger(tmp_path, kind)
    with ledger.hold():
        sent = pickle.dumps(ledger)
        pickle.loads(sent).append("started", a_job(tmp_path))
    pickle.loads(sent).append("failed", a_job(tmp_path)), "the run has ended, and no other has begun"
    with a_ledger(tmp_path, kind).hold(), pytest.raises(UserError, match=TAKEN_OVER):
        pickle.loads(sent).append("done", a_job(tmp_path))
    assert [line["event"] for line in ledger.read()] == ["started", "failed"]


def test_where_a_file_system_knows_no_locks_two_runs_are_told_apart_all_the_same(tmp_path, monkeypatch):
    no_locks(monkeypatch)
    ledger = a_ledger(tmp_path, "file")
    assert not ledger.held()
    with ledger.hold():
        assert a_ledger(tmp_path, "file").held()
        with pytest.raises(UserError, match=SECOND), a_ledger(tmp_path, "file").hold():
            pass
        ledger.append("started", a_job(tmp_path))
    assert not ledger.held() and len(ledger.path.read_text().splitlines()) == 1


class Counted(DiskStore):
    """Counts what is fetched and how often names are listed."""

    fetched = listed = 0

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        Counted.fetched += len(names)
        return super().fetch(names)

    def names(self) -> list[str]:
        Counted.listed += 1
        return super().names()


def test_only_new_objects_are_fetched(tmp_path):
    Counted.fetched = Counted.listed = 0
    writer = a_ledger(tmp_path, "objects")
    for number in range(20):
        writer.append("started", a_job(tmp_path, number))
    reader = ObjectJournal(Counted(tmp_path / "objects"))
    assert len(reader.lines()) == 20 and (Counted.fetched, Counted.listed) == (20, 1)
    assert len(reader.lines()) == 20 and (Counted.fetched, Counted.listed) == (20, 2)
    writer.append("done", a_job(tmp_path))
    assert len(reader.lines()) == 21 and Counted.fetched == 21
    Counted.fetched = 0
    trial = ObjectJournal(Counted(tmp_path / "objects"))
    trial.append({"event": "x"})
    assert Counted.fetched == 1, "one who only writes needs the last event alone"
    trial.append({"event": "y"})
    assert Counted.fetched == 1
    assert len(objects(tmp_path)) == 23


@both
def test_states_of_a_thousand_jobs_may_be_asked_for_again_and_again(tmp_path, kind):
    ledger, jobs = a_ledger(tmp_path, "file"), [a_job(tmp_path, number) for number in range(1000)]
    lines = [
        {"event": event, "kind": "cell", "name": job.name, "key": job.key, "error": "It did.", "term": 0, "id": "x"}
        for event in ("failed", "started")
        for job in jobs
    ]
    if kind == "objects":
        (tmp_path / "objects").mkdir()
        for number, line in enumerate(lines, 1):
            (tmp_path / "objects" / f"{number:010d}.json").write_text(json.dumps(line))
        ledger = a_ledger(tmp_path, kind)
    else:
        ledger.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert set(ledger.states(jobs).values()) == {"stopped"} and len(ledger.failures()) == 1000
    started = time.process_time()
    for job in jobs[:100]:
        ledger.states([job])
    # A few ms each with objects, most of them for the list of names; reading all again would be tens.
    assert time.process_time() - started < 1.5


@pytest.fixture
def memory() -> RemoteStore:
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return RemoteStore(fs, "/study", "memory://study")


def test_the_same_holds_through_fsspec(memory):
    journals = [ObjectJournal(memory) for _ in range(4)]
    assert journals[0].lines() == [] and memory.names() == []
    line = {"event": "started", "kind": "cell", "key": "k"}
    threads = [
        threading.Thread(target=lambda i=i, j=j: [j.append(line | {"name": f"{i} {n}"}) for n in range(50)])
        for i, j in enumerate(journals)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [event["name"] for event in ObjectJournal(memory).lines()]
    assert len(found) == len(set(found)) == 200
    with Lease(journals[0], "here", LEASE_S).hold() as term:
        with pytest.raises(UserError, match=SECOND), Lease(journals[1], "here", LEASE_S).hold():
            pass
        journals[0].append(line | {"name": "mine"}, term=term)
    with Lease(journals[1], "here", LEASE_S).hold(), pytest.raises(SupersededError):
        journals[0].append(line | {"name": "too late"}, term=term)
    assert ObjectJournal(memory).lines()[-1]["name"] == "mine"


class Answers(MemoryFileSystem):
    """A server that does not do what is asked."""

    cachable = False
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    how = ""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        if self.how == "writes all the same":
            return super().pipe_file(path, value)
        if self.how == "refuses all":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        super().pipe_file(path, value, mode)
        if self.how == "loses its answer" and mode == "create":
            raise FileExistsError(path)
        return None


def answering(how: str) -> RemoteStore:
    fs = Answers()
    fs.how = how
    fs.store.clear()
    return RemoteStore(fs, "/study", "s3://bucket/study")


def test_an_event_whose_answer_was_lost_is_not_written_twice():
    journal = ObjectJournal(answering("loses its answer"))
    for name in "ab":
        journal.append({"event": "started", "kind": "cell", "name": name, "key": "k"})
    assert [line["name"] for line in ObjectJournal(journal.store).lines()] == ["a", "b"]


def test_a_store_that_creates_twice_is_refused():
    with (
        pytest.raises(UserError, match="must refuse to create an object twice, got one that does it"),
        Lease(ObjectJournal(answering("writes all the same")), "here").hold(),
    ):
        pass


def test_a_store_out_of_reach_is_one_sentence():
    with pytest.raises(UserError, match="must be readable and writable, got 'Connection refused'") as caught:
        ObjectJournal(answering("refuses all")).append({"event": "started"})
    assert "s3://bucket/study" in str(caught.value)


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "objects").write_text("a file")
    ledger = a_ledger(tmp_path, "objects")
    with pytest.raises(UserError, match="ledger must be readable and writable, got 'Not a directory'"):
        ledger.append("started", a_job(tmp_path))
    with pytest.raises(UserError, match="ledger must be readable and writable"), ledger.hold():
        pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("shared/study", "must be a URL such as s3://bucket/study"),
        ("sftp://host/study", "must be in a store that creates objects exclusively"),
        ("memory://study", "must be in a store that creates objects exclusively"),
        ("filecache::s3://bucket/study", "must be in a store that creates objects exclusively"),
        ("file://study", "must be absolute"),
        ("s3://", "must name a folder"),
    ],
)
def test_a_ledger_where_two_could_be_first_is_refused(tmp_path, url, said):
    shards = {name: tmp_path / name for name in "ab"}
    with pytest.raises(UsageError, match=f"`ledger` {said}"):
        StudyConfig.build(study_tree(shards, ledger=url), where="test")
    with pytest.raises(UserError, match=f"`ledger` {said}"):
        open_store(url)


def test_a_study_says_where_its_ledger_is(tmp_path):
    shards = {name: tmp_path / name for name in "ab"}
    study = StudyConfig.build(study_tree(shards), where="test")
    assert ledger_of(study, tmp_path / "out") == Ledger(tmp_path / "out" / "ledger.jsonl")
    study = StudyConfig.build(study_tree(shards, ledger=f"file://{tmp_path}/a%20b"), where="test")
    ledger = ledger_of(study, tmp_path / "out")
    ledger.append("started", a_job(tmp_path))
    assert (tmp_path / "a b" / "0000000001.json").is_file() and not (tmp_path / "out").exists()
    assert replace(ledger, url=None).read() == []


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_backend_that_is_not_installed_is_one_sentence(tmp_path):
    shards = {name: tmp_path / name for name in "ab"}
    study = StudyConfig.build(study_tree(shards, ledger="s3://bucket/study"), where="test")
    with pytest.raises(UserError, match=r"got none installed .*pip install 'cxrdist\[s3\]'"):
        ledger_of(study, tmp_path)
