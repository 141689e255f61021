"""How far a study is: read from run folders, shown on a terminal, told as Ray metrics."""

import contextlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from cxrdist.config import shipped
from cxrdist.log import get_logger
from cxrdist.study.gauges import COUNTERS, GAUGES, Gauges, gauges, values_of
from cxrdist.study.jobs import Job
from cxrdist.study.live import Lines, LiveTable, drawn
from cxrdist.study.outlook import Outlook, kinds_of
from cxrdist.study.progress import ended_progress, progress_of, progress_of_job
from cxrdist.study.standing import standings
from cxrdist.study.watching import Progress, Watchers
from cxrdist.train.metrics import MetricsLog
from cxrdist.train.run_folder import RunFolder


def make_job(name: str = "random--nih14--seed0", folder: Path = Path("none"), **facts) -> Job:
    kind, method = facts.pop("kind", "cell"), facts.pop("method", "train")
    tree = {"train": {"steps": 100}, "protocol": {"name": "finetune"}} | facts.pop("tree", {})
    return Job(kind, method, name, f"key-of-{name}", folder, tree, dataset="nih14", **facts)


def line_of(step: int, auroc: float | None = None, **values) -> str:
    values = {"auroc_macro": auroc, **values} if auroc is not None else {"loss": 0.5, "samples_per_sec": 20.0, **values}
    kind = "train" if auroc is None else "val"
    return json.dumps({"step": step, "kind": kind, "time": 1000.0 + step, **values}) + "\n"


# Run folders


