"""What a study would run, and what the ledger knows of it; no cluster."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import finetune_tree, make_shards, study_tree

from cxrdist.cli.main import run
from cxrdist.config import Tree, override, read_tree, read_yaml, shipped, write_yaml
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.study.choice import Chosen
from cxrdist.study.config import StudyConfig
from cxrdist.study.folders import make_way
from cxrdist.study.graph import Graph
from cxrdist.study.jobs import Identity, Job
from cxrdist.study.ledger import Ledger, claim
from cxrdist.study.plan import Plan, plan_study
from cxrdist.study.run import TO_RUN, Status, run_study, study_status
from cxrdist.study.watching import Watchers

STUDIES = sorted((shipped("launch") / "studies").glob("*.yaml"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("plan")
    return {name: make_shards(root / name, patients=20, seed=seed, name=name) for seed, name in enumerate("ab")}


def plan(tree: Tree, out: Path = Path("out")) -> Plan:
    return plan_study(StudyConfig.build(tree, where="test"), out)


def keys(found: Plan) -> dict[str, str]:
    return {job.name: job.key for job in found.jobs}


def changed(before: Tree, after: Tree) -> set[str]:
    old, new = keys(plan(before)), keys(plan(after))
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def run_in_waves(status: Status, ledger: Ledger) -> list[list[Job]]:
    """Return what a study runs, in groups of what may run at once when all of a group ends together."""
    graph, waves = Graph(status.jobs(*TO_RUN), status.states, ledger, Watchers()), []
    while graph.left():
        waves.append(list(iter(graph.next, None)))
        for job in waves[-1]:
            graph.ended(job, "done", "")
    return waves


def test_stages_stand_before_what_starts_from_them(shards):
    tree = study_tree(shards, stages__more={"datasets": ["b"], "train": {}, "start": "ssl"})
    tree = override(tree, {"strategies.more": {"stage": "more"}})
    found = plan(tree)
    placed: set[Identity] = set()
    for job in found.jobs:
        assert set(job.needs) <= placed
        placed.add(job.identity)
    assert [job.name for job in found.stages] == ["ssl", "more"]
    assert len(found.cells) == 3 * 2


def test_moving_the_shards_and_changing_readers_changes_no_key(shards, tmp_path):
    moved = {name: Path(shutil.copytree(folder, tmp_path / "moved" / name)) for name, folder in shards.items()}
    assert changed(study_tree(shards), study_tree(moved, recipe__input__workers=3)) == set()


def test_other_shards_change_the_keys_of_what_reads_them(shards, tmp_path):
    other = make_shards(tmp_path, patients=20, seed=9, name="b")
    names = changed(study_tree(shards), study_tree({**shards, "b": other}))
    assert names == {"ssl", "random--b--seed0", "ssl--a--seed0", "ssl--b--seed0"}


def test_changing_one_strategy_changes_its_cells_only(shards):
    names = changed(study_tree(shards), study_tree(shards, strategies__random={"set": {"optim.lr": 1e-4}}))
    assert names == {"random--a--seed0", "random--b--seed0"}


def test_changing_a_stage_changes_what_starts_from_it(shards):
    names = changed(study_tree(shards), study_tree(shards, stages__ssl__pretrain__train__steps=3))
    assert names == {"ssl", "ssl--a--seed0", "ssl--b--seed0"}


def test_other_content_of_a_weight_file_changes_the_key(shards, tmp_path):
    weights = tmp_path / "weights.safetensors"
    tree = study_tree(shards, strategies__random={"set": {"model.weights": str(weights)}})
    found = []
    for content in (b"one", b"three"):
        weights.write_bytes(content)
        found.append(keys(plan(tree))["random--a--seed0"])
    assert found[0] != found[1]


def test_stages_that_no_cell_needs_are_left_out(shards):
    tree = study_tree(shards, stages__unused={"datasets": ["a"], "train": {}})
    assert [job.name for job in plan(tree).stages] == ["ssl"]
    assert [job.name for job in plan(override(tree, {"strategies": {"ssl": {}}})).stages] == ["ssl"]


def test_targets_and_stage_for_choose_cells_and_stages(shards):
    tree = study_tree(shards, stages__other={"datasets": ["b"], "train": {}}, targets=["a"], seeds=[0, 1])
    tree = override(tree, {"strategies.ssl.stage_for": {"a": "other"}})
    found = plan(tree)
    assert [job.name for job in found.stages] == ["other"]
    assert {job.name for job in found.cells} == {f"{s}--a--seed{k}" for s in ("random", "ssl") for k in (0, 1)}


def test_every_wrong_name_is_told_at_once_with_the_nearest(shards):
    tree = study_tree(shards, targets=["c"], stages__ssl__datasets=["a", "x"], statistics__reference="randon")
    tree = override(tree, {"strategies.ssl": {"stage": "sls", "stage_for": {"q": "ssl"}}})
    with pytest.raises(UsageError) as caught:
        plan(tree)
    sentence = str(caught.value)
    for part in ("'c'", "'x'", "Did you mean 'random'?", "Did you mean 'ssl'?", "'q'"):
        assert part in sentence


def test_wrong_names_of_every_level_are_told_at_once(shards):
    tree = study_tree(shards, statistics__refernce="random", strategies__ssl__stage="sll", recipe__train__stepz=4)
    with pytest.raises(UsageError) as caught:
        plan(override(tree, {"stages.ssl.pretrain.method.decoder_with": 3}))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "`statistics.refernce` is unknown. Did you mean 'reference'?" in lines[0]
    assert "got 'sll'. Did you mean 'ssl'?" in lines[1]
    assert "`train.stepz` is unknown. Did you mean 'steps'?" in lines[2] and lines[2].endswith("[in test, recipe]")
    assert "decoder_with` is unknown. Did you mean 'decoder_width'?" in lines[3]


@pytest.mark.parametrize("part", ["recipe", "stages", "strategies", "datasets", "statistics"])
@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": 3}, {1: {"set": 2}}])
def test_anything_in_place_of_a_part_is_a_usage_error(shards, part, value):
    with pytest.raises(UsageError):
        plan(override({name: one for name, one in study_tree(shards).items() if name != part}, {part: value}))


def test_wrong_values_of_stages_and_cells_are_told_at_once_each_once(shards):
    tree = study_tree(shards, recipe__train__step=3, stages__ssl__pretrain__train__stepz=3)
    tree = override(tree, {"strategies.ssl.set": {"optim.lrr": 1}})
    with pytest.raises(UsageError) as caught:
        plan(tree)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "`train.stepz` is unknown. Did you mean 'steps'?" in lines[0] and lines[0].endswith("[in stage ssl]")
    assert "`train.step` is unknown. Did you mean 'steps'?" in lines[1] and lines[1].endswith("and 2 more]")
    assert "`optim.lrr` is unknown. Did you mean 'lr'?" in lines[2]


def test_stage_for_that_forgets_a_target_is_refused(shards):
    tree = override(study_tree(shards), {"strategies.ssl": {"stage": None, "stage_for": {"a": "ssl"}}})
    with pytest.raises(UsageError, match=r"of strategy 'ssl' must name every target, .* got none for b"):
        plan(tree)
    assert plan(override(tree, {"targets": ["a"]})).cells


@pytest.mark.parametrize("stage", ["ssl", None])
def test_null_in_stage_for_is_random_on_purpose(shards, stage):
    tree = study_tree(shards, strategies__ssl={"stage": stage, "stage_for": {"a": "ssl", "b": None}})
    starts = {job.dataset: [need[1] for need in job.needs] for job in plan(tree).cells if job.strategy == "ssl"}
    assert starts == {"a": ["ssl"], "b": []}


def test_stages_in_a_circle_are_refused(shards):
    tree = study_tree(shards, stages__one={"datasets": ["a"], "train": {}, "start": "two"})
    tree = override(tree, {"stages.two": {"datasets": ["a"], "train": {}, "start": "one"}})
    with pytest.raises(UsageError, match="circle, got one -> two -> one"):
        plan(override(tree, {"strategies.ssl.stage": "one"}))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("recipe.seed", 3),
        ("recipe.model.weights", "x.safetensors"),
        ("datasets.a.set", {"shards": "elsewhere"}),
        ("strategies.ssl.set", {"model": {"weights": "x.safetensors"}}),
        ("stages.ssl.pretrain.shards", ["elsewhere"]),
    ],
)
def test_what_the_grid_sets_is_refused_elsewhere(shards, part, value):
    with pytest.raises(UsageError, match="must leave out"):
        plan(override(study_tree(shards), {part: value}))


def test_every_missing_shard_folder_is_told(shards, tmp_path):
    tree = study_tree({**shards, "a": tmp_path / "gone", "b": tmp_path / "lost"})
    with pytest.raises(UserError) as caught:
        plan(tree)
    assert "gone" in str(caught.value) and "lost" in str(caught.value)


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_shipped_study_parses_and_plans_in_every_size(file, shards):
    for debug in {False, "debug" in read_yaml(file)}:
        tree = read_tree(file, debug=debug)
        for number, name in enumerate(tree["datasets"]):
            tree["datasets"][name]["shards"] = str(shards["ab"[number % 2]])
        found = plan(tree)
        assert found.cells
        # A step count below its own validation interval would leave a cell without a choice.
        assert all(job.tree["train"]["evaluate_every"] <= job.tree["train"]["steps"] for job in found.cells)
        # Paths are all that is to fill in: what a debug size starts from is random.
        assert not debug or all(job.needs or job.tree["model"]["weights"] is None for job in found.cells)


def test_dry_run_shows_states_and_writes_nothing(shards, tmp_path, capsys):
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    write_yaml(study_tree(shards), file)
    assert dry_run(file, out, capsys) == dict.fromkeys(keys(plan(read_yaml(file))), "left")
    assert not out.exists()
    job = plan(read_yaml(file), out).cells[0]
    Ledger(out / "ledger.jsonl").append("failed", job, error="It did.")
    assert dry_run(file, out, capsys)[job.name] == "failed"


def dry_run(file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    with pytest.raises(SystemExit) as ended:
        run(["study", "run", str(file), "--out", str(out), "--dry-run", "--json"])
    assert ended.value.code == 0
    return {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)["jobs"]}


def make_job(folder: Path, name: str = "random--a--seed0", key: str = "k0") -> Job:
    return Job("cell", "train", name, key, folder / "cells" / name, {})


def finish(job: Job) -> None:
    """Put what `is_complete` asks for into a run folder, as if it had been trained."""
    claim(job)
    for file in ("result.json", "model/model.safetensors", "predictions/test.parquet"):
        (job.folder / file).parent.mkdir(exist_ok=True)
        (job.folder / file).write_text(job.key)


def test_states_follow_the_last_event_and_the_files(tmp_path):
    ledger, job = Ledger(tmp_path / "ledger.jsonl"), make_job(tmp_path)
    assert ledger.states([job]) == {job.identity: "left"}
    ledger.append("started", job)
    assert ledger.states([job]) == {job.identity: "stopped"}
    with ledger.hold():
        assert ledger.states([job]) == {job.identity: "running"}
    ledger.append("done", job)
    assert ledger.states([job]) == {job.identity: "left"}, "done, but its files are not there"
    finish(job)
    assert ledger.states([job]) == {job.identity: "done"}
    ledger.append("failed", job, error="No more disk.")
    assert ledger.states([job]) == {job.identity: "failed"}
    assert ledger.failures() == {job.identity: "No more disk."}


def test_a_finished_folder_of_another_key_is_not_done(tmp_path):
    ledger, old, new = Ledger(tmp_path / "ledger.jsonl"), make_job(tmp_path), make_job(tmp_path, key="k1")
    for job in (old, new):
        finish(job)
        ledger.append("done", job)
    assert ledger.states([old, new]) == {old.identity: "left", new.identity: "done"}


def test_jobs_of_equal_content_are_done_and_failed_each_by_itself(shards, tmp_path):
    tree = study_tree(shards, targets=["a"], stages__same={"datasets": ["a"], "train": {}})
    tree = override(tree, {"strategies.twin": {}, "strategies.staged": {"stage": "same"}})
    found, ledger = plan(tree, tmp_path), Ledger(tmp_path / "ledger.jsonl")
    jobs = {job.name: job for job in found.jobs}
    equal = [jobs[name] for name in ("same", "random--a--seed0", "twin--a--seed0")]
    assert len({job.key for job in equal}) == 1, "what this test is about"
    waves = run_in_waves(Status(found, ledger.states(found.jobs), found.jobs), ledger)
    assert [len(wave) for wave in waves] == [4, 2] and {job.name for wave in waves for job in wave} == jobs.keys()

    for job in found.jobs:
        finish(job)
        ledger.append("done", job)
    (equal[1].folder / "predictions" / "test.parquet").unlink()
    status = Status(found, ledger.states(found.jobs), found.jobs)
    assert [job.name for job in status.jobs("left")] == ["random--a--seed0"]
    assert [[job.name for job in wave] for wave in run_in_waves(status, ledger)] == [["random--a--seed0"]]
    ledger.append("failed", equal[2], error="No more disk.")
    status = Status(found, ledger.states(found.jobs), found.jobs)
    assert [job.name for job in status.jobs("failed")] == ["twin--a--seed0"]
    assert ledger.failures() == {equal[2].identity: "No more disk."}


def test_two_stages_of_equal_content_run_once(shards, tmp_path):
    tree = study_tree(shards)
    tree = override(tree, {"stages.again": tree["stages"]["ssl"], "strategies.again": {"stage": "again"}})
    found = plan(tree, tmp_path)
    assert [job.name for job in found.stages] == ["ssl"]
    assert {job.needs for job in found.cells if job.strategy == "again"} == {(found.stages[0].identity,)}


def test_going_back_to_an_earlier_study_brings_its_results_back(tmp_path):
    old, new = make_job(tmp_path), make_job(tmp_path, key="k1")
    for job in (old, new, old, new):
        make_way([job], tmp_path)
        if not job.folder.exists():
            finish(job)
            (job.folder / "trained").write_text(job.key)
        assert (job.folder / "trained").read_text() == job.key
    assert len(list((tmp_path / "superseded").iterdir())) == 1


def test_half_a_run_that_cannot_go_on_moves_aside(tmp_path):
    tree = FinetuneConfig.build(finetune_tree(tmp_path / "old"), where="test").tree()
    job = Job("cell", "train", "random--a--seed0", "k0", tmp_path / "cells" / "x", override(tree, {"shards": "new"}))
    claim(job)
    write_yaml(tree, job.folder / "config.yaml")
    make_way([job], tmp_path)
    assert not job.folder.exists()
    assert [path.name for path in (tmp_path / "superseded").iterdir()] == ["random--a--seed0-k0"]


@pytest.mark.parametrize("torn", [b'{"time": 1, "event": "do', b"\x00\x00\x00", b"12\n", b'{"a": 1}\n', b"\xff\n"])
def test_torn_line_is_passed_over_and_the_next_stands_alone(tmp_path, torn):
    ledger, first, second = Ledger(tmp_path / "ledger.jsonl"), make_job(tmp_path), make_job(tmp_path, key="k1")
    ledger.append("started", first)
    with ledger.path.open("ab") as file:
        file.write(torn)
    ledger.append("started", second)
    assert [line["key"] for line in ledger.read()] == ["k0", "k1"]


def append_many(path: Path, key: str) -> None:
    for _ in range(100):
        Ledger(path).append("failed", make_job(path.parent, key=key), error="x" * 5000)


def test_two_processes_append_whole_lines_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(tmp_path / "ledger.jsonl", key)) for key in ("k0", "k1")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    text = (tmp_path / "ledger.jsonl").read_text()
    found = [json.loads(line)["key"] for line in text.splitlines()]
    assert sorted(found) == ["k0"] * 100 + ["k1"] * 100


def test_second_run_of_a_study_at_the_same_time_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with (
        ledger.hold(),
        pytest.raises(UserError, match="Only one run of a study may go on at a time, got a second"),
        ledger.hold(),
    ):
        pass
    assert not ledger.held()


@pytest.mark.parametrize("event", ["started", "failed"])
def test_ledger_on_a_full_disk_is_one_sentence(tmp_path, event):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="must be writable, got 'No space left on device'") as caught:
        ledger.append(event, make_job(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_study_folder_that_cannot_be_is_one_sentence(shards, tmp_path):
    (tmp_path / "file").touch()
    study = StudyConfig.build(study_tree(shards), where="test")
    with pytest.raises(UserError, match="The folder must be writable, got 'Not a directory'"):
        run_study(study, tmp_path / "file" / "out")


def test_lock_goes_with_its_process(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def hold_and_die() -> None:
        with ledger.hold():
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=hold_and_die)
    process.start()
    process.join()
    assert process.exitcode == 9 and not ledger.held()


def test_status_of_a_killed_study_says_stopped(shards, tmp_path):
    study = StudyConfig.build(study_tree(shards), where="test")
    stage = plan_study(study, tmp_path).stages[0]
    Ledger(tmp_path / "ledger.jsonl").append("started", stage)
    status = study_status(study, tmp_path)
    assert [job.name for job in status.jobs("stopped")] == ["ssl"]
    assert len(status.jobs("left")) == 4


def test_chosen_cells_bring_the_stages_they_need_and_no_other(shards):
    found = plan(study_tree(shards))
    assert [job.name for job in Chosen().of(found)] == [job.name for job in found.jobs]
    assert [job.name for job in Chosen(("random--*",)).of(found)] == ["random--a--seed0", "random--b--seed0"]
    assert [job.name for job in Chosen(("ssl--*",), ("*--b--*",)).of(found)] == ["ssl", "ssl--a--seed0"]


@pytest.mark.parametrize(
    ("only", "leave_out", "named"),
    [(["dino--*"], [], "`--only` must match a cell, got 'dino--*'"), ([], ["*"], "must leave a cell")],
)
def test_a_pattern_that_chooses_nothing_is_told(shards, only, leave_out, named):
    with pytest.raises(UsageError, match=re.escape(named)):
        Chosen(tuple(only), tuple(leave_out)).of(plan(study_tree(shards)))


def test_a_cell_maps_labels_as_its_dataset_says_where_the_study_does_not(shards, tmp_path):
    other = shutil.copytree(shards["a"], tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_bytes())
    manifest["policy"] |= {"not_mentioned": "ignore"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    tree = override(study_tree(shards), {"datasets.a.shards": str(other)})
    maps = {job.dataset: job.tree["labels"]["not_mentioned"] for job in plan(tree).cells}
    assert maps == {"a": "ignore", "b": "zeros"}
    said = override(tree, {"recipe.labels.not_mentioned": "zeros"})
    assert {job.tree["labels"]["not_mentioned"] for job in plan(said).cells} == {"zeros"}
    # What is the default anyway changes no key.
    assert keys(plan(study_tree(shards))) == keys(plan(override(study_tree(shards), {"recipe.labels": {}})))


def test_a_study_whose_ledger_is_elsewhere_makes_its_folder(shards, tmp_path, monkeypatch):
    tree = study_tree(shards, ledger=(tmp_path / "ledger").as_uri(), targets=["a"], strategies={"random": {}})
    monkeypatch.setattr("cxrdist.study.run.cluster", lambda *about, **more: contextlib.nullcontext())
    monkeypatch.setattr("cxrdist.study.run._run_on_cluster", lambda *about, **more: None)
    with pytest.raises(UserError, match="No cell has ended"):
        run_study(StudyConfig.build(tree, where="test"), tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out" / "study.yaml").is_file()
