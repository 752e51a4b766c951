# What needs root runs through sudo when you are not root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
# What the software runs, and what the tests compare it with.
PACKAGES := nftables bird2 iproute2 iputils-ping util-linux procps python3 python3-venv gcc libc6-dev
TEST_PACKAGES := containernetworking-plugins busybox-static iperf3 tcpdump
PYTEST := $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help setup packages test-packages demo test lint unit storm netns interop e2e bench clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: packages $(VENV)/ready ## system packages and the command at .venv/bin/tortie

packages:
	@tools/packages $(SUDO) -- $(PACKAGES)

test-packages:
	@tools/packages $(SUDO) -- $(TEST_PACKAGES)

$(VENV)/ready: pyproject.toml requirements.lock
	@echo "setting up $(VENV)"
	@tools/python -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## a tour: three nodes, pods, policy, NAT, a killed agent; leaves nothing behind
	@$(SUDO) $(BIN)/tortie lab demo

test: setup test-packages ## everything this machine can run
	@$(MAKE) --no-print-directory lint unit storm netns interop e2e

lint: $(VENV)/ready ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && echo "ruff: clean"
	@$(BIN)/mypy
	@$(BIN)/lint-imports | tail -4

unit: $(VENV)/ready ## decisions on values, seconds
	@$(PYTEST) tests/unit

storm: $(VENV)/ready ## many processes at once, killed at random
	@$(PYTEST) -rs tests/storm

netns: $(VENV)/ready ## the real kernel, as root
	@$(SUDO) $(PYTEST) -rs tests/netns

interop: $(VENV)/ready ## BIRD and the reference CNI plugins, as root
	@$(SUDO) $(PYTEST) -rs tests/interop

e2e: $(VENV)/ready ## whole labs, as root
	@$(SUDO) $(PYTEST) -rs tests/e2e

bench: setup test-packages ## figures as ratios against peers, tables and bench/results/*.json
	@$(SUDO) $(BIN)/python -m bench.run

clean: ## remove what setup and tests made in this folder
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
