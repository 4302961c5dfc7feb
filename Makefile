# Everything a fresh machine needs is python3 (3.11 or newer) and make; npm is used for one real client if it is there.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n auto

TARGET ?= dialogue
SECONDS ?= 10

.PHONY: run test check format docs peers bench soak fuzz fuzz-all clean

run: $(VENV)/installed
	$(BIN)/pillarbox serve $(ARGS)

test: $(VENV)/ready tests/interop/node_modules bench/servers/smtp-server/node_modules
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/ready
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_replies.py
	$(BIN)/python docs/make_metrics.py
	$(BIN)/python docs/make_webhook.py
	$(BIN)/python docs/make_speed.py
	$(BIN)/python docs/make_soak.py
	$(BIN)/python docs/make_differences.py
	$(BIN)/python docs/make_security.py

peers: $(VENV)/ready tests/interop/node_modules
	$(BIN)/python -m pytest tests/interop $(PYTEST_ARGS) --junitxml=build/peers.xml
	$(BIN)/python docs/make_peers.py build/peers.xml

bench: $(VENV)/bench-ready bench/servers/smtp-server/node_modules
	$(BIN)/python bench/run.py $(ARGS)

soak: $(VENV)/ready
	$(BIN)/python bench/soak.py $(ARGS)

fuzz: $(VENV)/fuzz-ready
	$(BIN)/python fuzz/fuzz.py $(TARGET) $(ARGS)

fuzz-all: $(VENV)/fuzz-ready
	$(BIN)/python fuzz/all.py $(SECONDS)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pillarbox needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "the module venv is missing: on Debian, apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/ready: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/bench-ready: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/fuzz-ready: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group fuzz
	@touch $@

bench/servers/smtp-server/node_modules: bench/servers/smtp-server/package.json
	@if command -v npm >/dev/null; then npm ci --prefix bench/servers/smtp-server --no-audit --no-fund --silent && touch $@; \
	  else echo "npm is not here: smtp-server is left out"; fi

tests/interop/node_modules: tests/interop/package.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/interop --no-audit --no-fund --silent && touch $@; \
	  else echo "npm is not here: the tests with nodemailer are skipped"; fi

clean:
	rm -rf build $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* tests/interop/node_modules \
	  bench/.build bench/servers/smtp-server/node_modules
