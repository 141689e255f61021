"""Packages whose names load when they are first asked for."""

import sys
from importlib import import_module

import pytest

LAZY = [
    ("cxrdist.phantom", "write_phantoms", "write"),
    ("cxrdist.dicom", "read_radiograph", "radiograph"),
    ("cxrdist.report", "write_report", "write"),
]
"""Package, one of its names, and the module that has it."""


@pytest.mark.parametrize(("package", "name", "home"), LAZY)
def test_every_name_is_there_and_any_other_is_none(package, name, home):
    module = import_module(package)
    assert name in module.__all__
    assert not [each for each in module.__all__ if getattr(module, each, None) is None]
    for other in ("nothing", "__wrapped__", f"{name}_"):
        assert not hasattr(module, other)


@pytest.mark.parametrize(("package", "name", "home"), LAZY)
def test_a_name_whose_module_does_not_load_tells_why_each_time(package, name, home, monkeypatch):
    module = import_module(package)
    monkeypatch.setitem(sys.modules, f"{package}.{home}", None)
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match=rf"import of {package}\.{home} halted"):
            getattr(module, name)
