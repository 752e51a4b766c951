"""The API server goes away under a running agent, which dies meanwhile: nothing that runs notices, pods come and go,
and when it is back it is told of everything."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from agent_node import RED, ips, soon
from conftest import Ns
from kube_town import Town, reaches, town

pytestmark = pytest.mark.root

MakePod = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with town(tmp_path_factory.mktemp("kube"), "--no-bgp") as place:
        place.node.start()
        yield place


@pytest.fixture
async def make_pod(place: Town, make_ns: Callable[..., Ns]) -> AsyncIterator[MakePod]:
    async with place.pods(make_ns) as make:
        yield make


async def test_outage(place: Town, make_pod: MakePod) -> None:
    web, client, old = await make_pod("web"), await make_pod("client"), await make_pod("old")
    second, third = await make_pod("second", add=False), await make_pod("third", add=False)
    await place.rested()
    snapshot = place.node.run_dir / "snapshot" / "about.json"
    now = time.time()
    await soon(lambda: snapshot.exists() and snapshot.stat().st_mtime > now, what="the snapshot")
    place.cluster.do(place.cluster.api.refuse)

    # A pod that is known comes, one goes, and everything else is as it was.
    got = {"second": ips(await second.add())}
    await old.delete()
    assert old.host_ifname not in place.node.links()
    assert await reaches(client, web)
    assert await reaches(client, second)
    assert place.readiness() == (200, ""), "the picture is good enough to go on with"
    answer = place.status()
    assert "it is away" in answer["wrong"]["Datastore"]
    assert (answer["cni"]["pending"], answer["cni"]["leaving"]) == (1, 1)

    # The agent dies, and the next one has nobody to ask.
    place.node.kill()
    place.node.spawn()
    await soon(lambda: place.node.ask("/status")[0] == 200)
    assert await reaches(client, second), "before it knows anything"
    await soon(lambda: place.status()["datastore"]["source"] == "snapshot")
    assert place.readiness()[0] == 503
    assert "the datastore is away: this is as it was" in place.readiness()[1]
    await soon(lambda: place.status()["dataplane"]["enforced"])
    assert place.node.dispatched() == {one.host_ifname for one in (web, client, second)}
    assert await reaches(client, second)
    got["third"] = ips(await third.add())
    assert await reaches(client, third)

    place.cluster.do(place.cluster.api.accept)
    for name, (address,) in got.items():
        await soon(lambda name=name: place.told(name).get("podIP", ""), lambda ip, at=address: ip == f"{at}/32")
    await soon(lambda: place.told("old").get("podIP", ""), lambda ip: not ip)
    await soon(place.status, lambda answer: not answer["wrong"] and not answer["cni"]["leaving"])
    assert place.status()["datastore"]["source"] == "datastore"
    assert await reaches(client, third)
    said = place.node.messages()
    assert sum("without the datastore" in line for line in said) == 1
    assert len([line for line in said if "trying again" in line]) < 15, said


async def test_services(place: Town) -> None:
    """What the snapshot knows is served on; nobody notices that the agent was away."""
    meta = {"labels": {"kubernetes.io/service-name": "web"}}
    spec = {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"port": 80, "protocol": "TCP"}]}
    place.cluster.create("v1", "Service", "web", RED, spec=spec)
    slice_ = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.65.9.1"]}], "ports": [{"port": 8080}]}
    place.cluster.create("discovery.k8s.io/v1", "EndpointSlice", "web-1", RED, metadata=meta, **slice_)

    def backends() -> list[Any]:
        text = place.node.ns.run("nft", "-j", "list", "map", "inet", "tortie-services", "backends4", check=False)
        maps = [item["map"] for item in json.loads(text or "{}").get("nftables", ()) if "map" in item]
        return [element for one in maps for element in one.get("elem", ())]

    await soon(backends, lambda found: "10.65.9.1" in json.dumps(found), what="the backend is in the kernel")
    snapshot, now = place.node.run_dir / "snapshot" / "about.json", time.time()
    await soon(lambda: snapshot.exists() and snapshot.stat().st_mtime > now, what="the snapshot")
    place.cluster.do(place.cluster.api.refuse)
    place.node.kill()
    place.node.ns.run("nft", "delete", "table", "inet", "tortie-services")
    place.node.spawn()
    await soon(backends, lambda found: "10.65.9.1" in json.dumps(found), what="it is again, without Kubernetes")
    place.cluster.do(place.cluster.api.accept)
    await soon(place.status, lambda answer: not answer["wrong"], what="all is well")
    place.cluster.do(place.cluster.api.delete, "services", "web", RED)
    await soon(backends, lambda found: not found, what="it is gone")
