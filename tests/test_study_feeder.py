"""Which trial is started next, as Ray Tune asks for it; no cluster."""

import errno

import pytest
from ray.tune.search import Searcher

from cxrdist.study import feeder as feeding
from cxrdist.study import room
from cxrdist.study.feeder import Feeder
from cxrdist.study.graph import Graph
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import Ledger
from cxrdist.study.resources import Resources, TrialResources
from cxrdist.study.watching import Watchers


class Cluster:
    """Machines of two CPUs, and a feeder that sees them."""

    def __init__(self, folder, monkeypatch, machines=2):
        self.machines, self.folder, self.monkeypatch = machines, folder, monkeypatch
        monkeypatch.setattr(room, "alive", lambda: [{"CPU": 2.0}] * self.machines)
        monkeypatch.setattr(room, "LOOK_EVERY_S", 0.0)

    def feed(self, *jobs, **resources):
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        states = self.ledger.states(jobs)
        self.feeder = Feeder(
            Graph(jobs, states, self.ledger, Watchers()), self.ledger, Resources(**resources), Watchers()
        )
        self.asked = 0
        return self

    def ask(self):
        """Return the name of the next trial's job and its workers, with the trial's own name; or what comes instead."""
        self.asked += 1
        found = self.feeder.suggest(str(self.asked))
        return (found["name"], found["workers"]) if isinstance(found, dict) else found

    def end(self, trial, outcome="done", reason=""):
        self.feeder.on_trial_complete(str(trial), {"outcome": outcome, "reason": reason})

    def lose(self, trial):
        self.feeder.on_trial_complete(str(trial), error=True)

    def failures(self):
        return {name: reason for (_, name, _), reason in self.ledger.failures().items()}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    return Cluster(tmp_path, monkeypatch)


def job(name, workers=1, needs=(), **resources):
    held = TrialResources(workers=workers, **resources)
    return Job("stage", "train", name, name, None, {}, tuple(one.identity for one in needs), resources=held)


def test_a_job_comes_after_all_it_needs_and_others_meanwhile(cluster):
    first = job("first")
    cluster.feed(first, job("after", needs=[first]), job("beside"))
    assert [cluster.ask() for _ in range(3)] == [("first", 1), ("beside", 1), None]
    cluster.end(1)
    assert cluster.ask() == ("after", 1)
    cluster.end(2)
    assert cluster.ask() is None
    cluster.end(4)
    assert cluster.ask() == Searcher.FINISHED


def test_what_needs_a_failed_job_fails_with_its_reason_and_the_rest_goes_on(cluster):
    first = job("first")
    second = job("second", needs=[first])
    cluster.feed(first, second, job("third", needs=[second]), job("beside"))
    assert [cluster.ask(), cluster.ask()] == [("first", 1), ("beside", 1)]
    cluster.end(1, "failed", "Bad.")
    cluster.end(2)
    assert cluster.ask() == Searcher.FINISHED
    assert cluster.failures() == {
        "second": "Stage first failed: Bad.",
        "third": "Stage second failed: Stage first failed: Bad.",
    }


def test_a_lost_attempt_is_made_again_first_and_fails_after_the_last(cluster):
    cluster.feed(job("a", retries=1), job("b"), job("c"))
    assert cluster.ask() == ("a", 1)
    cluster.lose(1)
    assert cluster.ask() == ("a", 1)
    cluster.lose(2)
    assert cluster.ask() == ("b", 1)
    assert cluster.failures() == {"a": "Its process on the cluster was lost, attempt 2 of 2."}


def test_a_job_goes_on_with_fewer_workers_where_machines_are_gone_but_not_with_too_few(cluster):
    cluster.feed(job("a", workers=4, min_workers=2), job("b", workers=4), patience=0)
    assert [cluster.ask(), cluster.ask()] == [("a", 4), ("b", 4)]
    cluster.machines = 1
    cluster.lose(1)
    cluster.lose(2)
    assert cluster.ask() == ("a", 2)
    cluster.end(3)
    assert cluster.ask() == Searcher.FINISHED
    assert cluster.failures()["b"].startswith(
        "A trial must fit on the cluster, got 4 workers of 1 CPUs and 0 GPUs for 1 "
    )


def test_a_job_that_does_not_fit_lets_others_pass_until_a_machine_comes(cluster):
    cluster.feed(job("large", workers=6), job("small"))
    assert [cluster.ask(), cluster.ask()] == [("small", 1), None]
    cluster.end(1)
    assert cluster.ask() is None
    cluster.machines = 3
    assert cluster.ask() == ("large", 6)


