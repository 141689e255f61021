"""The map over a Ray cluster keeps the contract of the others."""

import os
import signal
from pathlib import Path

import pytest
from helpers import make_import

from cxrdist.dispatch import process_map
from cxrdist.dispatch.cluster import cluster, ray_map
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise UserError("three is refused")
    return number


def fail(number: int) -> int:
    raise RuntimeError("a fault of the program")


def die_once(mark) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.fixture(scope="module")
def ray_here():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the workers import this file
    try:
        with cluster(None):
            yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def test_results_come_in_order_or_each_once(ray_here):
    assert list(ray_map()(square, iter(range(12)))) == [number * number for number in range(12)]
    assert sorted(ray_map(ordered=False)(square, range(12))) == [number * number for number in range(12)]


def test_an_error_in_the_work_reaches_the_caller_as_it_is(ray_here):
    with pytest.raises(UserError, match=r"^three is refused$"):
        list(ray_map()(refuse_three, range(6)))


def test_any_other_failure_of_a_machine_is_one_sentence(ray_here):
    with pytest.raises(UserError, match="Every machine must have cxrdist"):
        list(ray_map()(fail, range(2)))


def test_work_of_a_killed_process_is_done_again(ray_here, tmp_path):
    assert list(ray_map()(die_once, [tmp_path / "died"])) == ["alive"]


def test_a_machine_without_the_folder_is_an_error_and_not_a_pile_of_missing_files(ray_here, tmp_path):
    with pytest.raises(UserError, match="shared file system"):
        list(ray_map([tmp_path, tmp_path / "elsewhere"])(square, range(3)))


def test_a_cluster_packs_the_same_bytes_as_one_machine(ray_here, tmp_path):
    found = make_import(tmp_path / "raw", images=12)
    options = PackOptions(id_key=tmp_path / "id.key", size=16, samples_per_shard=4)
    name = DatasetName("toy", "Toy", "toy", "0" * 64)
    folders = []
    for where, spread in (("one", process_map(1)), ("ray", ray_map([tmp_path], ordered=False))):
        pack_rows(name, found, tmp_path / where, options, spread=spread, shown=False)
        folders.append({path.name: path.read_bytes() for path in sorted((tmp_path / where).iterdir())})
    assert folders[0] == folders[1]
