# What needs root runs through sudo when you are not root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
VENV := .venv
BIN := $(VENV)/bin
# What the software runs, and what the tests compare it with.
PACKAGES := nftables bird2 iproute2 iputils-ping util-linux procps python3 python3-venv gcc libc6-dev
TEST_PACKAGES := containernetworking-plugins busybox-static iperf3 tcpdump containerd runc podman iptables frr gobgpd \
	qemu-system-x86 cpio kmod xz-utils librsvg2-bin conntrack etcd-server etcd-client openssl wireguard-tools
# What tests leave behind is a failure, too.
LEVEL := $(BIN)/python tools/left -- $(BIN)/python tools/level
# How many processes share the tests of a level. One more than there are cores, for tests wait as often as they work; but
# a machine of many cores is not theirs alone. WORKERS=0: test after test in one process.
WORKERS := $(shell cores=$$(nproc); echo $$((cores < 4 ? cores + 1 : 4)))
# Where tests wait for packets and programs more than they work there is one more.
WAITING = $(shell echo $$(($(WORKERS) ? $(WORKERS) + 1 : 0)))

# With it, every program that a test starts would compile all of its modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup packages test-packages demo manifests test lint unit storm netns interop vm e2e prove bench clean

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

demo: setup ## a tour: three nodes, pods, policy, NAT, a killed agent, two racks; leaves nothing behind
	@$(SUDO) $(BIN)/tortie lab demo

manifests: $(VENV)/ready ## manifests/tortie.yaml, what "tortie manifest" prints
	@$(BIN)/tortie manifest -o manifests/tortie.yaml

test: setup test-packages ## everything this machine can run
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint storm
	@$(MAKE) --no-print-directory unit netns interop vm e2e

lint: $(VENV)/ready ## ruff, mypy --strict, import contracts
	@echo "lint:"; start=$$(date +%s); \
	$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && echo "ruff: clean" && \
	$(BIN)/mypy && \
	{ said=$$($(BIN)/lint-imports) && echo "$$said" | tail -4 || { echo "$$said"; exit 1; }; } && \
	echo "in $$(($$(date +%s) - start)) s"

unit: $(VENV)/ready ## decisions on values, seconds
	@echo "unit:"
	@$(LEVEL) tests/unit $(WORKERS)

storm: $(VENV)/ready ## many processes at once, killed at random
	@echo "storm:"
	@$(LEVEL) tests/storm

netns: $(VENV)/ready ## the real kernel, as root
	@echo "netns:"
	@$(SUDO) $(LEVEL) tests/netns $(WAITING)

interop: $(VENV)/ready ## BIRD, FRR, GoBGP, etcd, the reference CNI plugins, containerd and podman, as root
	@echo "interop:"
	@$(SUDO) $(LEVEL) tests/interop $(WAITING)

vm: $(VENV)/ready ## a stock Debian kernel in a virtual machine, as root
	@echo "vm:"
	@$(SUDO) $(LEVEL) tests/vm $(WAITING)

e2e: $(VENV)/ready ## whole labs, as root
	@echo "e2e:"
	@$(SUDO) $(LEVEL) tests/e2e $(WAITING)

prove: setup ## verdict, tracer and kernel agree: 100,000 generated connections, 2,000 of them real, as root
	@$(SUDO) env TORTIE_SEED=$(TORTIE_SEED) $(BIN)/python tests/prove

bench: setup test-packages ## figures as ratios against peers, tables and bench/results/*.json
	@$(SUDO) $(BIN)/python -m bench.run

clean: ## remove what setup and tests made in this folder
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