def test_progress_read_in_any_pieces_is_that_of_the_whole_file(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    text = "".join(line_of(step, rng.random() if step % 3 == 0 else None) for step in range(1, 40)).encode()
    reader, whole = progress_of(tmp_path), progress_of(tmp_path)
    cuts = sorted(rng.sample(range(len(text)), 25))
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(text[start:end])
        reader.read()
    assert reader.read() == whole.read()
    assert (reader.known.step, reader.known.images_per_second) == (39, 20.0)
    assert reader.known.value == pytest.approx(json.loads(text.splitlines()[38])["auroc_macro"])


def test_what_was_read_is_not_read_again(tmp_path):
    metrics, reader = tmp_path / "metrics.jsonl", progress_of(tmp_path)
    metrics.write_text(line_of(10, 0.9) + line_of(20))
    assert reader.read().best == 0.9
    metrics.write_text(line_of(10, 0.1) + line_of(20) + line_of(30, 0.5))
    assert (reader.read().best, reader.known.value, reader.known.step) == (0.9, 0.5, 30)


def test_a_half_written_line_counts_when_it_is_whole(tmp_path):
    reader, line = progress_of(tmp_path), line_of(20, 0.8)
    (tmp_path / "metrics.jsonl").write_text(line_of(10) + line[:30])
    assert (reader.read().step, reader.known.value) == (10, None)
    (tmp_path / "metrics.jsonl").write_text(line_of(10) + line)
    assert (reader.read().step, reader.known.value) == (20, 0.8)


def test_a_resumed_run_is_followed_from_the_step_that_it_went_back_to(tmp_path):
    folder, reader = RunFolder(tmp_path), progress_of(tmp_path)
    log = MetricsLog(folder, step=0, enabled=True)
    log.write(10, "val", {"auroc_macro": 0.6})
    log.write(20, "val", {"auroc_macro": 0.9})
    log.write(25, "train", {"loss": 0.1, "samples_per_sec": 9.0})
    log.close()
    assert (reader.read().step, reader.known.best) == (25, 0.9)
    log = MetricsLog(folder, step=10, enabled=True)
    assert (reader.read().step, reader.known.best, reader.known.images_per_second) == (10, 0.6, None)
    log.write(20, "val", {"auroc_macro": 0.7})
    log.close()
    assert (reader.read().step, reader.known.best) == (20, 0.7)


def test_steps_are_those_of_the_configuration_that_stands_in_the_folder(tmp_path):
    reader = progress_of(tmp_path)
    assert reader.read() == Progress(tmp_path.name)
    (tmp_path / "config.yaml").write_text("train: {steps: 150}\n")
    (tmp_path / "metrics.jsonl").write_text(line_of(10))
    assert (reader.read().step, reader.known.steps) == (10, 150)
    assert progress_of_job(make_job(tree={"protocol": {"name": "knn"}})).read().steps == 0
    assert progress_of_job(make_job(tree={"train": {"steps": 100, "stop_at": 20}})).read().steps == 20


def test_a_look_at_other_datasets_has_no_steps_whatever_its_cell_has(tmp_path):
    job = make_job(folder=tmp_path, kind="external", method="external")
    for state in ("running", "done"):
        (row,) = standings([job], {job.identity: state}, {})
        assert (row.tree()["step"], row.tree()["steps"]) == (None, None)
    assert "cxrdist_trial_steps" not in values_of(1, progress_of_job(job).read())
    table = LiveTable("A study", todo=[job])
    table.started(job, 1, 1)
    table.progress(job, progress_of_job(job).read())
    assert "0/" not in "".join(table.lines(100, 20))


def test_a_pretraining_tells_its_loss_and_what_its_probe_finds(tmp_path):
    looked = {"step": 0, "kind": "val", "time": 1.0, "rankme": 3.0, "knn_auroc": 0.6, "probe_auroc": 0.7}
    blind = {"step": 9, "kind": "val", "time": 3.0, "rankme": 4.0, "probe_auroc": None}
    lines = [json.dumps(looked) + "\n", line_of(5, loss=2.5), json.dumps(blind) + "\n"]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    known = progress_of(tmp_path).read()
    assert (known.step, known.loss, known.value, known.value_step) == (9, 2.5, 0.7, 0)


def test_an_ended_job_tells_the_steps_it_made_and_the_score_it_was_chosen_by(tmp_path):
    job = make_job(folder=tmp_path)
    assert ended_progress(job) == Progress(job.name, steps=100)
    (tmp_path / "result.json").write_text(json.dumps({"steps": 60, "chosen_step": 40, "score": 0.75, "time": 9.0}))
    ended = ended_progress(job)
    assert (ended.step, ended.steps, ended.value, ended.value_step) == (60, 60, 0.75, 40)


def test_a_status_tells_how_far_jobs_are_and_why_some_failed(tmp_path):
    states = ["left", "done", "running", "stopped", "failed"]
    jobs = [make_job(f"cell{number}", tmp_path / str(number)) for number in range(10)]
    for number, job in enumerate(jobs):
        if number % 5:
            job.folder.mkdir()
            (job.folder / "metrics.jsonl").write_text(line_of(1) * 200 + line_of(30, 0.6) + line_of(40))
            if number % 5 == 1:
                (job.folder / "result.json").write_text('{"steps": 60, "chosen_step": 40, "score": 0.75}')
    reasons = {job.identity: "Its disk is full." for job in jobs}
    rows = [one.tree() for one in standings(jobs, {job.identity: states[n % 5] for n, job in enumerate(jobs)}, reasons)]
    told = [(row["state"], row["step"], row["steps"], row["validation_auroc"], row["reason"]) for row in rows[:5]]
    assert told == [
        ("left", None, None, None, None),
        ("done", 60, 60, 0.75, None),
        ("running", 40, 100, 0.6, None),
        ("stopped", 40, 100, 0.6, None),
        ("failed", 40, 100, 0.6, "Its disk is full."),
    ]
    json.dumps(rows)


# Those who watch


def test_one_who_fails_to_watch_is_left_out_and_the_study_goes_on(caplog):
    class Broken:
        def started(self, *facts):
            raise RuntimeError("no more paper")

    outlook = Outlook(1)
    watch = Watchers([Broken(), outlook])
    with caplog.at_level(logging.WARNING):
        watch.started(make_job(), 2, 1)
        watch.ended(make_job(), "done", "")
    assert outlook.done == 1
    assert caplog.messages == ["The study goes on without Broken: RuntimeError: no more paper"]


def test_the_time_left_is_that_of_jobs_alike_at_the_room_there_is():
    now = [0.0]
    stage = make_job("ssl", kind="stage", method="pretrain")
    cells = [make_job(f"cell{number}") for number in range(5)]
    outlook = Outlook(6, waiting=kinds_of([stage, *cells]), clock=lambda: now[0])
    outlook.started(stage, 1, 1)
    outlook.started(cells[0], 1, 1)
    assert outlook.left_s() is None  # nobody knows yet
    now[0] = 100.0
    outlook.ended(cells[0], "done", "")
    outlook.started(cells[1], 1, 1)
    outlook.progress(stage, Progress("ssl", 10, 110))
    now[0] = 110.0
    outlook.progress(stage, Progress("ssl", 20, 110))
    # The stage makes a step a second: 90 s.  Of cells, 90 s of one that runs, and three to come; two at a time.
    assert outlook.left_s() == pytest.approx((90 + 90 + 3 * 100) / 2)
    assert (outlook.queued, len(outlook.running), outlook.done) == (3, 2, 1)
    # What went on from a checkpoint is judged by what it did since, and the longest that runs holds the end.
    outlook.started(stage, 1, 2)
    outlook.progress(stage, Progress("ssl", 50, 1050))
    now[0] = 120.0
    outlook.progress(stage, Progress("ssl", 60, 1050))
    assert outlook.left_s() == pytest.approx(990)


def test_jobs_that_never_start_and_jobs_tried_again_are_counted_once():
    outlook = Outlook(3, done=1)
    outlook.started(make_job("a"), 2, 1)
    outlook.started(make_job("a"), 1, 2)
    outlook.ended(make_job("b"), "failed", "Stage ssl failed.")
    assert (outlook.queued, len(outlook.running), outlook.failed, outlook.done) == (0, 1, 1, 1)
    outlook.ended(make_job("a"), "done", "")
    assert (outlook.done, outlook.left_s()) == (2, 0.0)


# The terminal


class Screen:
    """What a person sees on a terminal of 100 columns after `written`; only what a live table needs."""

    def __init__(self, written: str) -> None:
        self.lines, self.cursor, row = [""], True, 0
        column = 0
        for escape, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written):
            if text:
                line = self.lines[row].ljust(column)
                self.lines[row] = line[:column] + text + line[column + len(text) :]
                column += len(text)
            elif escape == "\r":
                column = 0
            elif escape == "\n":
                row += 1
                self.lines += [""] * (row + 1 - len(self.lines))
            elif escape.endswith("A"):
                row -= int(escape[2:-1] or 1)
            elif escape.endswith("K"):
                self.lines[row] = ""
            elif escape in ("\x1b[?25l", "\x1b[?25h"):
                self.cursor = escape.endswith("h")
        self.lines = [line.rstrip() for line in self.lines]


