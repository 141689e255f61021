# make demo    on a machine with Python >= 3.11 and make: install, then the whole chain on phantoms, into runs/demo
# make test    install, then the tests          make check   format, lint, types, floors; under a minute
# make install the set-up alone; every target is safe to repeat

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install demo test test-long check

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python must be 3.11 or later, got $$($(PYTHON) -V). Say which with PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/cxrdist demo --out runs/demo

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

test-long: install
	$(BIN)/python -m pytest -n 1 -m long $$(grep -l 'mark\.long' tests/test_*.py)

check: install
	$(BIN)/ruff format --check cxrdist tests
	$(BIN)/ruff check cxrdist tests
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
