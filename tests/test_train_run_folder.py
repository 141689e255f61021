"""What a run folder keeps of starts that died, its lists of lines, and what may differ in a resumed run."""

import pytest

from cxrdist.config import Config
from cxrdist.train.config import TrainConfig
from cxrdist.train.run_folder import (
    RunFolder,
    changes,
    read_lines,
    read_test_accesses,
    record_start,
    record_test_access,
)
from cxrdist.world import World

DEAD = ("starts.jsonl", "trackers.json", "metrics.jsonl", "bad-batch/batch.json", "bad-batch/rank-00000.safetensors")


class Nothing(Config):
    """A configuration without a choice."""


def leave(folder: RunFolder) -> None:
    (folder.path / "bad-batch").mkdir(parents=True, exist_ok=True)
    for name in DEAD:
        (folder.path / name).write_text('{"world_size": 8}\n')


def opened(folder: RunFolder) -> set[str]:
    with folder.opened(Nothing(), resume="auto", world=World(), shards=[], seed=1):
        return {name for name in DEAD if (folder.path / name).exists()}


def test_what_a_start_left_that_died_before_its_first_checkpoint_is_not_taken_for_the_next_run_s(tmp_path):
    folder = RunFolder(tmp_path / "run")
    leave(folder)
    (folder.path / "notes.txt").touch()
    assert opened(folder) == set()
    leave(folder)  # and once more, with a configuration there
    assert opened(folder) == set()
    assert (folder.path / "notes.txt").exists()
    leave(folder)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-00000001").mkdir()
    assert opened(folder) == set(DEAD)  # the same of a run that goes on is its own


@pytest.mark.parametrize("torn", ['{"time": 1.5, "spl', "\0\0\0"])
def test_a_line_torn_by_a_kill_takes_no_other_one_with_it(tmp_path, torn):
    record_test_access(tmp_path, {"split": "a"})
    path = tmp_path / "test_accesses.jsonl"
    path.write_text(path.read_text() + torn)
    record_test_access(tmp_path, {"split": "b"})
    record_test_access(tmp_path, {"split": "c"})
    assert [line["split"] for line in read_test_accesses(tmp_path)] == ["a", "b", "c"]
    assert path.read_text().count("\n") == 4
    record_start(tmp_path, step=3, world=World(), device="cpu", micro_batch_size=2)
    assert [line["step"] for line in read_lines(tmp_path / "starts.jsonl")] == [3]
    assert read_lines(tmp_path / "none") == []


def test_what_is_told_to_the_engine_may_not_differ_in_a_resumed_run_and_what_it_may_lay_elsewhere_may():
    before = {"train": TrainConfig().tree()}
    for name, value in {"zero_stage": 2, "keep_best": 3, "log_every": 1, "trackers": ["mlflow"]}.items():
        assert changes(before, {"train": before["train"] | {name: value}}) == []
    assert changes(before, {"train": before["train"] | {"deepspeed": "a.json"}}) == [
        "train.deepspeed: None -> 'a.json'"
    ]