@pytest.fixture
def terminal(monkeypatch):
    """Return a block in which standard error is a terminal; it gives a function that returns what was written to it."""
    return partial(_terminal, monkeypatch)


@contextlib.contextmanager
def _terminal(monkeypatch):
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    stream = os.fdopen(slave, "w", buffering=1)
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "16", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(logging.getLogger("cxrdist"), "level", logging.INFO)
    written = bytearray()

    def read() -> str:
        with contextlib.suppress(BlockingIOError):
            while True:
                written.extend(os.read(master, 1 << 16))
        return written.decode()

    yield read
    logging.getLogger().removeHandler(handler)
    monkeypatch.undo()
    stream.close()
    os.close(master)


def until(read, text: str) -> str:
    limit = time.monotonic() + 20
    while text not in read():
        assert time.monotonic() < limit, read()
        time.sleep(0.05)
    return read()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_live_table_shows_what_runs_and_leaves_the_terminal_clean(terminal, error):
    jobs = [make_job(f"random--nih14--seed{number}") for number in range(4)]
    with terminal() as read:
        before = sys.stderr
        with contextlib.suppress(KeyboardInterrupt, ValueError), drawn("A [red]study", jobs, [], 4) as watch:
            assert isinstance(watch, LiveTable)
            for number in (0, 1):
                watch.started(jobs[number], 2, 1)
            watch.progress(jobs[0], Progress(jobs[0].name, 60, 150, 0.812, 0.812, images_per_second=1234.0))
            get_logger("cxrdist.somewhere").info("A log line.")
            until(read, "60/150")
            watch.ended(jobs[0], "done", "")
            watch.ended(jobs[1], "failed", "Its disk is full.")
            watch.ended(jobs[2], "failed", "Another failed.")
            if error:
                raise error
        assert sys.stderr is before
        get_logger("cxrdist.somewhere").info("Another.")
        shown = until(read, "Another.")
    row = next(line for line in shown.splitlines() if "60/150" in line)
    assert row.split()[:7] == ["random--nih14--seed0", "1", "2", "60/150", "-", "0.812", "1,234"]
    assert "A [red]study" in shown and "nih14 0.812 (random--nih14--seed0)" in shown
    screen = Screen(shown)
    assert screen.cursor
    assert [re.sub(r"after.*", "", line) for line in screen.lines if line] == [
        "A log line.",
        "random--nih14--seed1 failed: Its disk is full.",
        "study: 1 queued, 0 running, 1 done, 2 failed, ",
        "Another.",
    ]


