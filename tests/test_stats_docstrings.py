"""What the statistics say of themselves: shapes, and where each number's definition is from."""

import importlib
import inspect
import pkgutil
import re

import pytest

import cxrdist.stats

AXIS = r"(?:\d|[A-Z][a-z]?|n|m|T \+ 1|\.\.\.)"
SHAPE = re.compile(rf"\((?:{AXIS},|{AXIS}(?:, {AXIS})+|\.\.\.)\)")
"""``(N,)``, ``(P, B)``, ``(T + 1,)``, ``(..., K)``, ``(...)``"""
SOURCE = re.compile(r"\b(?:18|19|20)\d\d\b|scikit-learn")
"""The year of a paper, or another library's definition."""
NAMED = re.compile(r"`(?:\w+\.)?(\w+)`")

PLUMBING = {
    "auroc": {"checked", "sorted_groups", "units_of", "as_counts", "check_counts"},
    "kernels": {"weighted_sums", "typed", "writable"},
    "resample": {"whole_units", "full_sample"},
    "seeds": {"mean_over_files"},
    "comparison": ...,
    "files": ...,
    "labelled": ...,
    "levels": ...,
    "prediction_tables": ...,
    "predictions": ...,
    "undefined": ...,
}
"""Functions, or whole modules, that bring arrays into order and define no number of statistics."""


def public_functions():
    for module in pkgutil.iter_modules(cxrdist.stats.__path__):
        loaded = importlib.import_module(f"cxrdist.stats.{module.name}")
        for name, thing in vars(loaded).items():
            thing = inspect.unwrap(getattr(thing, "py_func", thing))  # noqa: PLW2901 - of a compiled one
            if inspect.isfunction(thing) and thing.__module__ == loaded.__name__ and not name.startswith("_"):
                yield pytest.param(module.name, thing, id=f"{module.name}.{name}")


FUNCTIONS = list(public_functions())
OURS = {one.values[1].__name__ for one in FUNCTIONS} | {"RATES"}


def takes_or_gives_arrays(function):
    return "ndarray" in str(inspect.signature(function))


@pytest.mark.parametrize(("module", "function"), FUNCTIONS)
def test_a_function_of_arrays_tells_their_shapes(module, function):
    if takes_or_gives_arrays(function):
        assert SHAPE.search(function.__doc__ or ""), f"no shape in: {function.__doc__}"


@pytest.mark.parametrize(("module", "function"), FUNCTIONS)
def test_a_number_of_statistics_names_its_source_or_the_function_that_does(module, function):
    exempt = PLUMBING.get(module, set())
    if takes_or_gives_arrays(function) and exempt is not ... and function.__name__ not in exempt:
        told = function.__doc__ or ""
        others = set(NAMED.findall(told)) & OURS - {function.__name__, *inspect.signature(function).parameters}
        assert SOURCE.search(told) or others, f"no source in: {told}"


def test_the_walk_finds_the_functions():
    found = {one.id for one in FUNCTIONS}
    assert {"auroc.auroc", "rates.accuracy", "kernels.walk_uint16", "families.max_t"} <= found
    named = {f"{module}.{name}" for module, names in PLUMBING.items() if names is not ... for name in names}
    assert named <= found
