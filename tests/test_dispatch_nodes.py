"""Versions of two machines: what must be the same is told, and what is the same is not taken for different."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cxrdist
from cxrdist.dispatch import cluster, nodes, versions
from cxrdist.dispatch.nodes import Answer, Comparison, Node, check_versions, name_nodes
from cxrdist.dispatch.versions import CODE, code_hash, differences, versions_here
from cxrdist.errors import UserError

PACKAGE = Path(cxrdist.__file__).parent


def node(number):
    return Node(f"id{number}", f"10.0.0.{number}", f"10.0.0.{number}", True, 4.0, 0.0, 1e9)


def compare(monkeypatch, *there, faults=None):
    """Run the check on nodes that say `there` in place of the versions here."""
    here = versions_here()
    told = {node(number): {**here, **changed} for number, changed in enumerate(there, start=1)}
    monkeypatch.setattr(
        "cxrdist.dispatch.nodes.compare_versions", lambda timeout_s: Comparison(here, told, faults or {})
    )
    check_versions(timeout_s=5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"torch": "1.0"}, "torch 1.0 (here "),
        ({"ray": None}, "no ray"),
        ({"python": "3.9.1"}, "Python 3.9.1 (here "),
        ({"cxrdist": "9.9", CODE: "0" * 12}, "cxrdist 9.9 (here "),
        ({"cxrdist": None, CODE: None}, "no cxrdist"),
        ({CODE: "0" * 12}, "other code of the same cxrdist version"),
    ],
)
def test_what_must_be_the_same_is_told_with_the_nodes_that_differ_and_a_way_out(changed, told, monkeypatch):
    with pytest.raises(UserError, match="Every node") as raised:
        compare(monkeypatch, {}, changed, changed)
    text = str(raised.value)
    assert told in text and "on 2 of 3 nodes (10.0.0.2, 10.0.0.3)" in text and "the same wheel" in text
    assert text.count("other code") == (list(changed) == [CODE])


def test_other_differences_and_silent_nodes_are_noted_and_the_work_goes_on(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(nodes.log, "warning", lambda text, *values: said.append(text % values))
    silent = {node(9): Answer(fault="no answer within 5 s", gone=True)}
    patch = versions_here()["python"].rpartition(".")[0] + ".99"
    compare(monkeypatch, {"timm": "0.1"}, {"deepspeed": None}, {"python": patch}, faults=silent)
    for told in ("timm 0.1 (here ", "no deepspeed on 1 of 4 nodes", patch, "10.0.0.9"):
        assert told in "\n".join(said)


def test_a_cluster_of_which_no_node_answers_and_a_node_that_fails_are_errors(monkeypatch):
    with pytest.raises(UserError, match=r"must answer, got 1 of 1 node \(10.0.0.7\) without"):
        compare(monkeypatch, faults={node(7): Answer(fault="no answer within 5 s", gone=True)})
    with pytest.raises(UserError, match="ImportError: no disk"):
        compare(monkeypatch, {}, faults={node(7): Answer(fault="ImportError: no disk")})


def test_equal_versions_are_no_difference_and_many_nodes_are_not_all_named(monkeypatch):
    compare(monkeypatch, {}, {})
    assert differences(versions_here(), versions_here()) == []
    assert name_nodes([node(number) for number in range(9)], 10).count("10.0.0.") == 4


def test_a_wheel_and_its_checkout_have_one_hash_and_changed_code_has_another(tmp_path):
    copy = tmp_path / "cxrdist"
    built = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    left_out = [pattern.removeprefix("**/") for pattern in built["exclude"]]
    assert any([*PACKAGE.rglob(pattern)] for pattern in left_out)
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "shipped", *left_out))
    (copy / "shipped" / "shards").mkdir(parents=True)
    (copy / "shipped" / "shards" / "a.yaml").write_text("a: 1")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"x")
    assert code_hash(copy) == code_hash(PACKAGE)
    with (copy / "errors.py").open("a") as file:
        file.write("\n")
    assert code_hash(copy) != code_hash(PACKAGE)


def test_versions_are_told_without_loading_the_libraries(tmp_path):
    code = "import json, sys; from cxrdist.dispatch.versions import versions_here; versions_here(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"torch", "ray", "timm", "deepspeed", "numpy"} & set(ended.stdout.split())


def test_a_machine_without_the_program_says_so(monkeypatch):
    monkeypatch.setattr(versions, "PROGRAM", "cxrdist_is_not_here")
    assert versions.versions_here()["cxrdist_is_not_here"] is None


def test_rays_own_refusal_of_another_version_is_one_sentence():
    import ray._private.utils as internals  # noqa: PLC0415

    with pytest.raises(RuntimeError) as raised:
        internals.check_version_info({"ray_version": "2.1.0", "python_version": "3.8.1"}, "node 10.0.0.1")
    with pytest.raises(
        UserError, match=r"got Ray 2\.1\.0 and Python 3\.8\.1 there, Ray \S+ and Python \S+ here"
    ) as told:
        cluster._refuse_other_versions(str(raised.value))
    assert "\n" not in str(told.value)
    cluster._refuse_other_versions("Failed to connect")
