# `make demo` and `make test` work on a fresh machine that has Python 3.11 or newer and nothing else:
# both build .venv here first. Stamps in .venv make the second run instant.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Where the CPU build of PyTorch comes from on Linux; left out by itself where it cannot be reached.
# `make demo TORCH_INDEX=` takes whatever the package index offers (on Linux that is the CUDA build).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# A certain interpreter: `make demo PYTHON=/path/to/python3.12`
PYTHON ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP_CORE := $(VENV)/.sned-core
STAMP_TEST := $(VENV)/.sned-test
# All runtimes together: some of them pin older versions of what the others use.
VENV_ALL := .venv-all
BIN_ALL := $(VENV_ALL)/bin
STAMP_ALL := $(VENV_ALL)/.sned-all
PINS := pyproject.toml constraints.txt tools/environment.sh

.PHONY: help demo test test-all lint environment clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP_CORE) ## prune a small network to half of its latency on this machine, and prove it
	@$(BIN)/sned demo

test: $(STAMP_TEST) ## lint, type check, import rules and every test; what CI runs
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup

test-all: $(STAMP_ALL) $(STAMP_TEST) ## exports to every runtime (.venv-all), and Keras models on TensorFlow and JAX (.venvs)
	$(BIN_ALL)/python -m pytest tests/export tests/measure/test_stages.py -p no:cacheprovider
	@bash tools/keras_backends.sh $(BIN)/python

lint: $(STAMP_TEST) ## ruff, mypy (strict) and the one-way imports
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

environment: $(STAMP_TEST) ## .venv with everything that development needs

clean: ## remove what was built and cached, .venv excepted
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -exec rm -rf {} +

$(STAMP_CORE): $(PINS)
	@TORCH_INDEX='$(TORCH_INDEX)' PYTHON='$(PYTHON)' bash tools/environment.sh core

$(STAMP_ALL): $(PINS) constraints-all.txt
	@TORCH_INDEX='$(TORCH_INDEX)' PYTHON='$(PYTHON)' bash tools/environment.sh all

$(STAMP_TEST): $(PINS) $(STAMP_CORE)
	@TORCH_INDEX='$(TORCH_INDEX)' PYTHON='$(PYTHON)' bash tools/environment.sh test
