# Chores. `make demo` needs nothing but Python >= 3.11, make and bash.
VENV ?= .venv
PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := $(abspath $(VENV))/bin
# What the benchmarks compare with, in an environment of its own; one that is there already may be named.
WEAVER_VENV ?= .venv-weaver
SYNTHETIC := .bench/jetclass
# JetClass files for the benchmarks, named after their processes.
DATA ?= $(SYNTHETIC)
OLDEST_LAW := 0.1.19
# Environments of their own: with upstream's pins, and with the newest versions of all but torch.
UPSTREAM_VENV ?= .venv-upstream
UPSTREAM_PYTHON ?= python3.11
NEWEST_VENV ?= .venv-newest
# What is tested there: what other packages' versions decide, so not the loader, the evaluation and the files. What needs
# more than such an environment has is skipped, with the reason.
ELSEWHERE ?= tests/config tests/models tests/training tests/tracking tests/law tests/compatibility tests/test_compat.py
# Markers of what `make test-long` runs.
LONG ?= long or nightly
# Tests at once: one more than processors, since many wait for others.
JOBS ?= $(shell echo $$(($$(env -u OMP_NUM_THREADS nproc 2> /dev/null || echo 1) + 1)))
# Those that `make test-gateway` runs; `long`: the others.
GATEWAY ?= not long and not nightly
# Markers of what `make test-slurm` runs; `SLURM=slurm`: the long ones too.
SLURM ?= slurm and not long
# The tests of one file on one worker, in the order of tests/conftest.py: those that take longest come first.
SPREAD := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
# Compiled modules are kept, whatever the machine's setting: tests start many processes.
export PYTHONDONTWRITEBYTECODE :=
# Folders of tests whose long ones run; empty: all.
ROOMS ?=

.PHONY: gpu-check help venv weaver demo test test-long test-law test-upstream test-newest coverage test-gateway test-slurm slurm-up slurm-down bench bench-data lint format clean

help: ## list the chores
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

venv: $(VENV)/.installed ## create the environment, locked by constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard bhive_mltf/*/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,export,optimize,dev]'
	touch $@

demo: venv ## train and evaluate DeepJet on the shipped sample, tracked in MLflow
	VENV=$(abspath $(VENV)) bash examples/demo.sh

test: venv ## the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slurm and not gateway and not long and not nightly' \
		$(SPREAD)

coverage: venv ## the default test suite, and which lines of the package it runs, in ranks, jobs and law commands too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slurm and not gateway and not long and not nightly' \
		$(SPREAD) --cov --cov-report=term:skip-covered

test-long: venv ## tests that take minutes: trainings killed again and again, large data (LONG=long: without the longest)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m '($(LONG)) and not slurm and not gateway' --numprocesses auto $(ROOMS)

test-law: venv ## the tests of workflows and of the law package on the oldest law that is supported
	$(BIN)/pip install --quiet --no-deps --upgrade --target .law-oldest law==$(OLDEST_LAW)
	BHIVE_TEST_LAW=$(abspath .law-oldest) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slurm' \
		tests/law/test_workflow.py tests/law/test_package.py

test-upstream: $(UPSTREAM_VENV)/.installed ## tests in upstream's pinned versions (their torch brings gigabytes of CUDA libraries)
	BHIVE_TEST_PINS=constraints-upstream.txt OMP_NUM_THREADS=1 $(UPSTREAM_VENV)/bin/python -m pytest -q \
		-o filterwarnings=default --disable-warnings -m 'not slurm and not gateway and not long and not nightly' \
		--numprocesses auto --dist loadfile $(ELSEWHERE)

$(UPSTREAM_VENV)/.installed: pyproject.toml constraints-upstream.txt
	$(UPSTREAM_PYTHON) -m venv $(UPSTREAM_VENV)
	$(UPSTREAM_VENV)/bin/pip install --quiet $$(grep -v '^#' constraints-upstream.txt)
	$(UPSTREAM_VENV)/bin/pip install --quiet . hypothesis pytest pytest-xdist
	touch $@

test-newest: $(NEWEST_VENV)/.installed ## tests in the newest versions of all packages but torch
	OMP_NUM_THREADS=1 $(NEWEST_VENV)/bin/python -m pytest -q \
		-m 'not slurm and not gateway and not long and not nightly' --numprocesses auto --dist loadfile $(ELSEWHERE)

$(NEWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install --quiet torch==2.13.0 '.[all,dev]'
	touch $@

weaver: $(WEAVER_VENV)/bin/weaver ## create the environment of weaver-core, for `make bench` only

$(WEAVER_VENV)/bin/weaver:
	$(PYTHON) -m venv $(WEAVER_VENV)
	$(WEAVER_VENV)/bin/pip install --quiet torch==2.13.0 weaver-core==0.5.3

$(SYNTHETIC): | venv
	$(BIN)/python benchmarks/synthetic.py $@

bench: venv weaver | $(DATA) ## all benchmarks; DATA=folder of JetClass files, without it small synthetic ones
	export WEAVER_PYTHON=$(abspath $(WEAVER_VENV))/bin/python; \
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script" --data $(DATA); done

bench-data: venv weaver | $(DATA) ## conversion, loader and cost per jet: table and figure (DATA; QUICK=--quick: the smallest)
	WEAVER_PYTHON=$(abspath $(WEAVER_VENV))/bin/python $(BIN)/python benchmarks/data_path.py --data $(DATA) \
		--figure .bench/scale.png $(QUICK)

gpu-check: venv ## what to run first on a GPU; without one its part for CPUs (ONLY=row,row: some rows)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python benchmarks/gpu_check.py --only "$(or $(ONLY),all)"

test-slurm: venv ## the suite on a real two-node SLURM cluster, which it starts and stops itself
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m '$(SLURM) and not gateway' --numprocesses 2 --dist loadfile

test-gateway: $(VENV)/.gateway ## the gateway: real cluster, MLflow server, sign-on provider (node), sandbox (bubblewrap)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m '$(GATEWAY)' tests/gateway \
		--numprocesses 2 --dist loadfile

$(VENV)/.gateway: $(VENV)/.installed client/pyproject.toml
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gateway,gateway-test]' --editable client
	touch $@

slurm-up: venv ## a two-node SLURM cluster on this machine (LAB='--accounting': with sacct); installs its packages as root
	$(BIN)/bhive-mltf slurm lab up --install $(LAB)

slurm-down: venv ## stop that cluster
	$(BIN)/bhive-mltf slurm lab down

lint: venv ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches (outputs stay)
	rm -rf $(VENV) $(UPSTREAM_VENV) $(NEWEST_VENV) .law-oldest .venv-weaver .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
