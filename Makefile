# Every chore is one command. `make demo` and `make test` make their own environment the first time.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 3
BESIDE = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-board test-pythons lint format wheels proto golden bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## the environment in .venv, with everything for development

$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard transport/coder/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# timm wants torchvision, whose binary must fit torch's: the tests bring what is missing on CPU builds.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm torchvision
	@touch $@

demo: $(STAMP) ## train, compile, serve and stream on rendered frames; writes demo-output/report.html
	$(BIN)/narrowcast demo

test: $(STAMP) ## the tests, three files at a time: some of them wait (WORKERS=0: one after the other)
	$(BIN)/python -m pytest -m 'not slow and not alone' $(BESIDE)
	$(BIN)/python -m pytest -m alone

test-slow: $(STAMP) ## what `make test` leaves out: more networks, and combinations of what it shows one by one
	$(BIN)/python -m pytest -m slow $(BESIDE)

test-board: $(STAMP) ## flash an emulated arm64 board (root, and Debian's packages; several minutes)
	EMULATED_BOARD=1 $(BIN)/python -m pytest -o faulthandler_timeout=3600 tests/hardware/test_emulated_board.py

test-pythons: ## the tests that need no torch, on every supported Python that is here
	scripts/test_pythons.sh

lint: $(STAMP) ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheels: $(STAMP) ## x86-64 and arm64 Linux wheels, in dist/
	$(BIN)/python scripts/build_wheels.py

proto: ## regenerate the code of the .proto files
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip install --quiet --constraint constraints.txt grpcio-tools
	scripts/generate_proto.sh .venv-proto/bin/python

golden: $(STAMP) ## regenerate tests/golden; only ever with a new format version
	$(BIN)/python tests/golden/regenerate.py

bench: $(STAMP) ## the side-by-side measurements
	$(BIN)/python bench/coder.py
	$(BIN)/python bench/networks.py

clean: ## what can be made again
	rm -rf $(VENV) .venv-proto build dist *.egg-info .narrowcast demo-output transport/coder/_rans.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
