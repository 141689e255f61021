"""Sweeps that run: the driver's decisions after a kill, populations, Optuna, and the whole command on Ray."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import finetune_tree, make_shards
from safetensors.torch import load_file

from cxrdist.config import override, read_yaml, write_yaml
from cxrdist.errors import UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import Ledger, claim
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.sweep.draws import draw
from cxrdist.study.sweep.history import History
from cxrdist.study.sweep.importance import importances
from cxrdist.study.sweep.journal import Journal
from cxrdist.study.sweep.plan import Planner, Trial
from cxrdist.study.sweep.population import Population, explore, inherit, next_generation
from cxrdist.study.sweep.results import gather
from cxrdist.study.sweep.run import build_source, run_sweep, write_findings
from cxrdist.study.sweep.source import SweepSource
from cxrdist.study.sweep.space import Space
from cxrdist.study.watching import Progress
from cxrdist.train.metrics import read_metrics
from cxrdist.world import World

SEARCH = {"optim.lr": {"loguniform": [1e-4, 1e-2]}, "optim.weight_decay": {"choice": [0, 0.05, 0.3]}}
SPACE = Space.model_validate(SEARCH["optim.lr"])
ASHA = {"name": "asha", "grace": 10, "reduction": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("sweep"), patients=30)


def sweep_tree(shards: Path, *, steps: int = 80, every: int = 10, **changes: Any) -> dict[str, Any]:
    run = finetune_tree(shards, steps=steps, evaluate_every=every, checkpoint_every=every)
    return {"title": "Tiny", "run": run, "search": SEARCH, "trials": 8, "scheduler": ASHA, **changes}


def sweep(shards: Path, **changes: Any) -> SweepConfig:
    return SweepConfig.build(sweep_tree(shards, **changes), where="sweep.yaml")


def value_of(trial: Trial, step: int) -> float:
    """Return what a validation finds that is as good as a function of the values and the step."""
    worth = random.Random(f"{trial.values} {trial.job.key}").random()
    return round(0.5 + 0.4 * worth * step / (step + 20), 3)


class KilledError(Exception):
    """The driver's end."""


