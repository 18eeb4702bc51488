# Two commands do everything from a bare python3: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes of the suite.
WORKERS ?= 2
SMOKE := $(wildcard tests/test_*.py tests/solver/test_*.py) \
	tests/planning/test_planner.py tests/cli/test_plan.py
SMOKE := $(filter-out tests/test_docs.py tests/solver/test_kernel_cache.py,$(SMOKE))

.PHONY: demo smoke test test-long test-engines test-engines-before test-engines-smoke test-browser report-example docs check bench dist clean help

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# A stamp names the Python that made the environment: another Python makes it anew. What cannot work
# is said in one line, before anything is made.
FOUND := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENVS := $(if $(FOUND),$(shell $(PYTHON) -c 'import ensurepip, venv; print("yes")' 2>/dev/null))
ifeq ($(FOUND),)
UNFIT := eplb needs Python 3.10 to 3.14, and $(PYTHON) does not run: install it, or name another with PYTHON=
else ifeq ($(filter $(FOUND),3.10 3.11 3.12 3.13 3.14),)
UNFIT := eplb needs Python 3.10 to 3.14, and $(PYTHON) is $(FOUND): name another, as in PYTHON=python3.13
else ifeq ($(VENVS),)
UNFIT := $(PYTHON) cannot make virtual environments: on Debian or Ubuntu, apt install python3-venv
endif
RUN := $(VENV)/.run-$(FOUND)
DEV := $(VENV)/.dev-$(FOUND)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The demo needs the package alone; tests and checks need everything.
$(RUN): pyproject.toml
	$(if $(UNFIT),$(error $(UNFIT)))
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
	$(INSTALL) --editable .
	@touch $@

$(DEV): pyproject.toml
	$(if $(UNFIT),$(error $(UNFIT)))
	$(PYTHON) -m venv $(if $(wildcard $@ $(RUN)),,--clear) $(VENV)
	$(INSTALL) --editable '.[dev]'
	@touch $(RUN) $@

demo: $(RUN)  ## what balancing gains, on loads that behave like DeepSeek-V3's
	@$(BIN)/eplb demo

# Compiled once, before processes that would each wait for it.
.PHONY: kernels
kernels: $(DEV)
	@$(BIN)/python tests/compile_kernels.py

smoke: kernels  ## what breaks first, in under a minute
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(SMOKE)

test: kernels  ## the whole suite, and kernels against their oracles without compiling them
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "oracle and not jit" tests/solver

test-long: kernels  ## what takes minutes: the full fuzz, other processors, the scripts of bench/
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m long

$(VENV)/engines: enginetests/fetch.py enginetests/requirements.txt | $(DEV)
	$(BIN)/python enginetests/fetch.py $@
	@touch $@

# A process for each engine: what they import is not made to be in one.
test-engines: $(VENV)/engines $(DEV)  ## the plug-ins, in the engines' own code from their wheels
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -o filterwarnings=default enginetests/test_sglang*.py
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -o filterwarnings=default enginetests/test_vllm*.py
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -rs -o filterwarnings=default enginetests/test_whole*.py

# The minor versions before the ones that test-engines has.
BEFORE := vllm==0.32.0 vllm==0.31.0 sglang==0.5.22 sglang==0.5.21

test-engines-before: $(VENV)/engines $(DEV)  ## the plug-ins, in the code of earlier versions of the engines
	set -e; for each in $(BEFORE); do \
		echo "$$each"; \
		test -d $(VENV)/$$each || $(BIN)/python enginetests/fetch.py $(VENV)/$$each $$each; \
		ENGINES=$(VENV)/$$each:$(VENV)/engines $(BIN)/python -m pytest -q \
			-o filterwarnings=default enginetests/test_$${each%%==*}.py \
			$$(ls enginetests/test_$${each%%==*}_batches.py 2>/dev/null); \
	done

test-engines-smoke: $(VENV)/engines $(DEV)  ## two whole vLLM engines: experts move now, and meanwhile
	ENGINES=$(VENV)/engines $(BIN)/python -m pytest -rs -o filterwarnings=default \
		enginetests/test_whole_vllm.py -k "eplb and not batch"

test-browser: $(DEV)  ## the report's page in a real Chromium
	$(BIN)/python -m pytest tests/browser/pages_in_chromium.py

# In a folder of its own, so that the page names a file and no place.
report-example: $(DEV)  ## docs/example-report.html, of the demo's mixed traffic
	mkdir -p build
	cd build && $(abspath $(BIN))/eplb synthesize deepseek-v3-mix mixed.npz --windows 48 \
		--tokens 3000000
	cd build && $(abspath $(BIN))/eplb report mixed.npz --gpus 32 --nodes 4 --slots 288 \
		--gpu H200 --window-seconds 60 -o ../docs/example-report.html

$(VENV)/.docs: pyproject.toml | $(DEV)
	$(INSTALL) --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs report-example  ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: $(DEV)  ## style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEV)  ## the planner against the peers in PEERS, in one run
	$(BIN)/python bench/planner.py $(foreach peer,$(PEERS),--peer $(peer))

# Addresses come from one setting, and none is invented.
export REPOSITORY

.PHONY: address
address:
	$(if $(REPOSITORY),,@echo "REPOSITORY is not set: the package names no address of its source, and links of its README lead nowhere; give it as make dist REPOSITORY=https://...")

dist: address $(DEV)  ## a wheel and a source distribution, in dist/; REPOSITORY=https://... is its address
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist

clean:  ## remove what was made here
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
