# Everything a developer types. Each target sees to it that .venv is complete first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q
WORKERS ?= 2
# Half of this layer's time its tests wait for something.
CLUSTER_WORKERS ?= 3
ARGS ?=
SHELL_SCRIPTS := requirements/install requirements/install-locked .ci/run
LOCK := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate
export PYTHONUNBUFFERED = 1
export HF_HUB_DISABLE_TELEMETRY = 1
export DO_NOT_TRACK = 1

.PHONY: help
help:  ## what can be made
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup:  ## .venv with everything for development (.venv/bin/finetune is the command)
	@./requirements/install

.PHONY: demo
demo: setup  ## fine-tune a small pretrained model here, kill it on the way, compare the answers
	@$(BIN)/python examples/quickstart/demo.py $(ARGS)

.PHONY: test
test: setup  ## lint and all tests, with the time of each layer
	@$(BIN)/python tests/layers.py lint unit trainer cluster

.PHONY: lint
lint: setup crds-check  ## style, types, imports between the packages, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/reference.py --check
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_SCRIPTS); \
	else echo "shellcheck is not installed: shell scripts are only parsed"; \
	for file in $(SHELL_SCRIPTS); do bash -n $$file; done; fi

.PHONY: test-unit
test-unit: setup  ## tests without torch: seconds
	@$(PYTEST) -n $(WORKERS) tests/unit $(ARGS)

.PHONY: test-trainer
test-trainer: setup  ## the real trainer on a tiny model: minutes
	@OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) --dist load --durations 10 tests/trainer $(ARGS)

.PHONY: test-cluster
test-cluster: setup  ## a real etcd and kube-apiserver, built the first time
	@PYTHONPATH=tests $(BIN)/python -m harness.binaries etcd kube-apiserver kubectl kube-controller-manager helm kube-score
	@$(PYTEST) -n $(CLUSTER_WORKERS) --dist loadfile --durations 10 tests/cluster $(ARGS)

.PHONY: binaries
binaries: setup  ## the real components that tests run against, built from their sources once
	@PYTHONPATH=tests $(BIN)/python -m harness.binaries

.PHONY: images
images: setup  ## the operator's and the trainer's image, built by buildah on Debian's packages
	@PYTHONPATH=tests $(BIN)/python -m harness.images

.PHONY: e2e
e2e: binaries images  ## a real node with real pods of the built images; needs root on Debian
	@$(BIN)/python tests/layers.py e2e

.PHONY: test-e2e
test-e2e:
	@$(PYTEST) --durations 15 tests/e2e $(ARGS)

.PHONY: cluster
cluster: setup  ## a cluster of one node on this machine, with the operator; needs root on Debian
	@PYTHONPATH=tests $(BIN)/python -m harness.cluster up

.PHONY: cluster-down
cluster-down: setup  ## stop it and leave nothing of it
	@PYTHONPATH=tests $(BIN)/python -m harness.cluster down

.PHONY: crds
crds: setup  ## write crds/ from api/
	@$(BIN)/python -m finetune_api.crd --write crds/ --chart charts/finetune-operator

.PHONY: crds-check
crds-check: setup  ## fail when crds/ is not what api/ says
	@$(BIN)/python -m finetune_api.crd --check crds/ --chart charts/finetune-operator

.PHONY: chart
chart: setup crds  ## write what is made from the chart: golden renders, table of its values
	@PYTHONPATH=tests $(BIN)/python -m harness.chart

.PHONY: reference
reference: setup  ## write docs/reference.md from the code
	@$(BIN)/python docs/reference.py --write

.PHONY: bench
bench: setup  ## a benchmark that prints a table: make bench B=trainer
	@if [ -z "$(B)" ] || ! [ -f "tests/bench/$(B).py" ]; then \
	echo "say which: make bench B=name, one of: $$(cd tests/bench && ls *.py | sed 's/\.py$$//' | xargs)"; exit 2; fi
	@$(BIN)/python -P tests/bench/$(B).py $(ARGS)

.PHONY: lock
lock: setup  ## resolve requirements/*.txt again from pyproject.toml; versions stay where they can
	@$(LOCK) requirements/uv.in -o requirements/uv.txt >/dev/null
	@DS_BUILD_OPS=0 $(LOCK) pyproject.toml requirements/build.in --extra cli --extra operator \
	--extra trainer --extra dev -o requirements/dev.txt >/dev/null
	@$(LOCK) requirements/build.in -c requirements/dev.txt -o requirements/build.txt >/dev/null
	@DS_BUILD_OPS=0 $(LOCK) pyproject.toml --extra trainer -c requirements/dev.txt -o requirements/trainer.txt >/dev/null
	@$(LOCK) pyproject.toml --extra operator -c requirements/dev.txt -o requirements/operator.txt >/dev/null
	@git --no-pager diff --stat -- requirements

.PHONY: clean
clean:  ## remove what was built or run here, but neither .venv nor the downloaded model
	@rm -rf out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
