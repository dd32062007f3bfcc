# `make quickstart` and `make test` need python3 (3.11 or newer, with venv) and make; everything else is installed into .venv.
#
#   PYTHON=python3.12         the interpreter the environment is made from
#   TORCH_INDEX=<index url>   where torch comes from, such as PyTorch's own index of CPU builds
#   JOBS=1                    test processes

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 2 ] && n=2; echo $$n)

BIN := .venv/bin
PIP := $(BIN)/python -m pip
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint docs constraints clean

help:
	@echo "make quickstart   prune a real multilingual model on this machine, in minutes, and report on every language"
	@echo "make test         lint, types, tests"
	@echo "make lint         lint and types alone"
	@echo "make docs         renew the tables and help pages of the documentation"
	@echo "make constraints  write the versions now in .venv to constraints.txt"
	@echo "make clean        remove .venv and what tools left behind; runs/ stays"

quickstart: $(INSTALLED)
	$(BIN)/xlmprune compress recipes/quickstart.yaml

test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy xlmprune

# torch first: it is the largest, and with TORCH_INDEX it alone comes from elsewhere.
# The stamp is newer than what it was made from, so nothing is installed twice.
$(INSTALLED): pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e '.[quickstart,test]'
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "xlmprune needs Python 3.11 or newer; '$(PYTHON)' is not. Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }

docs: $(INSTALLED)
	$(BIN)/python docs/renew.py

constraints: $(INSTALLED)
	{ sed -n '/^#/p' constraints.txt; \
	  $(PIP) freeze --all --exclude-editable | grep -v -i -E '^(pip|xlmprune|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)(==| @)' \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find xlmprune tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
