"""Compiles the inner loops, and keeps what was compiled beside the code for the next process."""

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

OPTIONS = {"nogil": True, "error_model": "numpy"}
"""Dividing by zero gives NaN, as a check would end vectorisation.  No fast-math: the order of additions is fixed."""


def compiled(function: Callable[..., Any]) -> Any:
    """Return `function` to be compiled at its first call, or loaded where an earlier process compiled it.

    The machine code lies where ``numba.njit(cache=True)`` puts it.  Where nothing can be written or read there (no
    folder, a full disk), every process compiles anew and nothing else happens.
    """
    kernel = njit(**OPTIONS)(function)
    with suppress(RuntimeError):  # no folder that may be written
        kernel._cache = _Stored(function)
    return kernel


class _OneFileEach(IndexDataCacheFile):
    """Machine code in files named by what they hold.

    Numba numbers them by what the index holds.  Two processes that compile one function for different types at the same
    time then choose the same number, and from then on the code for one is called with the other.
    """

    def save(self, key: Any, data: Any) -> None:
        overloads = self._load_index()
        what = repr((key, self._source_stamp)).encode()
        name = self._data_name(int(sha256(what).hexdigest()[:15], 16))
        self._save_data(name, data)  # before the index, which names only what is there
        # Of two processes one may undo the other's entry; it is compiled once more then.
        self._save_index(overloads | {key: name})


class _Stored(FunctionCache):
    """Machine code of one function on disk, which is never needed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _OneFileEach(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=self._impl.locator.get_source_stamp(),
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever is wrong with a file: compile
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # a full or vanished disk
            super().save_overload(sig, data)
