"""IP in IP, which many development kernels lack: two nodes' stages, real packets, and a pool that changes its mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from namespaces import Ns
from overlay_kernel import cluster_routes, device, pinging
from tortie.calc.cluster import Cluster
from tortie.dataplane.converge import converge
from tortie.dataplane.overlay import overlay_stages
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity, IPPool
from tortie.model.node import Node

pytestmark = pytest.mark.root

NUMBERS = {"a": 1, "b": 2}
GUEST_PACE = 0.05
"""Seconds from one ping to the next: everything takes ten times as long here as on a machine that is not emulated."""


class Town:
    """Nodes a and b on one link, each with the address of a pod, and what each wants."""

    def __init__(self, make_ns: Callable[..., Ns], prefix: int = 24) -> None:
        self.ns = {name: make_ns(name) for name in NUMBERS}
        self.clusters = {name: Cluster(name, bird=False) for name in NUMBERS}
        self.stages = {name: overlay_stages(ns.path, linger=0) for name, ns in self.ns.items()}
        a, b = self.ns.values()
        a.ip("link", "add", "eth0", "mtu", "1500", "type", "veth", "peer", "name", "eth0", "netns", b.name)
        for name, number in NUMBERS.items():
            ns = self.ns[name]
            ns.ip("link", "set", "eth0", "up")
            ns.ip("address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            ns.ip("address", "add", f"10.65.{number}.7/32", "dev", "lo")
            block = {"cidr": f"10.65.{number}.0/26", "node": name, "state": "confirmed"}
            self.put(convert(BlockAffinity, {"metadata": {"name": f"block-{name}"}, "spec": block}))
        self.prefix = prefix
        self.tell(ipip=True)

    def tell(self, *, ipip: bool = False, vxlan: bool = False) -> None:
        """The nodes' tunnel addresses."""
        for name, number in NUMBERS.items():
            bgp = {"ipv4Address": f"192.0.2.{number}/{self.prefix}"}
            bgp |= {"ipv4IPIPTunnelAddr": f"10.65.{number}.1"} if ipip else {}
            spec = {"bgp": bgp, **({"ipv4VXLANTunnelAddr": f"10.65.{number}.0"} if vxlan else {})}
            self.put(convert(Node, {"metadata": {"name": name}, "spec": spec}))

    def put(self, resource: Any) -> None:
        for cluster in self.clusters.values():
            cluster.put(resource)

    def pool(self, **modes: str) -> None:
        self.put(convert(IPPool, {"metadata": {"name": "pool"}, "spec": {"cidr": "10.65.0.0/16", **modes}}))

    def reached(self) -> None:
        for name, stages in self.stages.items():
            state = self.clusters[name].state()
            assert converge(stages, state) == []

    def reaches(self) -> bool:
        said = self.ns["a"].run("ping", "-c", "1", "-W", "5", "-n", "-I", "10.65.1.7", "10.65.2.7", check=False)
        return "1 received" in said


@pytest.fixture
def town(make_ns: Callable[..., Ns]) -> Town:
    return Town(make_ns)


def test_packets_travel_in_ipip(town: Town) -> None:
    town.pool(ipipMode="Always")
    town.reached()
    a = town.ns["a"]
    assert town.reaches()
    found = device(a, "tunl0")
    assert (found["mtu"], found["up"], found["addresses"]) == (1480, True, ["10.65.1.1/32"])
    assert cluster_routes(a) == {
        "10.65.1.0/26": ("blackhole", "", ""),
        "10.65.2.0/26": ("unicast", "192.0.2.2", "tunl0", "onlink"),
    }
    (counted,) = (one["stats64"]["tx"]["packets"] for one in a.json("-s", "link", "show", "tunl0"))
    assert counted > 0
    assert not any(stage.plan(town.clusters["a"].state()) for stage in town.stages["a"])


def test_whatever_is_broken_is_mended(town: Town) -> None:
    town.pool(ipipMode="Always")
    town.reached()
    a = town.ns["a"]
    right = device(a, "tunl0"), cluster_routes(a)
    for damage in (
        ("link", "set", "tunl0", "down"),
        ("link", "set", "tunl0", "mtu", "1400"),
        ("address", "del", "10.65.1.1/32", "dev", "tunl0"),
        ("route", "del", "10.65.2.0/26"),
    ):
        a.ip(*damage)
        town.reached()
        assert (device(a, "tunl0"), cluster_routes(a)) == right, damage


def test_cross_subnet_needs_no_tunnel_on_one_network(town: Town) -> None:
    town.pool(ipipMode="CrossSubnet")
    town.reached()
    assert cluster_routes(town.ns["a"])["10.65.2.0/26"] == ("unicast", "192.0.2.2", "eth0", "onlink")
    assert town.reaches()


def test_cross_subnet_tunnels_to_another_network(make_ns: Callable[..., Ns]) -> None:
    town = Town(make_ns, prefix=32)
    town.pool(ipipMode="CrossSubnet")
    town.reached()
    assert cluster_routes(town.ns["a"])["10.65.2.0/26"] == ("unicast", "192.0.2.2", "tunl0", "onlink")
    assert town.reaches()


def test_a_tunl0_that_nobody_wants_is_left_as_the_kernel_makes_it(town: Town) -> None:
    """It cannot be deleted: the module's own."""
    town.pool(ipipMode="Always")
    town.reached()
    town.pool()
    town.reached()  # the routes go
    town.reached()  # and what they led into
    a = town.ns["a"]
    left = device(a, "tunl0")
    assert not left or (left["up"], left["addresses"]) == (False, [])
    assert [link.get("ifalias") for link in a.json("link", "show") if link["ifname"] == "tunl0"] in ([None], [])
    state = town.clusters["a"].state()
    assert [str(work) for stage in town.stages["a"] if (work := stage.plan(state))] == []


def test_a_pool_changes_between_ipip_and_vxlan_under_traffic(town: Town) -> None:
    """As agents do it: the devices first, then their addresses are told, then the old ones are given back."""
    town.pool(ipipMode="Always")
    town.reached()
    for mode, dev in (("vxlan", "vxlan.calico"), ("ipip", "tunl0")):
        assert town.reaches()
        with pinging(town.ns["a"], "10.65.2.7", GUEST_PACE) as found:
            town.pool(**{f"{mode}Mode": "Always"})
            town.reached()
            town.tell(ipip=True, vxlan=True)
            town.reached()
            assert cluster_routes(town.ns["a"])["10.65.2.0/26"][2] == dev
            town.tell(**{mode: True})
            for _ in range(2):
                town.reached()
        assert found.sent > 10
        assert found.lost < 3, (mode, found)
