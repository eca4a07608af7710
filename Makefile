# `make demo` and `make test` do everything on a fresh machine: they make .venv, install into it, and run.
# pip runs again only after pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types
WORKERS ?= 2
SOURCES := safeflux trainer policies benchmarks examples tests conftest.py

.PHONY: demo test lint types pytest clean

demo: $(VENV)/.installed
	$(BIN)/safeflux demo

test: lint types pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell $(SOURCES) README.md CHANGELOG.md

# mypy does not follow the import hook of an editable install, so it gets the packages laid out as they are imported.
types: $(VENV)/.installed-dev
	rm -rf $(TYPES)
	mkdir -p $(TYPES)/safeflux
	ln -s $(CURDIR)/safeflux/* $(CURDIR)/trainer $(CURDIR)/policies $(TYPES)/safeflux
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p safeflux

# The models are small: two workers with a thread each need half the time of one with two threads.
pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
