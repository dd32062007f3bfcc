# `make quickstart` and `make test` need python3 (3.11 or newer, with venv) and make. Everything else is installed into .venv.
#
#   PYTHON=python3.12         the interpreter for the environment
#   TORCH_INDEX=<index url>   a further package index for torch; empty: none
#   JOBS=1                    number of test processes
#   LOWEST=torch==2.13.0     versions that `make test-lowest` takes instead of the lowest ones
#   CAMPAIGN_SECONDS=600      after this time a campaign starts no further case

PYTHON ?= python3
CAMPAIGN_SECONDS ?= 600
# The torch of PyPI needs 2.7 GB of CUDA libraries. A machine without an NVIDIA driver cannot use them, so torch then comes from
# PyTorch's index of CPU builds. If that index cannot be reached, pip warns and takes the build of PyPI.
DRIVER := $(shell command -v nvidia-smi || ls /proc/driver/nvidia/version 2>/dev/null)
TORCH_INDEX ?= $(if $(DRIVER),,https://download.pytorch.org/whl/cpu)
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ $$n -gt 2 ] && n=2; echo $$n)

BIN := .venv/bin
PIP := $(BIN)/python -m pip
INSTALLED := .venv/installed
INSTALLED_TEST := .venv/installed-test

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-gpu test-lowest campaigns lint audit docs constraints clean

help:
	@echo "make quickstart   prune a real multilingual model in minutes and report on every language"
	@echo "make test         run the linter, the type checker and the tests, except the slow ones"
	@echo "make test-slow    run the slow tests: whole runs, kills, every family, every task"
	@echo "make test-lowest  run the tests with the lowest versions that pyproject.toml allows, in .venv/lowest"
	@echo "make test-gpu     run the tests that need a GPU"
	@echo "make campaigns    kill runs, damage checkpoints and bundles, fill disks at random, and count what held"
	@echo "make lint         run the linter and the type checker"
	@echo "make audit        look for known vulnerabilities of the installed packages (pip-audit, needs PyPI)"
	@echo "make docs         renew the generated tables and help pages in the documentation"
	@echo "make constraints  write the versions in .venv to constraints.txt"
	@echo "make clean        remove .venv, builds and caches; runs/ stays"

quickstart: $(INSTALLED)
	$(BIN)/xlmprune compress recipes/quickstart.yaml

PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

test-slow: $(INSTALLED_TEST)
	$(PYTEST) -m slow

# In an environment of its own. An old torch with CUDA needs gigabytes; LOWEST=torch==<version> takes another.
test-lowest: | .venv/bin/python
	$(PYTHON) -m venv .venv/lowest
	$(PYTHON) tests/lowest.py $(LOWEST) > .venv/lowest/constraints.txt
	.venv/lowest/bin/python -m pip install -c .venv/lowest/constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[quickstart,test]'
	.venv/lowest/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# -rs prints why a test was skipped: on a machine without a GPU that is all of them.
test-gpu: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -m gpu -rs

campaigns: $(INSTALLED_TEST)
	failed=0; for file in tests/campaigns/*.py; do \
		$(BIN)/python $$file --seconds $(CAMPAIGN_SECONDS) || failed=1; done; exit $$failed

lint: $(INSTALLED_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy xlmprune benchmarks

# In an environment of its own, so that .venv holds what constraints.txt says. PyPI has no record of builds such as torch 2.13.0+cpu,
# so their version is asked for without the build. xlmprune itself is not on PyPI.
audit: $(INSTALLED_TEST)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install pip-audit
	$(PIP) freeze --all --exclude-editable | sed -nE 's/^([A-Za-z0-9._-]+==[^+ ]+).*/\1/p' > .venv/audit/requirements.txt
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r .venv/audit/requirements.txt

# torch comes first, without its dependencies: TORCH_INDEX applies to it alone, and pip asks an index that cannot be reached only once.
# The stamp file is newer than its sources, so nothing is installed twice.
$(INSTALLED): pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e '.[quickstart]'
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[quickstart,test]'
	touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "xlmprune needs Python 3.11 or newer; '$(PYTHON)' is older or missing. Choose another: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }

docs: $(INSTALLED)
	$(BIN)/python docs/renew.py

constraints: $(INSTALLED_TEST)
	{ sed -n '/^#/p' constraints.txt; \
	  $(PIP) freeze --all --exclude-editable | grep -v -i -E '^(pip|xlmprune|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)(==| @)' \
	  | sed -E 's/^(torch==[^+]*)\+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find xlmprune tests benchmarks -name __pycache__ -type d -exec rm -rf {} +
