"""Two agents on an etcd, without Kubernetes: pods, policy, and an etcd that dies while they go on.

    node a ── eth0 ──┐
    node b ── eth0 ──┤ switch, with etcd at 192.0.2.254 ◄── door ◄── the test's own store

gRPC has threads of its own, so that the test asks through a door: a port of loopback that leads into the namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_node import RED, Sandbox, Site, conflist, ips, pod, settled, site_in, soon
from msgspec.structs import replace
from overlay_nodes import Town, change_pool

from etcd_server import Etcd, needs_etcd, running
from namespaces import Ns, namespaces
from pings import Ping, Pings
from tortie.base.errors import Unavailable
from tortie.kernel import netns
from tortie.model.document import parse
from tortie.model.k8s import TO_BE_DELETED, K8sNode, K8sNodeSpec
from tortie.model.meta import Metadata
from tortie.model.policy import NetworkSet, NetworkSetSpec
from tortie.model.store import Store
from tortie.model.workload import WorkloadEndpoint
from tortie.store import open_store

pytestmark = [pytest.mark.root, needs_etcd]

ETCD_AT = "192.0.2.254"
OWN = {"a": "192.0.2.1/24", "b": "192.0.2.2/24"}
DENY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: deny, namespace: red}
spec: {selector: all(), types: [Ingress], ingress: []}
"""


class Door:
    """A port of loopback; who connects to it is connected to a port in a namespace."""

    def __init__(self, ns: Ns, host: str, port: int) -> None:
        self._ns, self._there = ns, (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Door:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in self._open:
            one.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                with netns.entered(self._ns.path):
                    far = socket.create_connection(self._there, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=_carry, args=(one, other)))
                self._threads[-1].start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with contextlib.suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)


@dataclass
class Place:
    town: Town
    etcd: Etcd
    site: Site
    door: str

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[Store]:
        store = open_store(f"etcd:{self.door}", environment={})
        try:
            yield store
        finally:
            await store.close()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A parameter is one of etcd's options."""
    options = [request.param] if hasattr(request, "param") else []
    spaces = namespaces()
    make = next(spaces)
    try:
        with site_in(tmp_path) as site, contextlib.ExitStack() as stack:
            town = Town(site, make)
            ns = town.switch.ns
            ns.ip("link", "set", "lo", "up")
            ns.ip("address", "add", f"{ETCD_AT}/24", "dev", "br0")
            within = ["nsenter", f"--net={ns.path}"]
            etcd = stack.enter_context(running(tmp_path / "etcd", 1, options, host=ETCD_AT, within=within))
            door = stack.enter_context(Door(ns, ETCD_AT, etcd.members[0].port))
            site.datastore = f"etcd:{door.url}"  # type: ignore[assignment]
            site.set_up()
            site.datastore = f"etcd:{etcd.url}"  # type: ignore[assignment]
            for name, ipv4 in OWN.items():
                town.node(name, "--no-bgp", "--proxy-health-port", "10256", ipv4=ipv4).spawn()
            yield Place(town, etcd, site, door.url)
            for node in town.nodes.values():  # before their etcd
                if node.process is not None and node.process.poll() is None:
                    node.kill()
    finally:
        next(spaces, None)


async def test_agents_carry_on_while_etcd_dies(place: Place, tmp_path: Path) -> None:
    town = place.town
    async with place.store() as store:
        await change_pool(store, "pool4", vxlan_mode="Always")
        for name, node in town.nodes.items():
            await asyncio.to_thread(node.await_ready)
            await town.pod(store, f"pod-{name}", name)
        assert f"/tortie/v1/pods/{RED}/pod-a" in place.etcd.ctl("get", "--prefix", "--keys-only", "/tortie/v1/pods/")
        await asyncio.to_thread(town.reach, "pod-a", "pod-b")

        # Policy reaches the nodes through etcd's watches.
        (deny,) = parse(DENY)
        source, target = town.pods["pod-a"][1], town.ip("pod-b")
        await store.create(deny)
        await soon(lambda: not town.pings(source, target, 0.2), what="it is denied")
        await store.delete(type(deny), deny.name, deny.namespace)
        await soon(lambda: town.pings(source, target, 0.2), what="it is allowed again")

        (member,) = place.etcd.members
        with Pings([Ping("a to b", source.name, target, tmp_path / "ping")]) as pings:
            await asyncio.to_thread(member.kill)
            assert all(node.process is not None and node.process.poll() is None for node in town.nodes.values())
            await soon(lambda: len(pings.pings[0].answered) > 100, what="pings without etcd")
            member.start()
            await asyncio.to_thread(place.etcd.ready)
            await town.pod(store, "late", "a")
            await asyncio.to_thread(town.reach, "pod-b", "late")
        assert pings.lost == {}
        assert len(pings.pings[0].answered) > 100

        # What the watches go on with: no agent has missed the policy that was made after etcd came back.
        await store.create(deny)
        await soon(lambda: not town.pings(town.pods["pod-b"][1], town.ip("late"), 0.2), what="it is denied")
        await settled()
        endpoints = (await store.list(WorkloadEndpoint)).items
        assert {one.spec.pod for one in endpoints} == {"pod-a", "pod-b", "late"}


