# Every target sets itself up: .venv, the right torch, the data. A second call skips what is done.
#
#   make train                                 train the default GEM on MovieLens-1M
#   make test                                  the tests
#   make train ARGS="interaction=none seed=2"  another sentence
#
# Variables:
#   PYTHON       interpreter for .venv, 3.11 to 3.13          (default: python3)
#   DEVICE       cpu or cuda                                  (default: cuda if nvidia-smi answers, else cpu)
#   TORCH_INDEX  package index that holds torch's CPU builds  (default: pip's own configuration)

PYTHON ?= python3
DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
TORCH_INDEX ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.gemkit-$(DEVICE)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PINS := -c constraints/base.txt -c constraints/$(DEVICE).txt
FBGEMM := $(if $(filter cuda,$(DEVICE)),fbgemm-gpu,fbgemm-gpu-cpu)

.PHONY: help train test test-all lint setup clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

train: $(STAMP)
	@$(BIN)/gemkit train $(ARGS)

# The third-party example is installed as anybody would install a plugin; tests train with it.
test: $(STAMP) lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-all: $(STAMP) lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(STAMP)
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && $(BIN)/mypy --no-error-summary

setup: $(STAMP)

# The order matters: torch by exact version before anything that depends on it; torchrec last and without its
# dependencies, because the fbgemm-gpu that it names is the CUDA build, which would overwrite the CPU one.
$(STAMP): pyproject.toml examples/third_party_plugin/pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "gemkit needs Python 3.11 to 3.13; name one with: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "setup: .venv"; $(PYTHON) -m venv .venv; }
	@echo "setup: torch ($(DEVICE))"
	@$(PIP) $(PINS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "setup: gemkit and its other dependencies"
	@$(PIP) $(PINS) tensordict torchmetrics pyre-extensions tqdm hatchling editables
	@$(PIP) $(PINS) $(if $(filter Linux,$(shell uname -s)),triton) -e ".[dev,tensorboard]"
	@echo "setup: torchrec and fbgemm"
	@$(PIP) $(PINS) --no-deps torchrec $(FBGEMM)
	@$(PIP) --no-deps --no-build-isolation -e examples/third_party_plugin
	@echo "setup: what the tests compare with"
	@$(PIP) $(PINS) --no-deps fuxictr torch-rechub
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist
