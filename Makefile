# Two commands matter: `make demo` and `make test`. Both set up a virtual environment of their own in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types unit soak bench clean

demo: $(VENV)/.installed
	env -u SAMESTEP_DATA $(BIN)/samestep demo

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m "not soak" --numprocesses 2 --dist worksteal --durations=10

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m soak --durations=10
	$(BIN)/python -m benchmarks.soak

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.step_time --extras m8,bf16,channels-last,bf16-channels-last
	$(BIN)/python -m benchmarks.machinery
	$(BIN)/python -m benchmarks.recorder
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.noise_cost
	$(BIN)/python -m benchmarks.waiting
	$(BIN)/python -m benchmarks.feed
	$(BIN)/python -m benchmarks.seek
	$(BIN)/python -m benchmarks.beyond_memory
	$(BIN)/python -m benchmarks.backprop
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.bubble
	$(BIN)/python -m benchmarks.kinds
	$(BIN)/python -m benchmarks.auto
	$(BIN)/python -m benchmarks.group
	$(BIN)/python -m benchmarks.stage_memory
	$(BIN)/python -m benchmarks.kfac
	$(BIN)/python -m benchmarks.data_accuracy
	$(BIN)/python -m benchmarks.study_time
	$(BIN)/python -m benchmarks.links
	$(BIN)/python -m benchmarks.local_sync
	$(BIN)/python -m benchmarks.batches
	$(BIN)/python -m benchmarks.widths
	$(BIN)/python -m benchmarks.accuracy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "samestep needs Python 3.11 or later; name one: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
