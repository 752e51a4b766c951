"""Denied packets of real pods, as an agent tells them: who, to whom, and exactly which rule."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_node import Node, Sandbox, Site, applied, ips, soon, udp
from agent_pods import MakeSandbox, addresses
from conftest import Ns

from tortie.agent.client import Stream, ask
from tortie.base.errors import Unavailable
from tortie.cli.watch import line
from tortie.kernel.nflog import Reader
from tortie.model.store import Store
from tortie.render.denials import GROUP

pytestmark = pytest.mark.root

POLICY = """
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: sec}
spec: {order: 10}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: db, namespace: red}
spec:
  tier: sec
  selector: "app == 'db'"
  types: [Ingress, Egress]
  ingress:
    - {action: Allow, protocol: TCP, destination: {ports: [5432]}}
    - {action: Deny, protocol: UDP, destination: {ports: [53]}}
  egress:
    - {action: Deny, destination: {nets: [198.51.100.0/24]}}
    - {action: Pass}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: partners}
spec: {nets: [198.51.100.0/25, 192.0.2.128/25]}
"""


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """It has a way out, on which nobody is."""
    node = site.node("node1", "--no-bgp")
    node.ns.ip("link", "add", "out", "type", "veth", "peer", "name", "beyond")
    node.ns.ip("addr", "add", "192.0.2.1/24", "dev", "out")
    for link in ("out", "beyond"):
        node.ns.ip("link", "set", link, "up")
    node.ns.ip("route", "add", "default", "dev", "out")
    return node.start()


class Watch:
    """What an agent tells, collected by a thread."""

    def __init__(self, path: Path) -> None:
        self.stream = Stream(path, "/drops")
        self.documents: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._collect)
        self.thread.start()
        assert self.next()["watching"]

    def _collect(self) -> None:
        for document in self.stream:
            self.documents.put(document)

    def next(self, seconds: float = 10) -> dict[str, Any]:
        return self.documents.get(timeout=seconds)

    def about(self, protocol: str, port: int) -> dict[str, Any]:
        """The next that is about a packet to this port."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            document = self.next()
            if document.get("protocol") == protocol and document["destination"].get("port") == port:
                return document
        raise AssertionError(f"nothing about {protocol} {port}")


@contextlib.contextmanager
def watching(node: Node) -> Iterator[Watch]:
    watch = Watch(node.run_dir / "agent.sock")
    try:
        yield watch
    finally:
        watch.stream.close()
        watch.thread.join(10)
        assert not watch.thread.is_alive()


def send(ns: Ns, address: str, port: int, times: int = 1, source: str = "") -> int:
    """Datagrams from one socket; its port."""
    with udp(ns, source or ("::" if ":" in address else "0.0.0.0")) as out:
        for _ in range(times):
            out.sendto(b"hello", (address, port))
        return int(out.getsockname()[1])


async def told(node: Node, doing: Callable[[], int], port: int) -> tuple[dict[str, Any], int]:
    """What is told of what this does, and what it returns."""

    def run() -> tuple[dict[str, Any], int]:
        with watching(node) as watch:
            done = doing()
            return watch.about("udp", port), done

    return await asyncio.to_thread(run)


async def a_town(sandbox: MakeSandbox) -> tuple[Sandbox, Sandbox, list[str]]:
    """A client and a database, and the addresses of the latter."""
    client, database = (
        await sandbox("client", labels={"app": "client"}),
        await sandbox("database", labels={"app": "db"}),
    )
    await client.add()
    return client, database, ips(await database.add())


