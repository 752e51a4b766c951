"""A node with its agent and a router of others, FRR: whoever is behind the router reaches pods by what BGP says alone.

pod ── node1, AS 64512 ── eth0 10.9.0.0/24, fd00:9::/64 ── tor, FRR, AS 65001 ── host 203.0.113.2, 2001:db8:113::2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from agent_node import RED, Node, Sandbox, Site, ips, pod, site_in, soon

from namespaces import Ns
from peers import Frr, frr, needs_frr
from tortie.ipam.retire import retire
from tortie.model.document import parse
from tortie.model.ipam import BlockAffinity
from tortie.model.k8s import Pod
from tortie.model.store import Store

pytestmark = [pytest.mark.root, needs_frr]

PEERS = """
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 10.9.0.9, asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor6}
spec: {peerIP: "fd00:9::9", asNumber: 65001}
"""
CONFIG = """
router bgp 65001
 bgp router-id 10.9.0.9
 no bgp default ipv4-unicast
 no bgp ebgp-requires-policy
 neighbor 10.9.0.1 remote-as 64512
 neighbor 10.9.0.1 timers connect 1
 neighbor fd00:9::1 remote-as 64512
 neighbor fd00:9::1 timers connect 1
 address-family ipv4 unicast
  redistribute connected
  neighbor 10.9.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  redistribute connected
  neighbor fd00:9::1 activate
 exit-address-family
"""


def wire(one: Ns, other: Ns, dev: str, peer: str, *addresses: tuple[str, str]) -> None:
    """A veth between two namespaces, each end with its addresses."""
    one.ip("link", "add", dev, "type", "veth", "peer", "name", peer, "netns", other.name)
    for ns, name, mine in ((one, dev, 0), (other, peer, 1)):
        for address in addresses:
            ns.ip("addr", "add", address[mine], "dev", name, *(["nodad"] if ":" in address[mine] else []))
        ns.ip("link", "set", name, "up")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        site.write(*parse(PEERS))
        yield site


@pytest.fixture
def places(site: Site, make_ns: Callable[..., Ns]) -> tuple[Node, Ns, Ns]:
    """The node, not started yet, the router's namespace and the host's."""
    node, tor, host = site.node("node1", ipv4="10.9.0.1/24", ipv6="fd00:9::1/64"), make_ns("tor"), make_ns("host")
    wire(node.ns, tor, "eth0", "eth0", ("10.9.0.1/24", "10.9.0.9/24"), ("fd00:9::1/64", "fd00:9::9/64"))
    wire(tor, host, "eth1", "eth0", ("203.0.113.1/24", "203.0.113.2/24"), ("2001:db8:113::1/64", "2001:db8:113::2/64"))
    tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    host.ip("route", "add", "default", "via", "203.0.113.1")
    host.ip("-6", "route", "add", "default", "via", "2001:db8:113::1")
    return node, tor, host


@pytest.fixture
def router(places: tuple[Node, Ns, Ns]) -> Iterator[Frr]:
    with frr(places[1], CONFIG) as router:
        yield router


def reaches(host: Ns, address: str) -> bool:
    return "1 received" in host.run("ping", "-n", "-c", "1", "-W", "1", address, check=False)


async def test_a_pod_is_reached_through_a_router_of_others_as_long_as_its_block_is_there(
    places: tuple[Node, Ns, Ns], router: Frr, store: Store, make_ns: Callable[..., Ns]
) -> None:
    node, _, host = places
    node.start("--ready-addresses", "0")
    await store.create(pod("a"))
    one = Sandbox(node, "a", make_ns("a"))
    for address in ips(await one.add()):
        await soon(lambda: reaches(host, address), what=f"{address} answers")  # noqa: B023
    assert router.fib().keys() == {affinity.spec.cidr for affinity in (await store.list(BlockAffinity)).items}
    assert {row["gateway"] for row in router.fib().values()} == {"10.9.0.1", "fd00:9::1"}
    learned = [*node.ns.json("route", "show", "proto", "bird"), *node.ns.json("-6", "route", "show", "proto", "bird")]
    gateways = {row["dst"]: row.get("gateway") for row in learned}
    assert gateways["203.0.113.0/24"] == "10.9.0.9"
    assert gateways["2001:db8:113::/64"]  # FRR also tells its link-local address, which BIRD prefers
    await one.delete()
    await store.delete(Pod, "a", RED)
    for name in ("pool4", "pool6"):
        await retire(store, name, lambda: datetime.now(UTC))
    await soon(router.fib, lambda fib: not fib, "routes to blocks that are gone")
