# Chores. `make demo` needs nothing but Python >= 3.11, make and bash.
VENV ?= .venv
PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := $(abspath $(VENV))/bin

.PHONY: help venv demo test test-long lint format clean

help: ## list the chores
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

venv: $(VENV)/.installed ## create the environment, locked by constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[evaluation,dev]'
	touch $@

demo: venv ## train and evaluate DeepJet on the shipped sample, tracked in MLflow
	VENV=$(abspath $(VENV)) bash examples/demo.sh

test: venv ## the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slurm and not long' --numprocesses auto --dist loadfile

test-long: venv ## tests that take minutes: trainings killed again and again, large data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'long and not slurm' --numprocesses auto

lint: venv ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches (outputs stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
