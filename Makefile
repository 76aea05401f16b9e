# make demo: the whole road on a small network. make test: everything that CI checks. Needs Python 3.10 or later, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEEDS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench-quick clean

help:
	@echo "make demo         install into $(VENV) and run rankray demo"
	@echo "make test         install with the tools of development; lint, types, import contracts, tests"
	@echo "make lint         the same without the tests"
	@echo "make bench-quick  every benchmark in its short form"
	@echo "make clean        remove $(VENV) and what tools cached"

demo: $(VENV)/.installed
	@$(BIN)/rankray demo

# ALONE keep to one core each; the other tests start Ray and processes of their own. Examples are drawn by a fixed seed,
# so that a change is judged by itself; `pytest` alone draws new ones.
ALONE := tests/search_spaces tests/workers tests/orchestrator/config tests/orchestrator/searches
test: lint
	@$(BIN)/python -m pytest --hypothesis-seed=0 -n 2 --dist loadfile $(ALONE)
	@$(BIN)/python -m pytest --hypothesis-seed=0 tests $(ALONE:%=--ignore=%)

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted as \`$(BIN)/ruff format .\` would" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench-quick: $(VENV)/.installed-dev
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" --quick; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "RankRay needs Python 3.10 or later, and \`$(PYTHON)\` is not that: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "\`$(PYTHON) -m venv\` failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# $(call install,WHAT): quiet but for errors; then, before anything else, that torch and torchvision fit each other.
define install
@echo "Installing into $(VENV) (torch is large: minutes)"
@$(BIN)/python -m pip install -qq --disable-pip-version-check -e "$(1)" -c constraints.txt
@$(BIN)/python -c 'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)' || { \
	echo "torch and torchvision in $(VENV) do not fit each other. constraints.txt pins a pair that does: look for another" >&2; \
	echo "build of torch in pip's settings (\`pip config list\`: find-links, extra-index-url); then make clean." >&2; exit 1; }
endef

# The stamps: a second call installs nothing unless what is needed has changed.
$(VENV)/.installed: $(NEEDS) | $(VENV)/bin/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: $(NEEDS) | $(VENV)/bin/python
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed
