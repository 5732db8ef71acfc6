PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Bytecode of all that is never imported would take a third of the time.
PIP := pip install --quiet --no-compile
WORKERS ?= 2

.PHONY: help install install-test quickstart test test-all test-aot mutants lint bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.installed: pyproject.toml
	@echo "installing JAX, Flax and what else pyproject.toml names into $(VENV): about a minute"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) --upgrade pip
	$(BIN)/$(PIP) --editable .
	touch $@

# torch comes first and pinned, so that nothing pulls another build of it.
$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing PyTorch and what else the tests need into $(VENV): some minutes"
	$(BIN)/$(PIP) torch==2.13.0
	$(BIN)/$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.installed-lint: $(VENV)/.installed-test
	@echo "installing ruff and pyright into $(VENV)"
	$(BIN)/$(PIP) --editable '.[lint]'
	touch $@

install: $(VENV)/.installed  ## environment with the library and the trainer

install-test: $(VENV)/.installed-test  ## the same with PyTorch and what else the tests need

quickstart: $(VENV)/.installed  ## train a real mHC language model on docstrings, in minutes
	$(BIN)/python -m train quickstart

test: $(VENV)/.installed-test  ## unit, parity and training tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

test-all: $(VENV)/.installed-test  ## the same with the slow studies
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m 'not aot'

# Apart from the other tests: both compilers beside torch are an environment nobody trains in.
test-aot:  ## compile a tiny model of each family for TPUs and the kernels for GPUs, without any
	@echo "installing JAX and the compilers of TPUs and GPUs into $(VENV)-aot: some minutes"
	$(PYTHON) -m venv $(VENV)-aot
	$(VENV)-aot/bin/$(PIP) --editable '.[tpu,gpu]' pytest
	$(VENV)-aot/bin/python -m pytest -q -m aot train/tests/test_aot.py train/tests/test_aot_gpu.py

mutants: $(VENV)/.installed-test  ## plant small bugs and report which ones the tests catch: hours, resumable
	$(BIN)/python -m mutants --workers $(WORKERS)

lint: $(VENV)/.installed-lint  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.installed-test  ## training, decoding, recurrence and compile-time benchmarks
	$(BIN)/python -m train.benchmark mhc_ssm_original --what scan
	$(BIN)/python -m train.benchmark mhc_ssm_original --what compile
	$(BIN)/python -m train.benchmark mhc_ssm_original --what train
	$(BIN)/python -m train.benchmark mhc_ssm_original --what decode

clean:  ## remove the environments and caches (runs/ stays)
	rm -rf $(VENV) $(VENV)-aot .pytest_cache .ruff_cache .mutants
