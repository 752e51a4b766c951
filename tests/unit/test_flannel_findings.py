"""What is said of a node and its network: each finding from the values that show it, and silence where all is well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest

from tortie.base.addr import IP
from tortie.flannel import findings, probe
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.forwarding import closed
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.seen import HostRoute, Reach, Seen, Target, Tcp, Tried
from tortie.flannel.state import (
    PROTOCOL,
    Device,
    External,
    FlannelState,
    Ipip,
    Path,
    Place,
    Site,
    Tun,
    Vxlan,
    Wireguard,
)

NETWORK, NETWORK6 = IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48")
OWN, OWN6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")


def place(own: IPv4Address = OWN, *, mtu: int = 1500, v6: bool = False, data: str | None = None) -> Place:
    v4 = Family(NETWORK, 24, NETWORK[256], NETWORK[-256])
    family6 = Family(NETWORK6, 64, NETWORK6[1 << 64], NETWORK6[2 << 64]) if v6 else None
    config = NetworkConfig(v4, family6, "vxlan", {"Type": "vxlan"})
    site = Site(config, External("eth0", 2, mtu, own, OWN6 if v6 else None), own, OWN6 if v6 else None)
    lease = Lease(
        IPv4Network("10.5.1.0/24"),
        IPv6Network("fd00:5:0:1::/64") if v6 else None,
        Attrs(own, OWN6 if v6 else None, "vxlan", data),
    )
    return Place(site, lease)


def other(number: int = 2, ip: str = "", *, node: str = "", type: str = "vxlan", data: str | None = None) -> Lease:
    attrs = Attrs(IPv4Address(ip or f"192.0.2.{number}"), None, type, data)
    return Lease(IPv4Network(f"10.5.{number}.0/24"), None, attrs, node=node)


def device(kind: Any = None, mtu: int = 1450, name: str = "flannel.1") -> Device:
    return Device(name, kind or Vxlan(1, OWN, 2), mtu)


def state(*devices: Device) -> FlannelState:
    return FlannelState((NETWORK,), devices or (device(),))


def told(
    at: Place | None = None, leases: Sequence[Lease] = (), seen: Seen | None = None, of: FlannelState | None = None
) -> tuple[str, ...]:
    return findings.lines(at or place(), 1450, of or state(), leases, seen or Seen())


def test_nothing_is_wrong() -> None:
    routes = (
        HostRoute(ip_network("0.0.0.0/0"), "eth0"),
        HostRoute(ip_network("192.0.2.0/24"), "eth0"),
        HostRoute(ip_network("10.5.1.0/24"), "cni0", 2),
        HostRoute(ip_network("10.5.1.7/32"), "veth7"),
        HostRoute(ip_network("10.5.2.0/24"), "flannel.1"),
        HostRoute(ip_network("10.5.3.0/24"), "eth0", PROTOCOL),
        HostRoute(ip_network("10.5.4.0/24"), "eth0"),  # as flanneld's host-gw leaves it behind
        HostRoute(ip_network("fe80::/64"), "eth0"),
    )
    data = '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}'
    target = Target("node b", ip_address("192.0.2.2"), (ip_address("10.5.2.0"),), "flannel.1", 1500)
    reach = Reach(target, True, ip_address("10.5.2.0"), 1500)
    seen = Seen(routes, reaches=(reach,), tried=(Tried(reach, Tcp.ANSWERED),))
    assert told(place(data=data), [other(2, data=data), other(4)], seen) == ()


# --- addresses ----------------------------------------------------------------------------------------------------


def test_two_nodes_with_one_address() -> None:
    (line,) = told(leases=[other(2, node="b"), other(3, "192.0.2.2", node="c")])
    assert line.startswith("192.0.2.2 is the public address of node b and node c: packets for one come to the other")
    (line,) = told(leases=[other(2, "192.0.2.1")])
    assert "192.0.2.1 is the public address of this node and the node of 10.5.2.0/24" in line
    assert "--iface or --public-ip" in line


def test_the_address_of_virtualbox() -> None:
    nat = IPv4Address("10.0.2.15")
    text = (
        "10.0.2.15 is the public address of {}: VirtualBox's NAT gives it to every machine, and nobody else reaches it"
    )
    remedy = ": name the host-only or bridged interface, as --iface=eth1"
    assert told(place(nat), [other(2)]) == (text.format("this node") + remedy,)
    assert told(place(nat), [other(2, str(nat), node="b")]) == (text.format("this node and node b") + remedy,)


def test_the_network_of_pods_is_somebody_elses_too() -> None:
    routes = (
        HostRoute(ip_network("10.5.64.0/18"), "docker0"),
        HostRoute(ip_network("10.0.0.0/8"), "tun0"),
        HostRoute(ip_network("10.5.200.0/24"), ""),
        HostRoute(ip_network("10.6.0.0/16"), "docker1"),
    )
    text = "the pods' network 10.5.0.0/16 overlaps {}: packets go astray; choose another Network"
    assert told(seen=Seen(routes)) == (
        text.format("10.5.64.0/18 by docker0"),
        text.format("10.0.0.0/8 by tun0"),
        text.format("10.5.200.0/24 by a route to nowhere"),
    )


def test_nodes_inside_of_the_pods_network() -> None:
    at = place(IPv4Address("10.5.99.1"))
    assert told(at, [other(2, "10.5.99.2", node="b")], Seen((HostRoute(ip_network("10.5.99.0/24"), "eth0"),))) == (
        "10.5.99.1, the address of this node, is in the pods' network 10.5.0.0/16: choose another Network",
        "10.5.99.2, the address of node b, is in the pods' network 10.5.0.0/16: choose another Network",
        "the pods' network 10.5.0.0/16 overlaps 10.5.99.0/24 by eth0, which leads to the other nodes: packets go "
        "astray; choose another Network",
    )


def test_addresses_of_the_other_version() -> None:
    at = place(v6=True)
    lease = Lease(None, IPv6Network("fd00:5:0:2::/64"), Attrs(None, OWN6, "vxlan"), node="b")
    lines = told(at, [lease], Seen((HostRoute(ip_network("fd00:5:0:9::/64"), "br0"),)))
    assert lines[0].startswith("2001:db8::1 is the public address of this node and node b: ")
    assert lines[0].endswith("by --iface or --public-ipv6")
    assert lines[1].startswith("the pods' network fd00:5::/48 overlaps fd00:5:0:9::/64 by br0: ")
    assert len(lines) == 2


# --- chains that drop ---------------------------------------------------------------------------------------------


def base(table: str = "filter", name: str = "FORWARD", policy: str = "drop", family: str = "ip") -> dict[str, Any]:
    found = {
        "family": family,
        "table": table,
        "name": name,
        "handle": 1,
        "type": "filter",
        "hook": "forward",
        "prio": 0,
    }
    return {"chain": found | {"policy": policy}}


def rule(*expressions: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 2, "expr": list(expressions)}}


def match(field: str, net: str, protocol: str = "ip", op: str = "==") -> dict[str, Any]:
    address, _, length = net.partition("/")
    right: Any = {"prefix": {"addr": address, "len": int(length)}} if length else address
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": field}}, "right": right}}


ACCEPT: dict[str, Any] = {"accept": None}
COUNTER: dict[str, Any] = {"counter": {"packets": 0, "bytes": 0}}
COMMENT: dict[str, Any] = {"xt": {"type": "match", "name": "comment"}}


def shut(*rules: Mapping[str, Any], chains: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    return list(closed([NETWORK], [*chains, base()], {"ip filter": rules}))


def test_a_chain_that_drops_pods_packets_and_the_remedy() -> None:
    remedy = "iptables -I FORWARD -s 10.5.0.0/16 -j ACCEPT; iptables -I FORWARD -d 10.5.0.0/16 -j ACCEPT"
    (line,) = shut()
    assert line.startswith(
        "chain FORWARD of table ip filter drops what is forwarded and none of its rules accepts 10.5.0"
    )
    assert line.endswith(f": {remedy}")
    docker = {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER", "handle": 3}}
    assert shut(chains=[docker])[0].endswith(f": {remedy.replace('FORWARD', 'DOCKER-USER')}")


def test_a_chain_of_nftables_own_has_a_remedy_of_its_own() -> None:
    (line,) = closed([NETWORK], [base("mine", "through", family="inet")], {})
    insert = "nft insert rule inet mine through ip"
    assert line.endswith(f": {insert} saddr 10.5.0.0/16 accept; {insert} daddr 10.5.0.0/16 accept")


@pytest.mark.parametrize(
    "rules",
    [
        [rule(match("saddr", "10.5.0.0/16"), COUNTER, ACCEPT), rule(match("daddr", "10.5.0.0/16"), None, ACCEPT)],
        [rule(match("saddr", "10.0.0.0/8"), COMMENT, ACCEPT), rule(match("daddr", "10.0.0.0/8"), COMMENT, ACCEPT)],
        [rule(COUNTER, ACCEPT)],
    ],
)
def test_rules_that_let_pods_through(rules: list[dict[str, Any]]) -> None:
    assert shut(*rules) == []


@pytest.mark.parametrize(
    "rules",
    [
        [rule(match("saddr", "10.5.0.0/16"), ACCEPT)],  # one direction
        [rule(match("saddr", "10.5.1.0/24"), ACCEPT), rule(match("daddr", "10.5.1.0/24"), ACCEPT)],  # a part of it
        [rule(match("saddr", "10.5.0.0/16", op="!="), ACCEPT), rule(match("daddr", "10.5.0.0/16"), ACCEPT)],
        [rule(match("saddr", "10.5.0.0/16"), {"drop": None}), rule(match("daddr", "10.5.0.0/16"), {"drop": None})],
        [rule({"xt": {"type": "match", "name": "conntrack"}}, ACCEPT)],
        [rule({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established"]}}, ACCEPT)],
        [
            rule(
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@set"}},
                ACCEPT,
            )
        ],
        [rule({"jump": {"target": "DOCKER-FORWARD"}})],
    ],
)
def test_rules_that_do_not(rules: list[dict[str, Any]]) -> None:
    assert len(shut(*rules)) == 1


@pytest.mark.parametrize(
    "chain",
    [
        base(policy="accept"),
        base("flannel-ipv4", "forward"),
        base(family="ip6"),
        {"chain": base()["chain"] | {"hook": "input"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
        {"metainfo": {"version": "1.0.9"}},
    ],
)
def test_chains_that_are_not_meant(chain: dict[str, Any]) -> None:
    assert list(closed([NETWORK], [chain], {})) == []


def test_the_other_version_has_a_chain_of_its_own() -> None:
    (line,) = closed([NETWORK, NETWORK6], [base(family="ip6")], {})
    assert line.endswith(
        ": ip6tables -I FORWARD -s fd00:5::/48 -j ACCEPT; ip6tables -I FORWARD -d fd00:5::/48 -j ACCEPT"
    )


# --- tunnels ------------------------------------------------------------------------------------------------------


def test_another_vni() -> None:
    at = place(data='{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}')
    mad = [other(2, data='{"vni":2}', node="b"), other(3, data="{"), other(4), other(5, type="ipip", data='{"VNI":7}')]
    assert told(at, mad) == (
        "node b has VNI 2, and this node 1: neither hears the other; Backend.VNI must be the same on all nodes",
    )


def reached(host: bool, end: IP | None, passes: int | None = None, *, to: str = "flannel.1") -> Reach:
    ends = (ip_address("10.5.2.0"), ip_address("10.5.2.1")) if to else ()
    return Reach(Target("node b", ip_address("192.0.2.2"), ends, to, 1500), host, end, passes)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Vxlan(1, OWN, 2), "is UDP port 8472 filtered"),
        (Vxlan(1, OWN, 2, 4789), "is UDP port 4789 filtered"),
        (Ipip(OWN), "is IP protocol 4"),
        (Tun(), "flannel's UDP port (8285"),
        (Wireguard("", 51820), "Backend.ListenPort"),
    ],
)
def test_a_tunnel_in_which_nobody_answers(kind: Any, says: str) -> None:
    (line,) = told(seen=Seen(reaches=(reached(True, None),)), of=state(device(kind, 1400)))
    assert line.startswith("node b answers at 192.0.2.2 and not through flannel.1 (10.5.2.0): ")
    assert says in line


def test_who_is_down_or_reached_without_a_tunnel_is_no_finding() -> None:
    assert told(seen=Seen(reaches=(reached(False, None), reached(True, None, to="")))) == ()


def test_packets_that_are_too_large_on_the_way() -> None:
    end = ip_address("10.5.2.0")
    text = (
        "packets of more than 1400 bytes do not get to node b (192.0.2.2) uncut, and flannel's are of up to 1500: set "
    )
    (line,) = told(seen=Seen(reaches=(reached(True, end, 1400),)))
    assert line.startswith(f"{text}Backend.MTU to 1400")
    (line,) = told(seen=Seen(reaches=(reached(True, None, 1400, to=""),)))
    assert line.startswith(f"{text}the MTU of the nodes' interfaces to 1400")


@pytest.mark.parametrize("passes", [None, 0, 1500])
def test_no_word_of_sizes_where_none_was_found(passes: int | None) -> None:
    assert told(seen=Seen(reaches=(reached(True, ip_address("10.5.2.0"), passes),))) == ()


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (Vxlan(1, OWN, 2), 50),
        (Vxlan(1, OWN6, 2), 70),
        (Ipip(OWN), 20),
        (Tun(), 28),
        (Wireguard("", 51820), 80),
    ],
)
def test_a_link_that_is_too_small_for_the_tunnel(kind: Any, least: int) -> None:
    assert told(of=state(device(kind, 1500 - least))) == ()
    (line,) = told(of=state(device(kind, 1501 - least)))
    assert line.endswith("bytes and needs 1501 for them, of which eth0 carries 1500: set Backend.MTU to 1500")


def test_a_link_that_is_too_small_for_ipv6() -> None:
    lines = findings.lines(place(mtu=1300, v6=True), 1230, state(device(mtu=1230)), (), Seen())
    assert lines == ("pods get an MTU of 1230, and IPv6 needs 1280: raise the MTU of eth0 by 50",)
    assert findings.lines(place(mtu=1300), 1230, state(device(mtu=1230)), (), Seen()) == ()


def test_what_came_of_tcp() -> None:
    reach = reached(True, ip_address("10.5.2.1"))
    (line,) = told(seen=Seen(tried=(Tried(reach, Tcp.MENDED),)))
    assert "ethtool -K flannel.1 tx-checksum-ip-generic off was done, and stays" in line
    third = replace(reach, target=replace(reach.target, node="node c"), end=ip_address("10.5.3.0"))
    silent = tuple(Tried(one, Tcp.UNANSWERED) for one in (reach, third))
    (line,) = told(seen=Seen(tried=(*silent, Tried(reach, Tcp.ANSWERED))))
    text = "ping through flannel.1 is answered and TCP is not, whoever fills in its checksums, by "
    assert line.startswith(f"{text}node b (10.5.2.1), node c (10.5.3.0): a firewall")


def test_what_was_not_looked_at_is_told() -> None:
    assert told(seen=Seen(skipped=("chains: nft is not installed",))) == (
        "not looked at: chains: nft is not installed",
    )


# --- whom to ask --------------------------------------------------------------------------------------------------


def test_ways_to_other_nodes() -> None:
    tunnel = Path(IPv4Network("10.5.2.0/24"), "flannel.1", ip_address("10.5.2.0"), onlink=True)
    direct = Path(IPv4Network("10.5.3.0/24"), "eth0", ip_address("192.0.2.3"))
    leases = [other(2, node="b"), other(3, node="c"), other(4, type="ipip"), other(5, "192.0.2.1")]
    found = list(probe.targets(place(), replace(state(), paths=(tunnel, direct)), leases))
    assert found == [
        Target("node b", ip_address("192.0.2.2"), (ip_address("10.5.2.0"), ip_address("10.5.2.1")), "flannel.1", 1500),
        Target("node c", ip_address("192.0.2.3"), largest=1500),
    ]


def test_node_with_a_single_address() -> None:
    """Of a reservation that somebody wrote by hand."""
    alone = replace(other(2), subnet=IPv4Network("10.5.2.7/32"))
    tunnel = Path(IPv4Network("10.5.2.7/32"), "flannel.1", ip_address("10.5.2.7"), onlink=True)
    [target] = probe.targets(place(), replace(state(), paths=(tunnel,)), [alone])
    assert set(target.ends) == {ip_address("10.5.2.7")}


def test_one_route_for_the_whole_network() -> None:
    wireguard = device(Wireguard("", 51820), 1420, "flannel-wg")
    found = list(probe.targets(place(), replace(state(wireguard), paths=(Path(NETWORK, "flannel-wg"),)), [other(2)]))
    assert [(target.device, target.largest) for target in found] == [("flannel-wg", 1500)]