async def test_a_rule_of_a_policy(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    async with applied(store, POLICY):
        client, database, (v4, v6) = await a_town(sandbox)
        for address in (v4, v6):
            document, port = await told(node, lambda a=address: send(client.ns, a, 53, 3), 53)  # type: ignore[misc]
            assert document["rule"] == {
                "name": "np/red/db|ingress|1",
                "words": "NetworkPolicy red/db, rule 1, tier sec",
                "tier": "sec",
                "policy": "np/red/db",
                "index": 1,
            }
            assert (document["node"], document["direction"], document["count"]) == ("node1", "ingress", 3)
            assert document["source"] | {"address": ""} == {
                "address": "",
                "port": port,
                "interface": client.host_ifname,
                "pod": "red/client",
            }
            assert document["destination"] == {
                "address": address,
                "port": 53,
                "interface": database.host_ifname,
                "pod": "red/database",
            }
            family = "6" if ":" in address else ""
            said = (
                f"red/client:{port} → red/database:53 udp{family}  ingress: NetworkPolicy red/db, rule 1, tier sec  ×3"
            )
            assert line(document).endswith(said)


async def test_the_end_of_a_tier_and_a_network_set(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    async with applied(store, POLICY):
        client, database, (v4, _) = await a_town(sandbox)
        document, _ = await told(node, lambda: send(client.ns, v4, 80), 80)
        assert document["rule"]["name"] == f"tier/sec|{database.host_ifname}|ingress"
        assert document["rule"]["words"] == "end of tier sec: no rule allows it"
        outside, _ = await told(node, lambda: send(database.ns, "198.51.100.7", 443), 443)
        assert outside["rule"]["name"] == "np/red/db|egress|0"
        end = {"address": "198.51.100.7", "port": 443, "interface": "out", "networkset": "partners"}
        assert outside["destination"] == end


async def test_a_pod_under_a_false_name(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    client, database, _ = await a_town(sandbox)
    database.ns.ip("addr", "add", "203.0.113.9/32", "dev", "lo")
    (own,) = (one for one in addresses(client.ns) if ":" not in one)
    database.ns.ip("addr", "add", f"{own}/32", "dev", "lo")
    for false, owner in (("203.0.113.9", {}), (own, {"owner": "red/client"})):
        document, port = await told(node, lambda s=false: send(database.ns, "192.0.2.9", 99, source=s), 99)  # type: ignore[misc]
        assert document["rule"]["name"] == "anti-spoofing"
        assert (document["hook"], document["direction"]) == ("prerouting", "egress")
        end = {"address": false, "port": port, "interface": database.host_ifname, "pod": "red/database"}
        assert document["source"] == end | {"ownAddress": False} | owner
        said = f"red/database as {false}:{port}" + (" (red/client)" if owner else "")
        assert f" {said} → 192.0.2.9:99 udp  egress: anti-spoofing: " in line(document)


async def test_an_interface_that_nobody_knows(sandbox: MakeSandbox, node: Node, make_ns: Callable[..., Ns]) -> None:
    stranger, (client, _, _) = make_ns("stranger"), await a_town(sandbox)
    node.ns.ip("link", "add", "calistranger", "type", "veth", "peer", "name", "eth0", "netns", stranger.name)
    try:
        node.ns.ip("addr", "add", "10.77.0.1/24", "dev", "calistranger")
        node.ns.ip("link", "set", "calistranger", "up")
        stranger.ip("addr", "add", "10.77.0.2/24", "dev", "eth0")
        stranger.ip("link", "set", "eth0", "up")
        stranger.ip("route", "add", "default", "via", "10.77.0.1")
        document, _ = await told(node, lambda: send(stranger, "192.0.2.9", 99), 99)
        assert document["rule"]["name"] == "no endpoint: from interface"
        assert document["source"]["interface"] == "calistranger"
        assert "pod" not in document["source"]
        back, _ = await told(node, lambda: send(client.ns, "10.77.0.2", 98), 98)
        assert back["rule"]["name"] == "no endpoint: to interface"
        assert (back["source"]["pod"], back["destination"]["interface"]) == ("red/client", "calistranger")
    finally:
        node.ns.ip("link", "del", "calistranger")


async def test_a_pod_to_its_host(sandbox: MakeSandbox, node: Node) -> None:
    client, _, _ = await a_town(sandbox)
    document, port = await told(node, lambda: send(client.ns, "192.0.2.1", 22), 22)
    assert document["rule"]["name"] == "pod to its own host: defaultEndpointToHostAction"
    assert document["hook"] == "input"
    assert f"red/client:{port} → node:node1:22 udp  egress: a pod to its own host" in line(document)


async def test_a_name_that_the_kernel_has_cut(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    long = "long-" * 40 + "name"
    text = POLICY.replace("name: db,", f"name: {long},")
    async with applied(store, text):
        client, _, (v4, _) = await a_town(sandbox)
        document, _ = await told(node, lambda: send(client.ns, v4, 53), 53)
        assert document["rule"]["name"] == f"np/red/{long}|ingress|1"
        assert document["rule"]["index"] == 1


async def test_what_denies_may_be_gone_when_it_is_told(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    client, _, (v4, _) = await a_town(sandbox)
    with watching(node) as watch:
        async with applied(store, POLICY):
            await soon(lambda: "np/red/db|ingress|1" in node.ns.run("nft", "list", "table", "inet", "tortie"))
            send(client.ns, v4, 53)
        document = await asyncio.to_thread(watch.about, "udp", 53)
        assert document["rule"]["name"] == "np/red/db|ingress|1"


# --- many ---------------------------------------------------------------------------------------------------------

FLOOD = 100_000


def used(pid: int) -> tuple[float, int]:
    """Seconds of processor time so far, and resident bytes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_flood_costs_the_agent_little(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    """Every packet is different, so that nothing can be counted together."""
    async with applied(store, POLICY):
        client, _, (v4, _) = await a_town(sandbox)
        assert node.process is not None
        pid = node.process.pid
        before = ask(node.run_dir / "agent.sock", "/denials").get("np/red/db|ingress|1", {"packets": 0})["packets"]

        def flood(watch: Watch) -> tuple[float, int]:
            """How long it takes, and how many of it are shown."""
            began = time.monotonic()
            for _ in range(FLOOD // 100):
                send(client.ns, v4, 53, 100)
            lasted, shown = time.monotonic() - began, 0
            with contextlib.suppress(queue.Empty):
                while True:
                    document = watch.next(2.5)
                    assert document["rule"]["name"] == "np/red/db|ingress|1"
                    shown += document["count"]
            return lasted, shown

        with watching(node) as watch:
            seconds_before, size_before = used(pid)
            lasted, shown = await asyncio.to_thread(flood, watch)
            seconds_after, size_after = used(pid)
        counted = ask(node.run_dir / "agent.sock", "/denials")["np/red/db|ingress|1"]["packets"] - before
        assert counted == FLOOD
        assert 200 <= shown <= 200 + 100 * (lasted + 1)
        assert seconds_after - seconds_before < 1
        assert size_after - size_before < 16 << 20


async def test_several_watch_and_then_nobody_does(sandbox: MakeSandbox, node: Node, store: Store) -> None:
    async with applied(store, POLICY):
        client, _, (v4, _) = await a_town(sandbox)
        with watching(node) as one:
            with watching(node) as other:
                send(client.ns, v4, 53)
                same = [await asyncio.to_thread(each.about, "udp", 53) for each in (one, other)]
                assert same[0] == same[1]
            with pytest.raises(Unavailable, match="another program listens"):
                Reader(GROUP, node.ns.path)
            send(client.ns, v4, 53)
            assert (await asyncio.to_thread(one.about, "udp", 53))["count"] == 1
        await soon(lambda: is_free(node), what="the log group is free")
        with (
            Reader(GROUP, node.ns.path),
            pytest.raises(Unavailable, match="another program listens to netfilter's log"),
        ):
            Watch(node.run_dir / "agent.sock")
        assert (await told(node, lambda: send(client.ns, v4, 53), 53))[0]["count"] == 1


def is_free(node: Node) -> bool:
    try:
        Reader(GROUP, node.ns.path).close()
    except Unavailable:
        return False
    return True


def test_an_agent_ends_although_somebody_watches(node: Node) -> None:
    with watching(node) as watch:
        began = time.monotonic()
        assert node.signal(signal.SIGTERM) == 0
        assert time.monotonic() - began < 5
        watch.thread.join(5)
        assert not watch.thread.is_alive()
    node.start()
