# Each target sets itself up: `make repro` is the first command on a fresh clone.
# VENV=path reuses an environment of your own, PYTHON=python3.12 chooses the interpreter of a new one.
VENV ?= .venv
PYTHON ?= python3
# absolute, because stages and notebook kernels call python from wherever they are started
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.PHONY: repro test torture lint bench site ray setup

repro: setup
	@$(BIN)/python -m kd repro

test: setup
	@$(BIN)/python -m pytest

torture: setup
	@$(BIN)/python -m pytest -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports
	@$(BIN)/python -m kd lint

bench: setup
	@$(BIN)/python benchmarks/step.py

# build/site from the committed reports; it needs no network once its packages are there
site: setup $(BIN)/.installed-site
	@$(BIN)/python site/build.py
	@echo "build/site/index.html is there; to read it: $(BIN)/python -m http.server --directory build/site"

# for a study on many machines: docs/cluster.md
ray: setup $(BIN)/.installed-ray

setup: $(BIN)/.installed

# the package itself too, editable: Jupyter and editors start a notebook's kernel in notebooks/, where Python would not find it
$(BIN)/.installed: requirements.txt pyproject.toml
	@test -x $(BIN)/python || { $(PYTHON) -c '$(SUPPORTED)' && $(PYTHON) -m venv $(VENV); } && $(BIN)/python -c '$(SUPPORTED)' \
		|| { echo "Python 3.11 or 3.12 is needed: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@echo "Installing the pinned packages into $(VENV) (a few minutes, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip would do it on one core; a few files are for other versions of Python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/.installed-site: requirements-site.txt $(BIN)/.installed
	@echo "Installing what the site needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-site.txt
	@touch $@

$(BIN)/.installed-ray: requirements-ray.txt $(BIN)/.installed
	@echo "Installing Ray into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-ray.txt
	@touch $@