@pytest.mark.parametrize(("width", "height"), [(100, 16), (80, 10), (200, 50), (20, 5)])
def test_a_live_table_is_a_screenful_at_most_in_plain_characters(width, height):
    jobs = [make_job(f"supervised--nih14--all-images--seed{number}") for number in range(30)]
    table = LiveTable("A study", todo=jobs)
    for job in jobs:
        table.started(job, 2, 1)
        table.progress(job, Progress(job.name, 1000, 100_000, 0.5, 0.5, loss=0.25, images_per_second=12345.0))
    lines = table.lines(width, height)
    assert len(lines) <= max(height - 1, 6) and all(len(line) <= width for line in lines)
    assert "".join(lines).isascii()
    if width >= 80:
        rows = [line for line in lines if "1,000/100,000" in line]
        assert all(row.startswith("superv") and "seed" in row and "12,345" in row for row in rows)
        hidden = next((line for line in lines if "more that run" in line), "and 0")
        assert len(rows) + int(hidden.split()[1]) == 30
        assert "0 queued, 30 running, 0 done, 0 failed" in lines


def test_without_a_terminal_there_are_the_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("cxrdist.log.PLAIN_LINE_EVERY_S", 0.0)
    jobs = [make_job(f"cell{number}") for number in range(3)]
    with drawn("A study", jobs[1:], jobs[:1], 3) as watch:
        assert isinstance(watch, Lines)
        watch.started(jobs[1], 1, 1)
        watch.progress(jobs[1], Progress("cell1", 5, 10))
        watch.ended(jobs[1], "failed", "It broke.")
        watch.ended(jobs[2], "done", "")
    lines = [re.sub(r", [^,]*(/s|each), .* left", "", line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "study: 1/3 jobs (33 %)",
        "cell1 failed: It broke.",
        "study: 2/3 jobs (66 %), cell1 failed",
        "study: 3/3 jobs (100 %), cell2 done",
    ]


def test_nothing_is_shown_where_nothing_shall_be(terminal):
    with terminal() as read:
        with drawn("A study", [make_job()], [], 1, shown=False) as watch:
            watch.ended(make_job(), "done", "")
        assert read() == ""


# TensorBoard


def test_tensorboard_shows_each_cell_under_its_name(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer  # noqa: PLC0415 - slow

    for name in ("random--nih14--seed0", "ssl--nih14--seed0"):
        (tmp_path / "cells" / name).mkdir(parents=True)
        log = MetricsLog(RunFolder(tmp_path / "cells" / name), step=0, enabled=True)
        log.write(10, "val", {"auroc_macro": 0.6})
        log.close()
    board = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "cells"))
    board.Reload()
    assert sorted(board.Runs()) == ["random--nih14--seed0/tb", "ssl--nih14--seed0/tb"]
    assert board.Tensors("ssl--nih14--seed0/tb", "val/auroc_macro")[0].step == 10


# Ray's metrics


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_metrics_that_fail_are_one_warning_and_the_study_goes_on(monkeypatch, caplog):
    def fail(self):
        raise RuntimeError("no agent\nand more")

    monkeypatch.setattr(Gauges, "refresh", fail)
    with gauges("A study", total=1, every_s=0.01) as watch:
        watch.ended(make_job(), "done", "")
        time.sleep(0.1)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "The study goes on without Gauges: RuntimeError: no agent"