class Drawn:
    """Runs the jobs of a sweep as the cluster would, with made-up validations; several at a time, in turn."""

    def __init__(
        self,
        config: SweepConfig,
        out: Path,
        *,
        at_a_time: int = 3,
        kill_after: int | None = None,
        fails: Sequence[str] = (),
    ) -> None:
        self.fails = fails
        self.ledger = Ledger(out / "ledger.jsonl")
        self.source: SweepSource = build_source(config, out, self.ledger)
        self.kill_after, self.events = kill_after, 0
        self.started: list[str] = []
        self.began_with: dict[str, list[str]] = {}
        """By trial, the checkpoints that lay there when it was started."""
        running: list[Job] = []
        while running or self.source.left():
            while len(running) < at_a_time and (job := self.source.next()) is not None:
                self.started.append(job.name)
                self.began_with[job.name] = [path.name for path in (job.folder / "checkpoints").glob("step-*")]
                claim(job)
                self.ledger.append("started", job)
                running.append(job)
            job = running.pop(0)
            if self.advance(self.source.trials[job.identity]):
                running.append(job)

    def advance(self, trial: Trial) -> bool:
        """Make one more validation of a trial; return whether it goes on."""
        job = trial.job
        if job.name in self.fails:
            self.ledger.append("failed", job, error="Loss is not finite.")
            self.source.ended(job, "failed", "Loss is not finite.")
            return False
        seen = read_metrics(job.folder / "metrics.jsonl")
        step = seen[-1]["step"] if seen else trial.from_step
        if step < trial.to_step:  # else the kill came before the end was told
            step += 10
            with (job.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "kind": "val", "auroc_macro": value_of(trial, step)}) + "\n")
        self.tick()
        if not self.source.reported(job, Progress(job.name, step, value_step=step)):
            self.source.ended(job, "stopped", "")
            return False
        if step >= trial.to_step:
            (job.folder / "model").mkdir(exist_ok=True)
            (job.folder / "model" / "model.safetensors").touch()
            (job.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
            (job.folder / "result.json").write_text("{}")
            self.ledger.append("done", job)
            self.tick()
            self.source.ended(job, "done", "")
            return False
        return True

    def tick(self) -> None:
        self.events += 1
        if self.events == self.kill_after:
            raise KilledError

    def told(self) -> dict[str, Any]:
        history = self.source.history
        return {name: (history.ended[name], history.values.get(name, [])) for name in sorted(history.ended)}


@pytest.mark.parametrize("scheduler", [ASHA, {"name": "median", "grace": 20, "fewest": 2}])
def test_killed_driver_goes_on_with_its_rungs_and_repeats_no_ended_trial(shards, tmp_path, scheduler):
    config = sweep(shards, scheduler=scheduler)
    # One after the other: which of several reports is first is the cluster's affair, and not the same twice.
    whole = Drawn(config, tmp_path / "whole", at_a_time=1)
    outcomes = {outcome for outcome, _ in whole.told().values()}
    assert outcomes == {"done", "stopped"}
    for kill_after in range(2, whole.events, 11):
        out = tmp_path / f"killed{kill_after}"
        with pytest.raises(KilledError):
            Drawn(config, out, at_a_time=1, kill_after=kill_after)
        before = build_source(config, out, Ledger(out / "ledger.jsonl")).history.ended
        again = Drawn(config, out, at_a_time=1)
        assert again.told() == whole.told()
        assert not set(before) & set(again.started)
        again_and_again = Drawn(config, out, at_a_time=1)
        assert again_and_again.started == [] and again_and_again.told() == whole.told()


def test_rungs_are_each_strategys_own(shards, tmp_path):
    alone = Drawn(sweep(shards, strategies={"a": {}}), tmp_path / "alone", at_a_time=1).told()
    other = {"set": {"model.drop_path": 0.1}}
    both = Drawn(sweep(shards, strategies={"a": {}, "b": other}), tmp_path / "both", at_a_time=1).told()
    assert {name: one for name, one in both.items() if name.startswith("a--")} == alone


def test_more_trials_later_keep_the_earlier_ones(shards, tmp_path):
    few = Drawn(sweep(shards, trials=4), tmp_path)
    more = Drawn(sweep(shards, trials=8), tmp_path)
    assert len(more.started) == 4 and not set(more.started) & set(few.started)
    assert {name: more.told()[name] for name in few.told()} == few.told()


def test_another_rule_learns_from_what_has_ended_and_lets_stopped_trials_go_on(shards, tmp_path):
    first = Drawn(sweep(shards), tmp_path)
    stopped = {name for name, (outcome, _) in first.told().items() if outcome == "stopped"}
    second = Drawn(sweep(shards, scheduler={"name": "none"}), tmp_path)
    assert stopped and set(second.started) == stopped
    assert {outcome for outcome, _ in second.told().values()} == {"done"}


def test_validations_are_all_seen_however_seldom_somebody_looks(shards, tmp_path):
    source = build_source(sweep(shards), tmp_path, Ledger(tmp_path / "ledger.jsonl"))
    job = source.next()
    assert job is not None
    job.folder.mkdir(parents=True)
    lines = [{"step": step, "kind": kind, "auroc_macro": 0.6} for step in (10, 20, 30) for kind in ("train", "val")]
    lines.insert(3, {"step": 15, "kind": "val", "auroc_macro": None})  # of one class alone
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert source.reported(job, Progress(job.name, 30, value_step=30))
    assert source.history.values[job.name] == [(10, 0.6), (20, 0.6), (30, 0.6)]
    assert len((tmp_path / "rungs.jsonl").read_text().splitlines()) == 3


def test_page_escapes_and_says_so_where_too_few_trials_tell_what_matters(shards, tmp_path):
    title = "<script>alert(1)</script>\nb: $x$"
    config = sweep(shards, title=title, search={**SEARCH, "loss.name": {"choice": ["bce", "focal"]}})
    run = Drawn(config, tmp_path)
    found = gather(config, list(run.source.trials.values()), run.source.history)
    page = write_findings(found, tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "too few to say what mattered" in page
    assert sorted(path.name for path in (tmp_path / "report" / "figures").glob("*.svg")) == [
        "history.svg",
        "parallel.svg",
    ]
    header = (tmp_path / "best" / "run.yaml").read_text().splitlines()[0]
    assert "<script>alert(1)</script> b: $x$" in header


def test_importance_finds_the_value_that_mattered_at_a_step_that_all_trials_came_to(shards, tmp_path):
    config = sweep(shards, trials=16)
    trials = Planner.of(config, tmp_path).trials(draw(config))
    history = History()
    for trial in trials:
        worth = 0.5 + SPACE.share(trial.values["optim.lr"]) / 4
        history.values[trial.job.name] = [(10, worth), *([(20, 0.9 - worth)] if trial.number % 2 else [])]
    step, found = importances(config, list(gather(config, trials, history).rows))
    assert step == 10 and [one.name for one in found] == ["optim.lr", "optim.weight_decay"]
    assert found[0].mean > 5 * found[1].mean and found[0].spread > 0


def test_population_replaces_the_worst_by_the_best_with_changed_values(shards):
    config = sweep(shards, scheduler={"name": "pbt", "every": 20, "quantile": 0.25})
    values = dict(enumerate(draw(config)))
    results = {member: 0.5 + member / 100 for member in values if member != 5}
    heirs = next_generation(config, 1, values, results)
    assert heirs == next_generation(config, 1, values, results)
    replaced = {member for member, heir in heirs.items() if heir.donor != member}
    assert replaced == {0, 5}  # the worst, and who has failed
    assert {heirs[member].donor for member in replaced} <= {6, 7}
    assert all(heirs[member].values == values[member] for member in values if member not in replaced)
    for member in replaced:
        assert heirs[member].values == explore(config, 1, member, values[heirs[member].donor])
    factors = set()
    for generation in range(200):
        changed = explore(config, generation, 0, {"optim.lr": 1e-3, "optim.weight_decay": 0.05})
        assert 1e-4 <= changed["optim.lr"] <= 1e-2 and changed["optim.weight_decay"] in (0, 0.05, 0.3)
        factors.add(changed["optim.lr"])
    assert {8e-4, 1.2e-3} < factors


def test_killed_population_goes_on_as_if_nothing_had_been(shards, tmp_path):
    config = sweep(shards, scheduler={"name": "pbt", "every": 20}, trials=4)
    whole = Drawn(config, tmp_path / "whole")
    assert len(whole.told()) == 4 * 4
    donors = {trial.job.name: trial.donor and trial.donor.name for trial in whole.source.trials.values()}
    assert any(donor and donor.partition("--gen")[0] != name.partition("--gen")[0] for name, donor in donors.items())
    for kill_after in range(3, whole.events, 11):
        out = tmp_path / f"killed{kill_after}"
        with pytest.raises(KilledError):
            Drawn(config, out, kill_after=kill_after)
        again = Drawn(config, out)
        assert again.told() == whole.told()
        assert donors == {trial.job.name: trial.donor and trial.donor.name for trial in again.source.trials.values()}


def test_every_report_is_written_once_however_often_a_population_is_begun_again(shards, tmp_path):
    config = sweep(shards, scheduler={"name": "pbt", "every": 20}, trials=4)
    Drawn(config, tmp_path)
    before = (tmp_path / "rungs.jsonl").read_text()
    assert Drawn(config, tmp_path).started == [] and (tmp_path / "rungs.jsonl").read_text() == before


def test_member_that_has_failed_is_replaced_for_good_and_no_reason_to_fail(shards, tmp_path):
    config = sweep(shards, scheduler={"name": "pbt", "every": 20}, trials=4)
    first = Drawn(config, tmp_path, fails=["run--0001--gen1"])
    assert [name for name, (how, _) in first.told().items() if how == "failed"] == ["run--0001--gen1"]
    page = run_sweep(config, tmp_path)  # all have ended: no cluster is needed
    checks = (page.parent / "checks.csv").read_text()
    assert "Without an end: run--0001--gen1." in checks
    assert "Loss is not finite." in (page.parent / "trials.csv").read_text()


def test_trial_at_its_end_is_not_stopped_by_a_rung_that_stands_there(shards, tmp_path):
    for name, scheduler in {"asha": {**ASHA, "grace": 80}, "median": {"name": "median", "grace": 80}}.items():
        run = Drawn(sweep(shards, scheduler=scheduler), tmp_path / name, at_a_time=1)
        assert {outcome for outcome, _ in run.told().values()} == {"done"}
        assert Drawn(sweep(shards, scheduler=scheduler), tmp_path / name).told() == run.told()


def test_full_disk_is_told_of_the_sweep_and_not_of_a_study(tmp_path):
    (tmp_path / "rungs.jsonl").mkdir()
    with pytest.raises(UserError, match=r"^The folder must be writable, got 'Is a directory'"):
        Journal(tmp_path / "rungs.jsonl").append({})


@pytest.mark.parametrize("change", [{"trials": 6}, {"every": 40}, {"seed": 1}])
def test_changed_population_goes_on_from_checkpoints_of_its_own(shards, tmp_path, change):
    """Folders of later generations that lie there are of other members: theirs are no reason to start from nothing."""

    def population(*, trials: int = 4, every: int = 20, seed: int = 0) -> SweepConfig:
        return sweep(shards, scheduler={"name": "pbt", "every": every}, trials=trials, seed=seed)

    first = Drawn(population(), tmp_path / "changed")
    with pytest.raises(KilledError):
        Drawn(population(**change), tmp_path / "changed", kill_after=10)
    changed = Drawn(population(**change), tmp_path / "changed")
    for trial in changed.source.trials.values():
        if trial.donor is not None and trial.job.name in changed.started:
            assert f"step-{trial.from_step:08d}" in changed.began_with[trial.job.name]
    assert changed.told() == Drawn(population(**change), tmp_path / "new").told()
    back = Drawn(population(), tmp_path / "changed")
    assert back.told() == first.told()


def test_member_without_its_donors_checkpoint_is_a_sentence(shards, tmp_path):
    planner = Planner.of(sweep(shards, scheduler={"name": "pbt", "every": 20}, trials=4), tmp_path)
    first = Population(planner).more(History())
    heir = planner.trial("run", 0, first[1].values, generation=1, donor=first[1])
    with pytest.raises(UserError, match="goes on from its donor's checkpoint, got none for run--0000--gen1"):
        inherit(heir)


def test_optuna_asks_the_same_again_after_a_kill(shards, tmp_path):
    pytest.importorskip("optuna")
    config = sweep(shards, algorithm={"name": "optuna", "startup": 3, "parallel": 1}, trials=7)
    whole = Drawn(config, tmp_path / "whole", at_a_time=1)
    values = {trial.number: trial.values for trial in whole.source.trials.values()}
    assert sorted(values) == list(range(7)) and len({one["optim.lr"] for one in values.values()}) == 7
    with pytest.raises(KilledError):
        Drawn(config, tmp_path / "killed", at_a_time=1, kill_after=whole.events // 2)
    again = Drawn(config, tmp_path / "killed", at_a_time=1)
    assert {trial.number: trial.values for trial in again.source.trials.values()} == values
    assert again.told() == whole.told()


def test_optuna_that_is_not_there_is_a_sentence(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs the library optuna, got none. Install it: pip install 'cxrdist"):
        build_source(sweep(shards, algorithm={"name": "optuna"}), tmp_path, Ledger(tmp_path / "ledger.jsonl"))


@pytest.mark.slow
def test_member_goes_on_from_its_donor_with_its_own_values(shards, tmp_path):
    """The order of the images and the optimizer's state go on; rate and decay are the member's own."""
    config = sweep(shards, steps=8, every=4, scheduler={"name": "pbt", "every": 4}, trials=4)
    planner = Planner.of(config, tmp_path)

    def train(trial: Trial) -> dict[str, torch.Tensor]:
        inherit(trial)
        finetune(FinetuneConfig.build(trial.job.tree, where="run"), trial.job.folder, world=World(), resume="auto")
        return load_file(trial.job.folder / "model" / "model.safetensors")

    def last(trial: Trial) -> dict[str, Any]:
        lines = read_metrics(trial.job.folder / "metrics.jsonl")
        assert [line["step"] for line in lines if line["kind"] == "train"] == list(
            range(trial.from_step + 1, trial.to_step + 1)
        )
        return {name: value for name, value in lines[-1].items() if name != "time"}

    values = {"optim.lr": 1e-3, "optim.weight_decay": 0.05}
    donor = planner.trial("run", 0, values, generation=0, stop_at=4)
    train(donor)
    uninterrupted = planner.trial("run", 1, values)
    train(uninterrupted)
    same = planner.trial("run", 2, values, generation=1, donor=donor)
    train(same)
    assert last(same) == last(uninterrupted)
    still = planner.trial("run", 3, values | {"optim.lr": 1e-4}, generation=1, donor=donor)
    still.job.tree["optim"]["lr"] = 1e-30
    train(still)
    checkpoint = "checkpoints/step-00000008"
    assert last(still)["loss"] == pytest.approx(last_of(donor), rel=1e-6)
    assert (still.job.folder / checkpoint).is_dir() and (donor.job.folder / "checkpoints/step-00000004").is_dir()


def last_of(trial: Trial) -> float:
    return float(read_metrics(trial.job.folder / "metrics.jsonl")[-1]["loss"])


def start(root: Path, *arguments: object) -> subprocess.Popen:
    environment = os.environ | {"HOME": str(root), "XDG_DATA_HOME": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cxrdist", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_sweep_whose_driver_was_killed_ends_as_an_undisturbed_one(shards, tmp_path):
    tree = sweep_tree(shards, steps=24, every=4, trials=4, scheduler={"name": "asha", "grace": 4, "reduction": 2})
    write_yaml(override(tree, {"resources": {"max_concurrent": 1}, "run.optim.lr": 1e-3}), tmp_path / "sweep.yaml")
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    process = start(tmp_path, tmp_path / "sweep.yaml", "--out", whole)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    assert "Report: " in out

    process = start(tmp_path, tmp_path / "sweep.yaml", "--out", halved)
    end = time.monotonic() + 400
    while '"done"' not in (halved / "ledger.jsonl").read_text() if (halved / "ledger.jsonl").exists() else True:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    before = {line["name"] for line in ledger(halved) if line["event"] == "done"}
    process = start(tmp_path, tmp_path / "sweep.yaml", "--out", halved, "--json")
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["failed_checks"] == []
    started = [line["name"] for line in ledger(halved) if line["event"] == "started"]
    assert before and all(started.count(name) == 1 for name in before)

    def judged(folder: Path) -> list[tuple]:
        lines = [json.loads(line) for line in (folder / "rungs.jsonl").read_text().splitlines()]
        return [(line["name"], line["step"], line["value"], line["goes_on"]) for line in lines]

    assert judged(halved) == judged(whole)
    for name in ("best/run.yaml", "sweep.yaml"):
        assert read_yaml(halved / name) == read_yaml(whole / name)
    opened = [path for path in halved.rglob("*") if path.name.startswith("test")]
    assert opened == []  # neither predictions of the test split nor a line that it was read
    shutil.rmtree(halved)


def ledger(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
