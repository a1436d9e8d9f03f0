# make run     start the gateway on config/quickstart.yaml
# make test    everything that is tested        make check   format, lint, types, import contracts
# make bench   figures against bare baselines   make lock    new versions into the lock files

PYTHON ?= $(firstword $(foreach version,3.13 3.12 3.11,$(if $(shell python$(version) -c pass 2>/dev/null && echo ok),python$(version))) python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
SOURCES := gateway connectors normalizers tests

.PHONY: run test check bench lock format clean

run: $(VENV)/run.stamp
	@sh deploy/system-packages.sh run $(BIN)/python
	@exec $(BIN)/huiru run --config config/quickstart.yaml

test: $(VENV)/test.stamp
	@sh deploy/system-packages.sh test
	$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

check: $(VENV)/test.stamp
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/test.stamp
	@sh deploy/system-packages.sh bench
	$(BIN)/python -m tests.bench $(ARGS)

format: $(VENV)/test.stamp
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

# The lock files hold names, versions and hashes, nothing of the machine they were made on.
LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --quiet
lock:
	$(LOCK) $(ARGS) --extra embedded pyproject.toml -o deploy/requirements.lock
	$(LOCK) $(ARGS) -c deploy/requirements.lock --group pyproject.toml:mail -o deploy/mail.lock
	$(LOCK) $(ARGS) --group pyproject.toml:build -o deploy/build.lock
	$(LOCK) $(ARGS) -c deploy/requirements.lock --group pyproject.toml:dev -o tests/requirements.lock

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/run.stamp: pyproject.toml deploy/build.lock deploy/requirements.lock
	@PYTHON=$(PYTHON) sh deploy/system-packages.sh venv $(VENV)
	$(PIP) install --require-hashes -r deploy/build.lock -r deploy/requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp tests/requirements.lock
	$(PIP) install --require-hashes -r tests/requirements.lock
	@touch $@