def test_a_trial_whose_place_is_gone_before_it_started_is_taken_back_and_counts_as_no_attempt(cluster):
    cluster.feed(job("a", workers=4, min_workers=1, retries=0))
    assert cluster.ask() == ("a", 4)
    assert not cluster.feeder.impossible("1")
    cluster.machines = 1
    assert cluster.feeder.impossible("1")
    cluster.feeder.on_trial_complete("1")
    assert cluster.ask() == ("a", 2)
    cluster.feeder.started("2")
    cluster.machines = 0
    assert not cluster.feeder.impossible("2"), "what runs ends by itself"


def test_nothing_overtakes_a_trial_that_has_waited_long_for_its_place(cluster, monkeypatch):
    cluster.feed(job("small"), job("large", workers=4), job("late"))
    assert [cluster.ask(), cluster.ask()] == [("small", 1), ("large", 4)]
    monkeypatch.setattr(feeding, "HOLD_S", 0.0)
    cluster.feeder.started("1")
    assert cluster.ask() is None
    cluster.feeder.started("2")
    assert cluster.ask() == ("late", 1)


def test_few_trials_wait_for_a_place_and_no_more_run_than_allowed(cluster):
    cluster.feed(*[job(str(number)) for number in range(9)])
    assert [cluster.ask() is None for _ in range(6)] == [False] * 4 + [True] * 2
    cluster.feed(*[job(str(number)) for number in range(9)], max_concurrent=2)
    assert [cluster.ask() is None for _ in range(3)] == [False, False, True]
    cluster.feeder.started("1")
    assert cluster.ask() is None
    cluster.end(1)
    assert cluster.ask() == ("2", 1)


def test_a_ledger_that_cannot_be_written_ends_the_run_after_what_is_running(cluster):
    cluster.feed(job("a"), job("b"), job("c"))
    assert [cluster.ask(), cluster.ask()] == [("a", 1), ("b", 1)]
    cluster.end(1, "unwritten", "The disk is full.")
    assert cluster.ask() is None
    cluster.end(2)
    assert cluster.ask() == Searcher.FINISHED
    assert cluster.feeder.broken == "The disk is full."


def test_what_waits_for_the_cluster_to_grow_holds_nobody_back_and_fails_in_the_end(cluster, monkeypatch):
    cluster.feed(job("large", workers=8), job("a"), job("b"), autoscaling=True, patience=100)
    clock = [0.0]
    monkeypatch.setattr(feeding.time, "monotonic", lambda: clock[0])
    assert cluster.ask() == ("large", 8)
    clock[0] = 50.0
    assert [cluster.ask(), cluster.ask()] == [("a", 1), ("b", 1)]
    assert not cluster.feeder.impossible("1")
    clock[0] = 101.0
    assert cluster.feeder.impossible("1")
    cluster.feeder.on_trial_complete("1")
    assert cluster.failures()["large"].startswith("A trial must fit on the cluster, got 8 workers")


def test_a_disk_that_refuses_ends_the_run_with_a_sentence(cluster, monkeypatch):
    cluster.feed(job("a"), job("b"))
    assert cluster.ask() == ("a", 1)

    def refuse(*about):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cluster.feeder.source, "ended", refuse)
    cluster.end(1)
    assert cluster.ask() == Searcher.FINISHED
    assert "No space left on device" in cluster.feeder.broken and "Traceback" not in cluster.feeder.broken


def test_that_nothing_runs_for_want_of_a_place_is_said_once_and_only_then(cluster, monkeypatch, caplog):
    caplog.set_level("INFO", logger="cxrdist")
    clock = [0.0]
    monkeypatch.setattr(feeding.time, "monotonic", lambda: clock[0])
    cluster.feed(job("a"), job("b"), job("c"))
    assert [cluster.ask(), cluster.ask()] == [("a", 1), ("b", 1)]
    cluster.feeder.started("1")
    clock[0] = 40.0
    cluster.ask()
    cluster.end(1)  # for a moment nothing runs
    cluster.ask()
    assert not [line for line in caplog.messages if "waits for its place" in line]
    clock[0] = 71.0
    cluster.ask()
    cluster.ask()
    assert len([line for line in caplog.messages if line.startswith("b waits for its place")]) == 1
