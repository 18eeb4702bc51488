# Two commands do everything from a bare python3: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-engines check bench clean help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The demo needs the package alone; tests and checks need everything.
$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.run $@

demo: $(VENV)/.run  ## plan and replay loads that behave like DeepSeek-V3's, and say what was gained
	@$(BIN)/eplb demo

test: $(VENV)/.dev  ## the whole suite
	$(BIN)/python -m pytest
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -m "not jit"

$(VENV)/engines: enginetests/fetch.py enginetests/requirements.txt | $(VENV)/.dev
	$(BIN)/python enginetests/fetch.py $@
	@touch $@

# A process for each engine: what they import is not made to be in one.
test-engines: $(VENV)/engines $(VENV)/.dev  ## the plug-ins, in the engines' own code from their wheels
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -o filterwarnings=default enginetests/test_sglang.py
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -o filterwarnings=default enginetests/test_vllm*.py

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.dev  ## the planner against the peers in PEERS, in one run
	$(BIN)/python bench/planner.py $(foreach peer,$(PEERS),--peer $(peer))

clean:  ## remove what was made here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
