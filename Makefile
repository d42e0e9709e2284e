# Targets of clipbench; `make help` lists them. The environment lives in .venv and is made from constraints.txt.
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python
# The paper's size where a GPU is there, else the size for two CPU cores.
SIZE = $(shell $(PY) -c "import torch; print('paper' if torch.cuda.is_available() else 'cpu')" 2>/dev/null || echo cpu)
EXPERIMENT ?= ps_clip_alexnet_cifar100/$(SIZE)
.DEFAULT_GOAL := help
.PHONY: help install run sweep test test-all test-gpu lint format bench calibrate tune leaderboard collect figures report notebooks docs clean

help:  ## list all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: .venv/.installed  ## create .venv with the pinned dependencies and the package

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "clipbench needs Python 3.11 or newer; name one: make install PYTHON=python3.12")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# FRESH=1 trains all runs anew, in a folder of its own; else what is published is found, and one run repeated.
FRESH ?=
OWN = results/own
run: install  ## the published comparison of sgd, norm_clip and ps_clip, one of its runs trained again, table and figure
ifeq ($(FRESH),)
	$(PY) -m clipbench.run -m experiment=heavy_tailed_mlp/cpu
	$(PY) -m clipbench.verify heavy_tailed_mlp/cpu --method ps_clip --seed 0
	$(PY) -m clipbench.report summary heavy_tailed_mlp/cpu --into $(OWN)
else
	rm -rf $(OWN)
	$(PY) -m clipbench.run -m experiment=heavy_tailed_mlp/cpu paths.results=$(OWN)
	$(PY) -m clipbench.report summary heavy_tailed_mlp/cpu --results $(OWN)
endif

sweep: install  ## all methods × seeds of EXPERIMENT=<name>/<size>; may be interrupted and repeated
	$(PY) -m clipbench.run -m experiment=$(EXPERIMENT)
	$(PY) -m clipbench.report summary $(EXPERIMENT)

test: install  ## the fast tests (about 9 minutes on two cores; one room: pytest tests/<room>)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu"

test-all: install  ## the fast and the slow tests
	$(PY) -m pytest -q -m "not gpu"

test-gpu: install  ## the tests that need a CUDA device
	$(PY) -m pytest -q -m gpu

lint: install  ## ruff (format and rules), mypy, and the import contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: install  ## format the code and mend what ruff can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

notebooks: install  ## execute the notebooks on results/ and store them with their outputs
	$(PY) scripts/notebooks.py

docs: install  ## the API site and the guides, in build/docs; a warning or a broken link inside is an error
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

bench: install  ## per-sample engines, spectral kernels and the trainer's overhead, as ratios (about an hour)
	$(PY) -m clipbench.bench all

calibrate: install  ## step time of all methods of EXPERIMENT, interleaved in one process
	$(PY) -m clipbench.calibrate experiment=$(EXPERIMENT)

TRIALS ?= 16
tune: install  ## tune all methods of EXPERIMENT with TRIALS trials each, then the winners on fresh seeds
	$(PY) -m clipbench.tune experiment=$(EXPERIMENT) trials=$(TRIALS)

leaderboard: install  ## every method on the embedded suite, equally tuned; found, resumed or run (about four hours)
	$(PY) -m clipbench.leaderboard

collect: install  ## add the records of results/runs to results/data, one file per experiment
	$(PY) -m clipbench.report collect

figures: install  ## figures from results/data
	$(PY) -m clipbench.report figures

report: install  ## tables, figures and REPORT.md from results/data
	$(PY) -m clipbench.report all --readme README.md

clean:  ## remove the environment and the caches; results stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
