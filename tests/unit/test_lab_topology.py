"""The lab on paper: names, addresses, and what cannot be."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface, ip_interface

import pytest

from tortie.base.errors import ConfigError
from tortie.lab.blueprint import MAX_NODES
from tortie.lab.topology import lab_of_namespace, names, prefix, topology


def test_three_nodes_and_the_outside_host() -> None:
    lab = topology("demo", 3)
    assert [node.name for node in lab.nodes] == ["node1", "node2", "node3"]
    assert lab.nodes[0].addresses == ("172.30.0.11/24", "fd00:172:30::11/64")
    assert lab.nodes[2].netns == "tortie-demo-node3"
    assert (lab.outside.ipv4, lab.outside.ipv6) == (
        IPv4Interface("198.51.100.9/24"),
        IPv6Interface("2001:db8:9::9/64"),
    )
    assert lab.router(lab.blueprint.racks[0].router).bridge == ("172.30.0.1/24", "fd00:172:30::1/64")
    assert lab.uplink_addresses == ("198.51.100.1/24", "2001:db8:9::1/64")


def test_every_gateway_is_on_the_link_of_its_host() -> None:
    lab = topology()
    gateways = {
        str(ip_interface(cidr).ip)
        for cidr in (*lab.router(lab.blueprint.racks[0].router).bridge, *lab.uplink_addresses)
    }
    for host in lab.hosts:
        assert {host.gateway, host.gateway6} <= gateways
        assert IPv4Interface(f"{host.gateway}/24").network == host.ipv4.network
        assert IPv6Interface(f"{host.gateway6}/64").network == host.ipv6.network


def test_the_largest_lab_has_distinct_addresses_inside_its_network() -> None:
    lab = topology("big", MAX_NODES)
    every = [address for host in lab.hosts for address in (host.ipv4.ip, host.ipv6.ip)]
    assert len(set(every)) == len(every)
    assert str(lab.nodes[-1].ipv4.ip) == "172.30.0.250"
    assert lab.nodes[-1].ipv4.ip in lab.nodes[0].ipv4.network


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"nodes": 0}, "0 nodes: a lab has from 1 to 240"),
        ({"nodes": 241}, "241 nodes: a lab has from 1 to 240"),
        ({"name": "a-b"}, '"a-b" cannot be the name of a lab'),
        ({"name": "../etc"}, "cannot be the name of a lab"),
        ({"pool": "10.244.0.1/16"}, "--pool: .* has host bits set"),
        ({"pool": "fd00::/64"}, "--pool: fd00::/64 is not an IPv4 network"),
        ({"pool": "10.0.0.0/30"}, "^--pool: a block of /26 is larger than the pool"),
        ({"pool6": "fd00::/125"}, "^--pool6: a block of /122 is larger than the pool"),
        ({"pool6": "10.0.0.0/8"}, "--pool6: 10.0.0.0/8 is not an IPv6 network"),
        ({"pool": "172.16.0.0/12"}, "overlaps 172.30.0.0/24"),
        ({"pool6": "2001:db8::/32"}, "overlaps 2001:db8:9::/64"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        topology(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_no_lab_owns_the_namespaces_of_another() -> None:
    assert lab_of_namespace("tortie-a-node1") == "a"
    assert lab_of_namespace("tortie-a-pod-red.web-0") == "a"
    assert lab_of_namespace("tortie-ab-node1") == "ab"
    assert lab_of_namespace("tortie-a-router-tor-a") == "a"
    assert lab_of_namespace("tortie-a-else") is None
    assert lab_of_namespace("my-tortie-a-node1") is None
    lab = topology("a")
    for name in (lab.fabric, *(host.netns for host in lab.hosts), lab.pod_netns("default", "web-0")):
        assert lab_of_namespace(name) == "a"
        assert name.startswith(prefix("a"))


def test_the_longest_pod_names_have_distinct_namespaces() -> None:
    lab = topology("a" * 20)
    one, other = (lab.pod_netns("n" * 63, "p" * 252 + last) for last in "xy")
    assert one != other
    assert len(one) <= 255
    assert lab_of_namespace(one) == lab.name


def test_an_unknown_node_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match='lab "default" has no node "node9"; it has node1, node2 and node3'):
        topology().node("node9")


@pytest.mark.parametrize(("words", "text"), [([], "none"), (["a"], "a"), (["a", "b"], "a and b")])
def test_names_in_a_sentence(words: list[str], text: str) -> None:
    assert names(words) == text
