# `make up` runs the service, `make test` checks everything; each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := up

# A stamp per lock file: the second run of either command installs nothing.
$(VENV)/.runtime: requirements/runtime.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Headwater needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV)" >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/runtime.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/.runtime
	@echo "installing the locked test dependencies into $(VENV)" >&2
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock
	@touch $@

.PHONY: up setup test check lint types collect lock
up: $(VENV)/.runtime
	@exec $(BIN)/headwater up

setup: $(VENV)/.dev

# The tests start hundreds of processes: bytecode is kept, so that each needn't compile everything. Some only
# wait: five workers leave 7 % of two cores idle, four left 13.
test: check
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 5 --maxschedchunk 1

check: $(VENV)/.dev
	@$(MAKE) --no-print-directory -j 2 lint types collect

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev
	@$(BIN)/mypy

# Five workers would each rewrite the asserts of all tests; what cannot be collected, they tell.
collect: $(VENV)/.dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --collect-only -qq >/dev/null || true

# Needs uv on PATH (`pip install uv`). --universal covers every Python and platform in one file.
lock:
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate pyproject.toml -o requirements/runtime.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --extra dev -c requirements/runtime.lock pyproject.toml -o requirements/dev.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --extra otel -c requirements/dev.lock pyproject.toml -o requirements/otel.lock
	echo "setuptools>=77" | uv pip compile -q --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --no-annotate - -o requirements/build.lock
