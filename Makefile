# `make demo` and `make test` do everything on a fresh machine: they make .venv, install into it, and run.
# pip runs again only after pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types
WORKERS ?= 2
SOURCES := safeflux trainer policies benchmarks comfyui docs examples tests conftest.py setup.py

.PHONY: demo test lint types laid-out pytest thorough docs clean

demo: $(VENV)/.installed
	$(BIN)/safeflux demo

test: lint types pytest

lint: $(VENV)/.installed-dev laid-out
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell $(SOURCES) README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md
	cd $(TYPES) && $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.import_linter_cache

# mypy and import-linter do not follow the import hook of an editable install: they get the packages as they are imported.
laid-out:
	rm -rf $(TYPES)
	mkdir -p $(TYPES)
	cp -rl safeflux $(TYPES)/safeflux
	cp -rl trainer policies $(TYPES)/safeflux

types: $(VENV)/.installed-dev laid-out
	cd $(TYPES) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p safeflux

# The models are small: two workers with a thread each need half the time of one with two threads.
pytest: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Left out of pytest for their time.
thorough: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m thorough

# Any warning is an error: a link that leads nowhere, a docstring that cannot be read, a page that no other names.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[cpu]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .import_linter_cache .pytest_cache .ruff_cache .hypothesis
