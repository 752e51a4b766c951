"""What a real agent makes of BGP's resources: passwords that come and stay, services that appear, what it refuses."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from agent_node import Node, Sandbox, Site, pod, site_in, soon, until

from namespaces import Ns
from tortie.bgp.birdc import Status, parse_status
from tortie.kernel.bird import Bird
from tortie.model.document import parse
from tortie.model.meta import changed
from tortie.model.secret import Secret
from tortie.model.service import Service

pytestmark = pytest.mark.root

HUSHED = "a password nobody repeats"
PEERS = """
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {serviceExternalIPs: [{cidr: 80.15.0.0/24}]}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: nothing}
spec: {exportV4: [{action: Reject}]}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec:
  peerIP: 192.0.2.9
  asNumber: 65001
  filters: [nothing]
  password: {secretKeyRef: {name: bgp, key: tor}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: bad}
spec: {peerIP: 192.0.2.8, asNumber: 65001, keepaliveTime: 400s}
"""
SECRET = """
apiVersion: v1
kind: Secret
metadata: {name: bgp, namespace: kube-system}
data: {tor: @password@}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: red}
spec: {clusterIP: 10.96.0.7, externalIPs: [80.15.0.7], externalTrafficPolicy: Local}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: red, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.65.0.5], nodeName: node1}]
"""


def secret(password: str) -> Secret:
    (made,) = parse(SECRET.replace("@password@", base64.b64encode(password.encode()).decode()))
    assert isinstance(made, Secret)
    return made


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_in(tmp_path) as site:
        site.set_up()
        site.write(*parse(PEERS))
        yield site


def started(site: Site) -> Node:
    """A node whose BIRD has its first configuration."""
    node = site.node("node1").start()
    until(lambda: node.bird_pid, what="BIRD is there")
    until(lambda: status(node).version, what="BIRD answers")
    return node


def password_line(node: Node) -> str:
    """What bird.conf says of passwords."""
    lines = (node.run_dir / "bird.conf").read_text().splitlines()
    return "".join(line.strip() for line in lines if "password" in line)


async def test_a_password_and_a_service_come_to_a_running_node(site: Site) -> None:
    node = started(site)
    assert password_line(node) == ""
    assert "Global_192_0_2_9" in (node.run_dir / "bird.conf").read_text()
    assert "Global_192_0_2_8" not in (node.run_dir / "bird.conf").read_text()
    said = "\n".join(node.messages())
    assert "BGPPeer bad is ignored: spec.keepaliveTime" in said
    assert "password of BGPPeer tor is ignored: Secret kube-system/bgp is not there" in said
    async with site.store() as store:
        stored = await store.create(secret(HUSHED))
        await soon(lambda: password_line(node), lambda line: line == f'password "{HUSHED}";', "the password is there")
        for one in parse(SERVICE):
            await store.create(one)
        conf = node.run_dir / "bird.conf"
        await soon(conf.read_text, lambda text: "route 80.15.0.7/32 blackhole;" in text, "the service is announced")
        before = reconfigured(node)
        await store.delete(Service, "web", "red")
        await soon(conf.read_text, lambda text: "80.15.0.7" not in text, "it is no more")
        assert reconfigured(node) > before
        node.restart()
        assert password_line(node) == f'password "{HUSHED}";'
        bad = changed(secret('with a "quote"'), resource_version=stored.metadata.resource_version)
        await store.update(bad)
        await soon(lambda: password_line(node), lambda line: line == "", "one that cannot be is left out")
        await soon(lambda: "has a quote or a control character" in "\n".join(node.messages()), what="and said")
    assert HUSHED not in node.log + (node.run_dir / "bird.log").read_text()
    assert 'quote"' not in node.log


def test_a_restart_does_not_lose_the_password_for_a_moment(site: Site) -> None:
    """A configuration without it, however short, would end the session."""
    site.write(secret(HUSHED))
    node = started(site)
    until(lambda: password_line(node), bool, "the password is there")
    before = reconfigured(node)
    node.restart()
    time.sleep(1.5)  # longer than anything waits for secrets
    assert reconfigured(node) == before
    assert password_line(node) == f'password "{HUSHED}";'
    for name in ("bird.conf", "bird.log"):
        assert (node.run_dir / name).stat().st_mode & 0o077 == 0
    assert site.datastore.stat().st_mode & 0o077 == 0


def status(node: Node) -> Status:
    """What BIRD says of itself."""
    bird = Bird(node.run_dir / "bird.conf", node.run_dir / "bird.ctl", log=node.run_dir / "bird.log")
    return parse_status(bird.ask("show status"))


WORKLOADS = """
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {bindMode: NodeIP, listenPort: 1179, localWorkloadPeeringIPV4: 169.254.7.7, localWorkloadPeeringIPV6: "fd00:7::7"}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: routers}
spec: {localWorkloadSelector: role == 'router', asNumber: 65010}
"""


def answers(ns: Ns, address: str) -> bool:
    """Whether somebody accepts a connection there."""
    dial = f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/1179'"
    return "yes" in ns.run("bash", "-c", f"{dial} 2>/dev/null && echo yes", check=False)


async def test_a_pod_that_routes_may_dial_its_node(tmp_path: Path, make_ns: Callable[..., Ns]) -> None:
    """At the address for that, which no other pod has, and nothing else of the node."""
    with site_in(tmp_path) as site:
        site.node("node1", ipv6="fd00:192::1/64")
        async with site.store() as store:
            await asyncio.to_thread(site.set_up)
            for one in (*parse(WORKLOADS), pod("r", labels={"role": "router"}), pod("web")):
                await store.create(one)
            node = site.nodes[0]
            for address in ("192.0.2.1/24", "fd00:192::1/64"):
                node.ns.ip("addr", "add", address, "dev", "lo")
            await asyncio.to_thread(node.start)
            router, other = Sandbox(node, "r", make_ns("r")), Sandbox(node, "web", make_ns("web"))
            for sandbox in (router, other):
                await sandbox.add()

            def there() -> set[str]:
                """The addresses for workloads that the router's interface has."""
                found = node.ns.json("addr", "show", "dev", router.host_ifname)[0]["addr_info"]
                return {one["local"] for one in found} & {"169.254.7.7", "fd00:7::7"}

            await soon(there, lambda ips: ips == {"169.254.7.7", "fd00:7::7"}, "the addresses are on the interface")
            assert router.ns is not None
            assert other.ns is not None
            dials = router.ns
            for address in ("169.254.7.7", "fd00:7::7"):
                await soon(lambda: answers(dials, address), what=f"{address} answers")  # noqa: B023
            assert not answers(dials, "192.0.2.1")
            assert not answers(other.ns, "169.254.7.7")
            assert "169.254.7.7" not in str(node.ns.json("addr", "show", "dev", other.host_ifname))


def reconfigured(node: Node) -> datetime:
    """When BIRD last took a configuration."""
    return status(node).last_reconfiguration
