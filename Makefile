# make quickstart   a real model learns written principles, in minutes on two CPU cores
# make test         lint, types and tests; make test-all adds the longer checks

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-all lint clean

quickstart: $(READY)
	$(BIN)/sami run recipes/quickstart.yaml --output runs/quickstart

test: $(READY) lint
	$(BIN)/pytest -m "not slow"

test-all: .venv/.ready-all lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

# Installed once, and again when the dependencies change. torch by its exact version comes first: a range
# would take a build with several GB of GPU packages.
$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# The package with which win rates are compared, another tracker, and what runs the notebook.
.venv/.ready-all: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,alpaca,trackers,notebook]"
	touch $@

clean:
	rm -rf .venv
