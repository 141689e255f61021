"""How kernels are compiled and kept: without the lock, and never the code of one for another."""

import pickle
from multiprocessing import get_context

import numpy as np
import pytest
from numba import types

from cxrdist.stats import binned, compiling, kernels, logistic, tayebi2024
from cxrdist.stats.compiling import compiled


@pytest.mark.parametrize(("module", "least"), [(kernels, 6), (binned, 1), (logistic, 4), (tayebi2024, 1)], ids=str)
def test_kernels_release_the_lock_and_keep_the_order_of_additions(module, least):
    found = [value for value in vars(module).values() if hasattr(value, "targetoptions")]
    assert len(found) >= least
    for kernel in found:
        assert kernel.targetoptions["nogil"]
        assert not kernel.targetoptions.get("fastmath")
        assert isinstance(kernel._cache, compiling._Stored)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a module's function, to be compiled into a folder of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path / "kept"))
    (tmp_path / "doubling.py").write_text("def double(x):\n    return x + x\n")
    return tmp_path


def doubling(folder):
    """Return the function as another process would compile it, knowing nothing yet."""
    space = {}
    exec(compile((folder / "doubling.py").read_text(), str(folder / "doubling.py"), "exec"), space)
    return compiled(space["double"])


def kept(folder):
    return sorted((folder / "kept").rglob("*.nbc"))


def test_what_was_compiled_is_loaded_by_the_next_process(folder):
    first, second = doubling(folder), doubling(folder)
    assert first(2) == second(2) == 4
    assert len(kept(folder)) == 1
    assert sum(second.stats.cache_hits.values()) == 1


def test_two_processes_that_compile_for_different_types_at_once_do_not_take_each_others_code(folder):
    first, second, third = (doubling(folder) for _ in range(3))
    # Both read the index before either writes it, so neither knows of the other's file.
    empty = second._cache._cache_file._load_index()
    assert first(2) == 4
    second._cache._cache_file._load_index = lambda: empty
    assert second(0.5) == 1.0
    assert len(kept(folder)) == 2
    assert third(2) == 4
    assert third(0.5) == 1.0
    assert [third.overloads[kind].signature.return_type for kind in ((types.int64,), (types.float64,))] == [
        types.int64,
        types.float64,
    ]


def test_code_of_an_older_source_is_not_overwritten_by_its_name(folder):
    assert doubling(folder)(2) == 4
    (folder / "doubling.py").write_text("def double(x):\n    return x + x\n\n")
    assert doubling(folder)(2) == 4
    assert len(kept(folder)) == 2


@pytest.mark.parametrize("step", ["_save_data", "_save_index"])
def test_a_full_disk_costs_only_the_kept_code(folder, step, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling._OneFileEach, step, full)
    assert doubling(folder)(2) == 4
    monkeypatch.undo()
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(folder / "kept"))
    assert doubling(folder)(2) == 4


def test_kept_code_that_cannot_be_read_is_compiled_anew(folder):
    assert doubling(folder)(2) == 4
    (one,) = kept(folder)
    one.write_bytes(b"cut off")
    again = doubling(folder)
    assert again(2) == 4
    assert sum(again.stats.cache_misses.values()) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_kept_code(monkeypatch):
    def refuse(function):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiling, "_Stored", refuse)
    assert compiled(lambda x: x + 1)(2) == 3


def test_a_kernel_goes_to_another_process():
    kernel = pickle.loads(pickle.dumps(kernels.walk_float))
    assert kernel.targetoptions["nogil"]
    counts, units, groups = np.ones((2, 1)), np.array([0, 1], dtype=np.int32), np.array([[1, 2, 2]])
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(kernel, (counts, units, groups)) == [1.0]
