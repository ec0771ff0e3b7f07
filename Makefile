# `make run` and `make test` do all the set-up. Everything lives in .venv.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 13)))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Real data and models beside the checkout are used where they are; nothing needs them.
export RADIXLAB_DATA ?= $(realpath $(wildcard ../shared/data))
export RADIXLAB_MODELS ?= $(realpath $(wildcard ../shared/models))

.PHONY: run test lint types pytest gpu format clean

# On the built-in sample: the same on every machine, and short.
run: .venv/installed
	RADIXLAB_DATA= $(BIN)/python run.py workload=mmlu policy=lru

test: lint types pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

pytest: .venv/installed
	$(BIN)/python -m pytest -n 2

# On a machine with an NVIDIA GPU, with its own python3 where there is no .venv: everything measured, under 10 minutes.
gpu:
	$(or $(wildcard $(BIN)/python),python3) -m experiments.bench.gpu $(ARGS)

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first, on its own and pinned: any looser request may pull gigabytes of another build.
.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "radixlab needs Python 3.11 or 3.12 on PATH (or: make PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
