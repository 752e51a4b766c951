"""An SQLite file that is taken away under a running agent, and comes back: what is written while it is gone nobody
would read, so that it counts as a datastore that is away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agent_node import NETWORK, RED, Sandbox, Site, endpoints, held, pod, site_in, soon
from conftest import Ns
from kube_town import KubeSandbox

from tortie.model.k8s import Pod
from tortie.model.store import Store

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*(pod(name) for name in ("old", "new", "again")))
        site.node("node1", "--no-bgp").start()
        yield site


async def test_file_that_is_gone_for_a_while(site: Site, store: Store, make_ns: Callable[..., Ns]) -> None:
    node = site.nodes[0]

    def status() -> Any:
        return json.loads(node.ask("/status")[1])

    uids = {one.name: one.metadata.uid for one in (await store.list(Pod, RED)).items}
    old, new, again = (KubeSandbox(node, name, make_ns(name), uid=uids[name]) for name in ("old", "new", "again"))
    unnamed = Sandbox(node, "again", again.ns)
    await old.add()
    await soon(lambda: status()["cni"], lambda cni: cni["ready"] > 2 and not cni["pending"])
    assert set(await endpoints(store)) == {"old"}
    away = site.datastore.with_suffix(".away")
    site.datastore.rename(away)
    try:
        await soon(lambda: status()["wrong"], lambda wrong: "removed or replaced" in str(wrong))
        await new.add()
        await old.delete()
        assert node.links() == node.dispatched() == {new.host_ifname}
        await soon(lambda: node.ask("/liveness")[0] == 200)
        assert (status()["cni"]["leaving"], status()["cni"]["pending"]) == (1, 1)
    finally:
        away.rename(site.datastore)
    await soon(status, lambda all: not (all["wrong"] or all["cni"]["leaving"] or all["cni"]["pending"]))
    assert {name: one.spec.container_id for name, one in (await endpoints(store)).items()} == {"new": new.container_id}
    assert set(await held(store)) == {f"{NETWORK}.{new.container_id}"}
    await unnamed.add()
    for one in (new, unnamed):
        await one.delete()
