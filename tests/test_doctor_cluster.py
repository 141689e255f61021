"""A real cluster of two nodes, the second with other code, another current folder, and GPUs that are none."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

import cxrdist
from cxrdist.cli.main import run
from cxrdist.dispatch.cluster import cluster
from cxrdist.dispatch.nodes import ask, check_versions, list_nodes
from cxrdist.doctor import measure
from cxrdist.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    """Start the cluster; this process moves to a folder without the program, which its workers would import."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    folder, before = tmp_path_factory.mktemp("nodes"), Path.cwd()
    for name in ("one", "two", "shared"):
        (folder / name).mkdir()
    copy = folder / "copy" / "cxrdist"
    shutil.copytree(Path(cxrdist.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "errors.py").open("a") as file:
        file.write("# another checkout\n")
    os.chdir(folder / "one")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        os.chdir(folder / "two")
        nodes.add_node(num_cpus=1, num_gpus=2, env_vars={"PYTHONPATH": str(copy.parent)})
        os.chdir(folder / "one")
        yield nodes, folder
    finally:
        os.chdir(before)
        nodes.shutdown()


def test_a_node_with_other_code_of_the_same_version_is_told_in_seconds(two_nodes):
    nodes, _ = two_nodes
    with pytest.raises(UserError, match=r"other code of the same"), cluster(nodes.address):
        raise AssertionError("nothing may start there")
    with cluster(nodes.address, check=False):
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(UserError, match=r"other code of the same cxrdist version on 1 of 2 nodes"):
                check_versions()
        assert time.monotonic() - began < 5  # the second time, with workers that are there; in fact 0.1 s


def test_a_cluster_that_is_full_answers_and_a_silent_node_is_not_waited_for(two_nodes, tmp_path):
    import ray  # noqa: PLC0415

    nodes, _ = two_nodes
    with cluster(nodes.address, check=False):
        busy = [ray.remote(num_cpus=1, num_gpus=gpus)(_rest).remote() for gpus in (0, 2)]
        assert not any(answer.fault for answer in ask(measure.now).values())
        began = time.monotonic()
        answers = ask(measure.run_script, "import time; time.sleep(20)", [], 15.0, {}, timeout_s=2)
        assert [answer.gone for answer in answers.values()] == [True, True] and time.monotonic() - began < 10
        failed = ask(measure.free_port, "no.such.host.invalid")
        assert [(answer.fault, answer.gone) for answer in failed.values()] == [("gaierror", False)] * 2
        for each in busy:
            ray.cancel(each, force=True)


def _rest():
    time.sleep(30)


def test_paths_clocks_and_reductions_between_nodes_are_judged(two_nodes, capsys):
    nodes, folder = two_nodes
    paths = [str(folder / "shared"), "/proc/self/cwd", str(folder / "gone")]
    with pytest.raises(SystemExit) as ended:
        run(["doctor", "--json", "--address", nodes.address, *(word for path in paths for word in ("--path", path))])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and not err
    report = json.loads(out)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["versions"]["state"] == "problem" and "other code" in found["versions"]["found"]
    assert found[f"path {paths[0]}"]["state"] == "ok"
    # Each process has a folder of its own there, which is that of its node.
    assert "is not one folder but 2" in found["path /proc/self/cwd"]["found"]
    assert "no such folder" in found[f"path {paths[2]}"]["found"]
    assert found["clocks"]["state"] == "ok"
    assert found["all-reduce, gloo"]["state"] == "ok" and "2 nodes, 64 MiB in " in found["all-reduce, gloo"]["found"]
    assert "0 of 2" in found["GPUs"]["found"]
    assert len(report["nodes"]) == 2 and all(row["alive"] for row in report["nodes"].values())
    assert not [*folder.rglob(".cxrdist-doctor-*")]


def test_another_ray_here_is_one_sentence(two_nodes, monkeypatch):
    import ray  # noqa: PLC0415

    nodes, _ = two_nodes
    monkeypatch.setattr(ray, "__version__", "2.0.0")
    with pytest.raises(UserError, match=r"must have this command's Ray and Python, got Ray"), cluster(nodes.address):
        pass
    monkeypatch.undo()
    with cluster(nodes.address, check=False):
        assert len(list_nodes()) == 2
