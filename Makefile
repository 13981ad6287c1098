# Each target sets up everything it needs from nothing: `make demo` in a fresh clone is enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
INSTALLED_DEV := .venv/installed-dev

.PHONY: demo test test-all check bench clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("autoseg needs Python 3.11 or newer; try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing autoseg into .venv (PyTorch is large: a minute or more) …"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e .
	@touch $@

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	@echo "Installing autoseg and its development tools into .venv (a minute or more) …"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/autoseg demo

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m "not slow" -n 2

test-all: $(INSTALLED_DEV)
	$(BIN)/python -m pytest

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/performance.py --work build/bench
	$(BIN)/python benchmarks/performance_report.py --size reduced --docs build/bench

clean:
	rm -rf .venv build dist *.egg-info
