"""Network namespaces, a node with an agent and its pods, and what is said to those who may not make any."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from namespaces import Ns, make_ns, ns
from tortie.model.store import Store

pytest.register_assert_rewrite("agent_node", "agent_pods")  # so that what their assertions compare is shown

from agent_node import Node, Site, site_in  # noqa: E402
from agent_pods import MakeSandbox, sandboxes  # noqa: E402

__all__ = ["Ns", "make_ns", "ns"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `root` say why they did not run, instead of failing, when the user may not change the kernel."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root: makes network namespaces"))


# --- an agent and its pods; a file whose node is another one has a fixture of that name -----------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        yield site


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """One agent for all the tests of a file; each leaves it as it was."""
    return site.node("node1", "--no-bgp").start()


@pytest.fixture
async def store(site: Site) -> AsyncIterator[Store]:
    async with site.store() as store:
        yield store


@pytest.fixture
async def sandbox(node: Node, store: Store, make_ns: Callable[..., Ns]) -> AsyncIterator[MakeSandbox]:
    """Makes pods: `await sandbox("name")`. They are gone after the test, and all that they had."""
    async with sandboxes(node, store, make_ns) as make:
        yield make
