# Two commands on a fresh machine: `make demo`, `make test`. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SPHINX := $(BIN)/python -m sphinx -W --keep-going -q

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs wheel bench clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; say make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
# Only its samplers are an oracle (tests/oracles); what the rest of it depends on does not install beside CPU-only torch.
	$(INSTALL) --no-deps k-diffusion
	@touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.dev
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps denoising-diffusion-pytorch
	@touch $@

demo: $(VENV)/.demo  ## train, sample and evaluate on real handwritten digits; pictures land in demo/
	GOMP_SPINCOUNT=10000 $(BIN)/python examples/digits.py --out demo

test: $(VENV)/.dev  ## the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict, on src
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the documentation in docs/_build, warnings as errors
	$(SPHINX) docs docs/_build

# What a run of some hours found before it was stopped is kept in runs/bench, and the next goes on from there.
bench: $(VENV)/.bench  ## every benchmark, some hours on a machine of one's own; the page is docs/benchmarks.md
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/costs.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/sampling_speed.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/copies.py
	$(BIN)/python benchmarks/presets.py
	$(BIN)/python benchmarks/sampler_choice.py
	$(BIN)/python benchmarks/guidance.py
	$(BIN)/python benchmarks/editing.py
	$(BIN)/python benchmarks/augmentation.py
	$(BIN)/python benchmarks/time_to_quality.py
	$(BIN)/python benchmarks/generators.py
	$(BIN)/python benchmarks/latents.py
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then benchmarks/gpu.sh; fi
	$(BIN)/python benchmarks/page.py

wheel: $(VENV)/.dev  ## the wheel in dist/
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## remove what the commands above made
	rm -rf $(VENV) dist docs/_build demo
