# The front door: setup demo test check bench docs fix clean. CI calls `test`, then `check`.
# Needs Python 3.11 or later with venv and headers, and a C++ compiler; everything else comes from the package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
	$(wildcard src/tersor/kernels/native/*.cpp src/tersor/kernels/native/*.h src/tersor/kernels/native/*.hpp)

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test check bench docs fix clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.dev  ## everything to develop: tersor (editable), torch, llama.cpp, the checkers

demo: $(VENV)/.demo  ## quantize the embedded model, run it in llama.cpp, print the Card; needs no torch
	$(BIN)/tersor demo

test: $(VENV)/.dev  ## all tests but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

check: $(VENV)/.dev  ## format, lint, types, slow tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "slow and not gpu"

# Left out, to be run by hand, `$(BIN)/python benchmarks/NAME.py`: those that make environments of gigabytes for vLLM or
# for other quantizers (interop, peers_*, int8_peers), those that write checkpoints of gigabytes (bounded_memory, decode_cpu) or
# install a peer (linear_roofline), and those
# that load a live server for many minutes (serving_*).
BY_HAND := benchmarks/interop.py benchmarks/bounded_memory.py $(wildcard benchmarks/peers_*.py) benchmarks/int8_peers.py benchmarks/nets.py benchmarks/net_plans.py benchmarks/net_cures.py benchmarks/rollout_statistics.py benchmarks/shadow_cost.py benchmarks/drift_replay.py benchmarks/linear_roofline.py benchmarks/decode_cpu.py benchmarks/mobile_estimates.py benchmarks/engine_choice.py benchmarks/estimate_decode.py benchmarks/plan_quality.py benchmarks/qat_language.py $(wildcard benchmarks/serving_*.py)

bench: $(VENV)/.dev  ## the benchmarks that need no more than is installed, one after the other
	set -e; for script in $(filter-out $(BY_HAND),$(sort $(wildcard benchmarks/*.py))); do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.dev  ## fill the generated tables of README and docs from the code
	$(BIN)/python tools/generate_docs.py

fix: $(VENV)/.dev  ## mend what the formatter and linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove everything that was built
	rm -rf $(VENV) .venv-peers build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, with the build tools in it: the kernels are built without isolation, so that a rebuild takes seconds.
$(VENV)/.tools: constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or later (Debian: apt install python3 python3-venv python3-dev)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: apt install python3-venv"; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || { echo "Python.h is missing: apt install python3-dev"; exit 1; }
	@command -v "$${CXX:-g++}" >/dev/null || command -v clang++ >/dev/null || { echo "no C++ compiler found: apt install g++"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing the build tools"
	@$(INSTALL) scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.demo: $(VENV)/.tools $(SOURCES)
	@echo "installing tersor and llama.cpp into $(VENV), compiling the kernels: a minute or two the first time"
	@$(INSTALL) --no-build-isolation --editable '.[llama]'
	@touch $@

# torch first: its CPU build where the index has one, for the default build on Linux brings gigabytes of CUDA libraries.
$(VENV)/.dev: $(VENV)/.tools $(SOURCES)
	@echo "installing tersor, torch, llama.cpp and the checkers into $(VENV), compiling the kernels: a few minutes the first time"
	@test "$$(uname -s)" != Linux || $(BIN)/python -c 'import torch' 2>/dev/null || $(INSTALL) 'torch==2.13.0+cpu' 2>/dev/null || \
		echo "the package index has no CPU build of torch: taking the default one, with its CUDA libraries. To avoid them, name an index that has it in PIP_EXTRA_INDEX_URL"
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/.demo
