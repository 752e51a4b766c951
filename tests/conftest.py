"""How tests share a machine: several workers take parts of a level, those that take long first.

A part is a file, because what its fixtures build is built once. A class of a file is a part of its own. Files that run
in a virtual machine are as many parts as there are workers, each with a machine of its own (`parts.guests`).
Whatever a test makes outside of a namespace has the number of its process in its name, so that two workers never meet.
"""

from __future__ import annotations

import os
import re
import signal
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from parts import INSIDE, SECONDS, guests

if "STOCKVM" not in os.environ:  # in a guest every import takes its time, and no test there needs this one
    from hypothesis import HealthCheck, settings

    settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("shared")  # how long an example takes says more about the neighbours than about the test

LONG = (
    "storm/test_controllers_processes.py",
    "storm/test_fanout_processes.py",
    "unit/test_store_contract.py",
    "unit/test_kube_api_lists.py",
    "netns/test_crash_points.py",
    "netns/test_crash_stateful.py",
    "netns/test_agent_crash.py",
    "netns/test_flannel_udp_fuzz.py",
    "netns/test_plugin_fuzz.py",
    "netns/test_plugin_protocol.py",
    "netns/test_plugin_dhcp.py",
    "netns/test_pod_networks_agents.py",
    "netns/test_agent_fast.py",
    "netns/test_agent_outage.py",
    "netns/test_agent_kubernetes.py",
    "netns/test_agent_fanout.py",
    "netns/test_policy_packets.py",
    "netns/test_idle.py",
    "interop/test_plugin_twins.py",
    "interop/test_flannel_etcd.py",
    "interop/test_flannel_etcd_outages.py",
    "interop/test_store_etcd.py",
    "interop/test_store_etcd_members.py",
    "interop/test_store_kubernetes.py",
    "interop/test_runtimes.py",
    "e2e/test_kubernetes_cluster.py",
    "e2e/test_docs.py",
    "e2e/test_topologies.py",
    "e2e/test_lab.py",
    "e2e/test_demo.py",
)
"""Begun first, in this order: the last part of a level to begin should be a short one."""

_PART = re.compile(r"[^:]+(::[A-Z]\w*(?=::))?")
"""Of a test's id: its file, and its class if it has one."""


def pytest_configure() -> None:
    """A program in the background of a shell ignores Ctrl-C, and so would what tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(__file__).parent
    for table, names in (("LONG", LONG), ("parts.SECONDS", [f"{INSIDE}{name}.py" for name in SECONDS])):
        if gone := [name for name in names if not (folder / name).exists()]:
            raise pytest.UsageError(f"{folder}: {table} names what is not there: {', '.join(gone)}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    name = item.nodeid.partition("::")[0].removeprefix("tests/")
    return LONG.index(name) if name in LONG else len(LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`: parts in the order in which they were collected, each as a whole to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        @cached_property
        def _guests(self) -> dict[str, str]:
            return guests(self.collection or (), self.numnodes)

        def _split_scope(self, nodeid: str) -> str:
            found = _PART.match(nodeid)
            assert found is not None
            return self._guests.get(nodeid.partition("::")[0], found[0])

    config.option.loadscopereorder = False
    return Parts(config, log)
