# make quickstart   a real model learns written principles, in minutes on two CPU cores
# make test         lint, types and tests; make test-all adds the longer checks
# make docs         the documentation as a site, in site/

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-all lint docs clean

quickstart: $(READY)
	$(BIN)/sami run recipes/quickstart.yaml --output runs/quickstart

test: $(READY) lint
	$(BIN)/pytest -m "not slow"

test-all: .venv/.ready-all lint
	$(BIN)/pytest

docs: .venv/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(READY)
	$(BIN)/ruff check src tests bench docs/hooks
	$(BIN)/ruff format --check src tests bench docs/hooks
	$(BIN)/mypy

# Installed once, and again when the dependencies change. torch by its exact version comes first: a range
# would take a build with several GB of GPU packages.
$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The package with which win rates are compared, another tracker, what runs the notebook and builds the documentation.
.venv/.ready-all: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,alpaca,trackers,notebook,docs]"
	touch $@

.venv/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

clean:
	rm -rf .venv site
