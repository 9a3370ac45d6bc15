# `make demo` is the shortest way in, `make check` is what CI runs. Everything stays inside .venv and runs/.
#
# PYTHON=python3.12              another interpreter (3.11 to 3.13)
# TORCH_INDEX=URL                take torch from this package index: the way to a CPU or a certain CUDA build
#                                (see "Get started locally" on PyTorch's site for the URLs). Unset: pip's own settings.

PYTHON ?= python3
TORCH_INDEX ?=
KILLS ?= 100
BIN := .venv/bin
INSTALLED := .venv/.installed
# On a terminal pip shows the bar of what may be a large download; elsewhere only what went wrong.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --constraint constraints.txt
QUIET := $(if $(MAKE_TERMOUT),,--quiet)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test kill-test lint format types check clean

help:
	@echo "make setup   a virtual environment in .venv with pinned packages"
	@echo "make demo    setup, then 'inheritune run demo': a target of half the reference's layers, and its report"
	@echo "make test    setup, then the tests"
	@echo "make kill-test  a run killed at a hundred random moments and started again: it ends in the same bytes"
	@echo "make check   setup, then lint, format, types and tests: what CI runs"
	@echo "make format  setup, then mend what lint and format can mend"
	@echo "make clean   remove .venv and caches; runs/ is kept"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "$(PYTHON) is no Python 3.11 to 3.13: install one and name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; }
	@echo "Installing torch (to download: a CPU build 0.2 GB, a CUDA build about 3 GB) ..."
	@$(PIP_INSTALL) $(QUIET) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "Installing the other packages (to download: 0.2 GB) ..."
	@$(PIP_INSTALL) --quiet setuptools
	@$(PIP_INSTALL) --quiet --no-build-isolation --editable '.[dev]'
	@touch $@
	@echo "Ready: $(BIN)/inheritune --help"

demo: setup
	$(BIN)/inheritune run demo

test: setup
	$(BIN)/python -m pytest

kill-test: setup
	INHERITUNE_KILLS=$(KILLS) $(BIN)/python -m pytest tests/test_resume.py -k random -s

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy

check: lint types test

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build src/*.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
