# Targets of a checkout. `make demo` and `make test` install what they need first. `make` alone lists the targets.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# GPU=1 installs the CUDA packages. Without GPU=0 or GPU=1, an existing installation keeps its set of packages.
GPU ?= $(if $(wildcard $(VENV)/.installed-gpu-*),1,0)
FLAVOUR := $(if $(filter 1,$(GPU)),gpu,cpu)
LOCK := requirements/$(FLAVOUR).lock
# The stamp's name has a hash of the lock and pyproject.toml, so a change of either reinstalls.
STAMP := $(VENV)/.installed-$(FLAVOUR)-$(shell cat $(LOCK) pyproject.toml | cksum | tr ' ' -)

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: demo
demo: install ## The whole pipeline on the embedded task, about ten minutes on two cores
	$(BIN)/cpo-ray run configs/demo.yaml

# Two pytest workers, one per core.
QUICK := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not e2e and not gpu and not chaos"

.PHONY: study
study: install ## The preregistered study and its page: takes many hours, run it again to continue. ARGS=--dry-run lists it
	@status=0; $(BIN)/cpo-ray sweep study/study.yaml $(ARGS) || status=$$?; \
	$(if $(findstring --dry-run,$(ARGS)),,$(BIN)/python -m study.page;) exit $$status

.PHONY: study-dry-run
study-dry-run: install ## What the study would run, what its runs share, and how long it takes
	$(BIN)/cpo-ray sweep study/study.yaml --dry-run

.PHONY: test
test: lint ## Linters and every test except chaos; tests that need a GPU are skipped without one
	@failed=0; \
	$(QUICK) || failed=1; \
	$(BIN)/pytest -n 2 --dist loadfile -m "(e2e or gpu) and not chaos" || failed=1; \
	exit $$failed

.PHONY: test-fast
test-fast: install ## Tests that do not start Ray or vLLM, under a minute
	$(QUICK)

.PHONY: chaos
chaos: install ## Kill workers, drivers and nodes repeatedly, and other long tests: takes hours
	$(BIN)/pytest -m chaos

.PHONY: lint
lint: install ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench-training
bench-training: install ## A training step against its baselines; writes ratios to benchmarks/results/
	@$(MAKE) --no-print-directory trl || echo "TRL cannot be installed: its ratio will not be measured"
	$(BIN)/python -m benchmarks.training

.PHONY: bench-sampling
bench-sampling: install ## The sampling stage against its parts, and a dump of 1 GB: takes hours; writes ratios to benchmarks/results/
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.readers

.PHONY: bench-serving
bench-serving: install ## Switching an engine's weights in place against starting another; writes ratios to benchmarks/results/
	$(BIN)/python -m benchmarks.serving

.PHONY: trl
trl: $(VENV)/trl/.installed-$(shell cksum < benchmarks/trl.txt | tr ' ' -) # TRL in a separate folder, for bench-training

$(VENV)/trl/.installed-%: $(STAMP)
	rm -rf $(VENV)/trl
	$(BIN)/pip install -qq --no-deps --require-hashes --target $(VENV)/trl -r benchmarks/trl.txt
	@touch $@

.PHONY: docs
docs: install ## Write docs/configuration.md, docs/api.md and the map in docs/architecture.md from the code
	$(BIN)/python -m cpo_ray.config.reference_page docs/configuration.md
	$(BIN)/python -m tests.code_map docs/architecture.md
	$(BIN)/python -m tests.api_page docs/api.md

.PHONY: install
install: $(STAMP) ## Set up .venv from the lock (GPU=1 for the CUDA set)

$(STAMP):
	@$(MAKE) --no-print-directory check
	@if compgen -G "$(VENV)/.installed-*" >/dev/null && ! compgen -G "$(VENV)/.installed-$(FLAVOUR)-*" >/dev/null; then \
	  echo "$(VENV) has the other set of packages (cpu or gpu): reinstalling"; rm -rf $(VENV); fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
ifeq ($(FLAVOUR),cpu)
	@# If the index cannot be reached, pip skips it quickly and takes the wheel from PIP_FIND_LINKS.
	$(BIN)/pip install -qq --no-deps --retries 1 --timeout 15 --extra-index-url $(TORCH_INDEX) torch==$(TORCH)
endif
	@echo "installing $$(grep -c == $(LOCK)) packages from $(LOCK): takes some minutes"
	$(BIN)/pip install -qq --no-deps --require-hashes -r $(LOCK)
	$(BIN)/pip install -qq --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*
	@touch $@

.PHONY: check
check: # Check for requirements that pip cannot install; one line each
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is missing: install python3.11, python3.11-venv and python3.11-dev, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but Python 3.11 is needed: run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks venv: install python3.11-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").is_file())' || { echo "$(PYTHON) lacks its C headers (Python.h): install python3.11-dev" >&2; exit 1; }
	@command -v g++ >/dev/null || { echo "the C++ compiler g++ is missing: install g++ (DeepSpeed builds one small extension)" >&2; exit 1; }

# uv resolves the locks, from a separate environment. They contain no index, host or path of this machine.
UV := $(VENV)/uv/bin/uv
COMPILE := $(UV) pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
CPU_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)

.PHONY: lock
lock: $(UV) ## Resolve requirements/*.in again into cpu.lock and gpu.lock
	$(COMPILE) --upgrade $(CPU_TORCH) --override requirements/cpu.override --no-emit-package torch \
	  requirements/cpu.in -o requirements/cpu.lock
	$(COMPILE) --upgrade requirements/gpu.in -o requirements/gpu.lock

$(UV):
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/pip install -qq uv==0.13.9

.PHONY: clean
clean: ## Remove .venv, caches and build files; runs/ is kept
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