async def test_a_node_that_leaves_says_so(place: Place) -> None:
    """Kubernetes' Node is in etcd, or in the cluster beside it: an agent asks for it by name either way."""

    def eligible(name: str) -> Any:
        try:
            return json.loads(place.town.nodes[name].ask_port(10256, "/healthz")[1]).get("nodeEligible")
        except OSError:
            return None

    doomed = K8sNodeSpec(taints=[{"key": TO_BE_DELETED, "effect": "NoSchedule"}])
    async with place.store() as store:
        for node in place.town.nodes.values():
            await asyncio.to_thread(node.await_ready)
        await soon(lambda: eligible("a"), what="it serves")
        await store.create(K8sNode(metadata=Metadata(name="a"), spec=doomed))
        await soon(lambda: eligible("a") is False, what="it is about to be deleted")
        assert eligible("b") is True
        here = await store.get(K8sNode, "a")  # the agent has written its condition
        await store.update(replace(here, spec=K8sNodeSpec()))
        await soon(lambda: eligible("a"), what="it stays after all")


@pytest.mark.parametrize("place", ["--quota-backend-bytes=6000000"], indirect=True)
async def test_pods_come_and_go_while_etcd_is_full(place: Place) -> None:
    town, node = place.town, place.town.nodes["a"]
    nets = tuple(f"10.{number // 256}.{number % 256}.0/24" for number in range(8000))

    def status() -> dict[str, Any]:
        return dict(json.loads(node.ask("/status")[1]))

    async def fill(store: Store) -> None:
        for number in range(200):
            metadata = Metadata(name=f"s{number}", namespace="red")
            await store.create(NetworkSet(metadata=metadata, spec=NetworkSetSpec(nets=nets)))

    async with place.store() as store:
        for one in town.nodes.values():
            await asyncio.to_thread(one.await_ready)
        for name in ("stays", "goes"):
            await town.pod(store, name, "a")
        await store.create(pod("comes", "a"))
        comes = Sandbox(node, "comes", town.make_ns("comes"), conflist=conflist("1.1.0"))
        await soon(status, lambda all: all["cni"]["pods"] == 3 and all["cni"]["ready"] and not all["cni"]["pending"])
        with pytest.raises(Unavailable, match="its database is full"):
            await fill(store)

        got = ips(await comes.add())
        await soon(lambda: town.pings(town.pods["stays"][1], got[0]), what="they reach each other")
        await town.pods["goes"][0].delete()
        assert town.pods["goes"][0].host_ifname not in node.links()
        await soon(status, lambda all: (all["cni"]["pending"], all["cni"]["leaving"]) == (1, 1))
        await soon(status, lambda all: "its database is full" in json.dumps(all["wrong"]), "it is said")

        for one in (await store.list(NetworkSet)).items:
            await store.delete(NetworkSet, one.name, "red")
        revision = (await store.list(NetworkSet)).revision
        for words in (("compact", revision), ("defrag",), ("alarm", "disarm")):
            await asyncio.to_thread(place.etcd.ctl, *words)
        await soon(status, lambda all: not (all["cni"]["pending"] or all["cni"]["leaving"] or all["wrong"]))
        found = {one.spec.pod: one.spec.ip_networks for one in (await store.list(WorkloadEndpoint)).items}
        assert found.keys() == {"stays", "comes"}
        assert [text.partition("/")[0] for text in found["comes"]] == got
