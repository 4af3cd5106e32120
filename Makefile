# Everything a user or a developer does, on a fresh Debian with Python 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes: on two cores more of them only bring time limits nearer.
WORKERS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test lint bench bench-shadow bench-locator soak clean lock

run: $(VENV)/.run
	exec $(BIN)/shieldx serve $(ARGS)

test: $(VENV)/.dev $(VENV)/.linters
	$(BIN)/python tests/debian.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check app bench tests
	$(BIN)/ruff check app bench tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

bench-shadow: $(VENV)/.dev
	$(BIN)/python -m bench.shadow $(ARGS)
	$(BIN)/python -m bench --scenario assign,outcomes $(ARGS)

bench-locator: $(VENV)/.dev
	$(BIN)/python -m bench.locator_pick
	$(BIN)/python -m bench.locator_http $(ARGS)
	$(BIN)/python -m bench.postgres_pool

soak: $(VENV)/.dev
	$(BIN)/python -m bench --soak 600 $(ARGS)
	$(BIN)/python -m pytest tests/recovery --recovery-rounds 10 $(ARGS)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile explore $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app bench tests -name __pycache__ -type d -prune -exec rm -rf {} +

LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -q

lock: $(VENV)/.dev
	$(LOCK) pyproject.toml --extra embedded -o requirements.lock
	$(LOCK) pyproject.toml -c requirements.lock -o requirements-image.lock
	$(LOCK) pyproject.toml --extra embedded --group dev -o requirements-dev.lock
	$(LOCK) --group linters -o requirements-linters.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	touch $@

# uv, because pip needs 45 s of processor time for these, uv 2 s.
$(VENV)/.linters: requirements-linters.lock $(VENV)/.dev
	rm -rf $(VENV)/linters
	$(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python --target $(VENV)/linters -r requirements-linters.lock
	touch $@
