# Everything a user or a developer does, on a fresh Debian with Python 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes: one more than cores, because many tests wait for a server to start, to die or to be missed.
WORKERS ?= 3
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Hundreds of processes start in a run: none should compile what another has compiled.
export PYTHONDONTWRITEBYTECODE =
# The pip that fills the environment: the one of Debian 12 needs 38 s of processor time to find the 95 packages, this one 16 s.
PIP := pip==26.3 --hash=sha256:f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13
# What is imported is compiled then; to compile all of it at once takes 18 s of processor time.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: run test programs lint bench bench-proofs bench-shadow bench-locator dashboards dashboard-pictures soak clean manifests lock

run: $(VENV)/.run
	exec $(BIN)/shieldx serve $(ARGS)

test:
	$(MAKE) --jobs 2 $(VENV)/.dev $(VENV)/.linters programs
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

programs:
	$(PYTHON) tests/debian.py

lint: $(VENV)/.dev
	$(BIN)/ruff format --check app bench grafana k8s tests
	$(BIN)/ruff check app bench grafana k8s tests
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)

bench-proofs: $(VENV)/.dev
	$(BIN)/python -m bench.proofs $(ARGS)

bench-shadow: $(VENV)/.dev
	$(BIN)/python -m bench.shadow $(ARGS)
	$(BIN)/python -m bench --scenario assign,outcomes $(ARGS)

bench-locator: $(VENV)/.dev
	$(BIN)/python -m bench.locator_pick
	$(BIN)/python -m bench.locator_http $(ARGS)
	$(BIN)/python -m bench.postgres_pool

dashboards: $(VENV)/.dev
	$(BIN)/python -m grafana

dashboard-pictures: $(VENV)/.dev
	$(BIN)/python tests/debian.py
	$(BIN)/python -m tests.operations.dashboard_pictures $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m bench --soak 600 $(ARGS)
	$(BIN)/python -m pytest tests/recovery tests/operations/test_drills.py --recovery-rounds 10 $(ARGS)
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile explore $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find app bench grafana k8s tests -name __pycache__ -type d -prune -exec rm -rf {} +

LOCK := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header -q

manifests: $(VENV)/.dev
	$(BIN)/python k8s/rules.py

lock: $(VENV)/.dev
	$(INSTALL) uv
	$(LOCK) pyproject.toml --extra embedded -o requirements.lock
	$(LOCK) pyproject.toml -c requirements.lock -o requirements-image.lock
	$(LOCK) pyproject.toml --extra embedded --group dev -o requirements-dev.lock
	$(LOCK) --group linters -o requirements-linters.lock

# The machine's pip puts the newer one into the environment, so that none is unpacked only to be replaced.
$(VENV)/.pip:
	$(PYTHON) -m venv --without-pip $(VENV)
	echo '$(PIP)' | $(PYTHON) -m pip --python $(BIN)/python install --quiet --no-compile --require-hashes -r /dev/stdin
	touch $@

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/.pip
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --editable .
	touch $@

# Its lock holds all that requirements.lock holds, in the same releases: one installation is enough.
$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/.pip
	$(INSTALL) --require-hashes -r requirements-dev.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $(VENV)/.run $@

# A directory of their own, because checkov pins old releases of what others need.
$(VENV)/.linters: requirements-linters.lock | $(VENV)/.pip
	rm -rf $(VENV)/linters
	$(INSTALL) --no-warn-conflicts --require-hashes --target $(VENV)/linters -r requirements-linters.lock
	touch $@