WATCHED = """
import sys, time, urllib.request
from functools import partial
from pathlib import Path
import ray
from cxrdist.dispatch.cluster import cluster
from cxrdist.study.gauges import gauges
from cxrdist.study.jobs import Job
from cxrdist.study.standing import standings
from cxrdist.study.watching import Progress

def scrape():
    node = ray.nodes()[0]
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as page:
        return page.read().decode()

def until(told):
    limit = time.monotonic() + 60
    while True:
        text = scrape()
        if told(text):
            return text
        assert time.monotonic() < limit, text
        time.sleep(0.2)

job = Job("cell", "train", "dinov2--vindr_cxr--seed0", "key", Path("none"), {})
out = Path(sys.argv[1])
with cluster(None, name="cxrdist study A study"), gauges("A study", total=5, done=1, every_s=0.3) as watch:
    (out / "address").write_text(ray._private.worker.global_worker.node.address_info["webui_url"])
    watch.started(job, 2, 1)
    watch.started(job, 2, 2)
    watch.progress(job, Progress(job.name, 60, 150, 0.812, 0.83, images_per_second=1234.0))
    mine = 'state="running",study="A study"'
    ours = lambda text: "validation_auroc{" in text and "restarts_total{" in text and "ray_resources{" in text
    (out / "running").write_text(until(ours))
    with urllib.request.urlopen(f"http://{(out / 'address').read_text()}/api/jobs/") as page:
        (out / "jobs").write_bytes(page.read())
    watch.ended(job, "failed", "It broke.")
    (out / "ended").write_text(until(lambda text: "ray_cxrdist_trial_step{" not in text and "failures_total{" in text))
"""


def samples_of(text: str) -> dict[tuple[str, str, str, str], float]:
    """Return our values by name, study, trial or state, and kind."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - only here

    return {
        (
            sample.name.removeprefix("ray_cxrdist_"),
            sample.labels["study"],
            sample.labels.get("trial", sample.labels.get("state", "")),
            sample.labels.get("kind", ""),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ray_cxrdist_")
    }


@pytest.mark.slow
def test_a_scrape_of_the_node_shows_the_trials_that_run_and_no_others(tmp_path):
    settings = {
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_AUTH_MODE": "disabled",
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", WATCHED, str(tmp_path)], check=True, env={**os.environ, **settings})
    text = (tmp_path / "running").read_text()
    trial = ("A study", "dinov2--vindr_cxr--seed0", "cell")
    counted = {"queued": 3, "running": 1, "done": 1, "failed": 0, "stopped": 0}
    assert samples_of(text) == {
        ("trial_step", *trial): 60,
        ("trial_steps", *trial): 150,
        ("trial_workers", *trial): 2,
        ("trial_validation_auroc", *trial): 0.812,
        ("trial_images_per_second", *trial): 1234,
        ("trial_restarts_total", "A study", "", "cell"): 1,
        **{("trials", "A study", state, ""): count for state, count in counted.items()},
    }
    assert {f"ray_{name}" for name in GAUGES} <= set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert [job["metadata"] for job in json.loads((tmp_path / "jobs").read_text())] == [
        {"job_name": "cxrdist study A study"}
    ]
    ended = samples_of((tmp_path / "ended").read_text())
    assert {name for name, *_ in ended} == {"trials", "trial_restarts_total", "trial_failures_total"}
    assert ended["trial_failures_total", "A study", "", "cell"] == 1


def test_the_dashboard_asks_for_metrics_that_are_there():
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES  # noqa: PLC0415 - slow

    board = json.loads((shipped("launch") / "ray/grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked += [variable["definition"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    known = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS} | {"ray_resources"}
    known |= {f"ray_{name}" for name in METRICS_GAUGES}
    named = {name for text in asked for name in re.findall(r"\bray_\w+", text)}
    assert len(asked) > 12 and named <= known
    assert {f"ray_{name}" for name in GAUGES} <= named
    labels = {label for _, labels in [*GAUGES.values(), *COUNTERS.values()] for label in labels}
    of_ray = {"instance", "GpuIndex", "Name", "State"}
    used = {label for text in asked for label in re.findall(r'(\w+)=~?"', text)}
    assert used <= labels | of_ray
