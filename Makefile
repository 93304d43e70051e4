# `make demo` and `make test` each work alone on a machine that has python3, make and git: both build .venv first.
# pip reads PIP_INDEX_URL, PIP_EXTRA_INDEX_URL and PIP_FIND_LINKS as ever: on x86 Linux, name PyTorch's index of CPU wheels
# in one of them, or pip takes the CUDA build and its gigabytes.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' constraints.txt)
# mypy reads every folder of the product through the links in tests/typing: never name ir/ or passes/ here as well.
TYPED := tests docs/site $(sort $(dir $(wildcard examples/*.py benchmarks/*.py)))
LINKED := ir passes backends frontends $(wildcard tersor/*.py) $(patsubst %/__init__.py,%,$(wildcard tersor/*/__init__.py))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS)

# The name holds the checkout's path: scripts and the editable install hold it too, so a moved .venv is made anew.
STAMP := $(VENV)/.installed-$(firstword $(shell echo '$(CURDIR)' | cksum))

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1

.DEFAULT_GOAL := help
.PHONY: help venv demo docs test test-all test-gpu emulator lint types format links bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

venv: $(STAMP) ## make .venv and install tersor in it, editable, with everything development needs

demo: $(STAMP) ## compress a small model, end to end
	$(BIN)/python -m examples.demo

docs: $(STAMP) ## build the documentation into build/docs; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'open build/docs/index.html'

test: emulator lint types ## lint, types, and the quick tests
	$(PYTEST) -m "not slow and not gpu"

test-all: emulator lint types ## the same with the slow tests
	$(PYTEST) -m "not gpu"

test-gpu: $(STAMP) ## the tests that need an NVIDIA GPU
	$(BIN)/pytest -m gpu

# A processor that runs AArch64 itself needs its own C compiler alone.
EMULATION := cc g++ cmake $(if $(filter-out aarch64 arm64,$(shell uname -m)),qemu-aarch64 aarch64-linux-gnu-gcc)
PACKAGES := gcc g++ libc6-dev cmake $(if $(filter qemu-aarch64,$(EMULATION)),qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross)

emulator: ## install what the tests of the neon and hls targets run with, where that may be done; else name it
	@command -v $(EMULATION) >/dev/null && [ $$(command -v $(EMULATION) | wc -l) = $(words $(EMULATION)) ] || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); \
	    else \
	        echo 'to test the neon and hls targets: apt-get install $(PACKAGES) (as root)' >&2; [ -z "$$CI" ]; \
	    fi; \
	}

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check . || { echo 'run `make format`'; exit 1; }

types: $(STAMP) ## mypy, strict, on the tests and through them on everything
	$(BIN)/mypy $(TYPED)

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --quiet --fix-only .
	$(BIN)/ruff format .

links: ## link every module of the product into tests/typing/tersor
	@rm -rf tests/typing/tersor
	@mkdir -p tests/typing/tersor
	@for path in $(LINKED); do ln -s "../../../$$path" tests/typing/tersor/; done

bench: $(STAMP) ## every benchmark; one: make bench NAME=...
	$(BIN)/python -m benchmarks $(NAME)

clean: ## delete .venv, caches and build outputs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an install that was cut off is not taken for a whole one.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo 'tersor needs Python 3.10 or newer: make PYTHON=/path/to/python3.x ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv; \
	    fi; \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; \
	} || { echo '$(PYTHON) cannot make virtual environments: apt-get install python3-venv (as root), then make again' >&2; exit 1; }
	@echo 'installing into $(VENV): minutes the first time'
	@rm -f $(VENV)/.installed-*
	@$(BIN)/pip --version 2>/dev/null | grep -qF '$(CURDIR)/$(VENV)/' || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH) setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@
