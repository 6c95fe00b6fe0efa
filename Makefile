# Every target installs what it needs into .venv first; the second time that is a file date check.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-all lint format vectors bench clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s %s\n", $$1, $$2}'

.venv/.stamp: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "error: $(PYTHON) is Python %d.%d, but 3.11 or newer is needed. Name another one: make PYTHON=/path/to/python3.12" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) has no venv module (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Installing into .venv (the first time a minute or two: PyTorch is large) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@
	@echo "Installed."

demo: .venv/.stamp ## The whole story on real data, in a minute
	@$(BIN)/pol demo

test: .venv/.stamp ## The tests without the slow ones
	@$(BIN)/python -m pytest tests -m "not slow" -n 2

# What starts processes of its own is left out, and the long tables of forgeries, policies, trainings and calibrations.
LONG := cli cli_answers processes docs vectors benchmarks resume writer paper forgeries forgeries_tolerance calibrate \
	calibrate_noise foreign platforms policy policy_files mutations honest verifier plan \
	complete_state compile features doctor silent loaders remote disks cleaning

test-unit: .venv/.stamp ## The tests that stay in one process, in under a minute
	@$(BIN)/python -m pytest tests -m "not slow" -n 2 $(foreach name,$(LONG),--ignore=tests/test_$(name).py)

test-all: lint ## Lint, types and every test
	@$(BIN)/python -m pytest tests -n 2

lint: .venv/.stamp ## ruff check, ruff format --check, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/.stamp ## Format and fix what ruff can fix
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

vectors: .venv/.stamp ## Make the golden proofs under tests/vectors again
	@$(BIN)/python tests/vectors/generate.py

bench: .venv/.stamp ## Run the benchmarks, about half an hour; with ResNet-20: DATA=cifar.npz
	@$(BIN)/python -m benchmarks $(if $(DATA),--data $(DATA))

clean: ## Remove .venv and every cache
	@rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache src/*.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
