# Two commands do everything on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test faults simulate check lint bench clean

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tidegate needs Python >= 3.11; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/tidegate demo

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each fault of a cluster ROUNDS times, and a table of what came of it.
ROUNDS ?= 20
faults: .venv/installed
	mkdir -p build && rm -f build/faults.jsonl
	TIDEGATE_FAULT_ROUNDS=$(ROUNDS) TIDEGATE_FAULT_REPORT=build/faults.jsonl $(BIN)/pytest tests/faults -k test_cluster; \
	status=$$?; $(BIN)/python -m tests.faults.report build/faults.jsonl; exit $$status

# SEEDS seeds of each simulation on all cores; it says how to see one that fails again.
SEEDS ?= 1000
FIRST ?= 0
simulate: .venv/installed
	$(BIN)/python -m tests.simulator --seeds $(SEEDS) --first $(FIRST)

check: lint test

bench: .venv/installed
	$(BIN)/python -m bench

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
