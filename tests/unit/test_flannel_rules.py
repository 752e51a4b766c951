"""flannel's tables as text: what is there when, names and order, and what they decide against its iptables rules."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tortie.base.addr import IP, Net
from tortie.flannel.config import Family, NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.rules import MASQUERADED, MULTICAST, TABLES, names, tables
from tortie.flannel.stages.rules import replacement

N4, P4 = ip_network("10.244.0.0/16"), ip_network("10.244.1.0/24")
N6, P6 = ip_network("fd00:10::/48"), ip_network("fd00:10:0:1::/64")


def family(net: Net) -> Family:
    return Family(net, 24 if net.version == 4 else 64, net[0], net[-1])


BOTH = NetworkConfig(family(N4), family(N6), "vxlan")
LEASE = Lease(P4, P6, Attrs())
WANTED = tables(BOTH, LEASE, masq=True, forward=True)

# --- what is there when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masq", [True, False])
@pytest.mark.parametrize("forward", [True, False])
def test_chains_that_are_not_wanted_are_not_there(masq: bool, forward: bool) -> None:
    for text in tables(BOTH, LEASE, masq=masq, forward=forward).values():
        assert ("chain postrtg" in text) is masq
        assert ("chain forward" in text) is forward
        assert bool(text) is (masq or forward)


def test_a_family_that_the_network_does_not_have_has_no_table() -> None:
    only4 = tables(NetworkConfig(family(N4), None, "vxlan"), LEASE, masq=True, forward=True)
    only6 = tables(NetworkConfig(None, family(N6), "vxlan"), LEASE, masq=True, forward=True)
    assert [bool(only4[name]) for name in TABLES.values()] == [True, False]
    assert [bool(only6[name]) for name in TABLES.values()] == [False, True]
    assert only4[TABLES[4]] == WANTED[TABLES[4]]
    assert only6[TABLES[6]] == WANTED[TABLES[6]]


def test_a_node_without_a_subnet_of_a_family_has_no_table_of_it() -> None:
    found = tables(BOTH, Lease(P4, None, Attrs()), masq=True, forward=True)
    assert [bool(found[name]) for name in TABLES.values()] == [True, False]


def test_random_ports_can_be_switched_off() -> None:
    plain = tables(BOTH, LEASE, masq=True, forward=True, random_fully=False)
    for name, text in WANTED.items():
        assert text.count("masquerade fully-random") == 2
        assert text.replace(" fully-random", "") == plain[name]


@pytest.mark.parametrize(
    ("file", "prefix", "name"),
    [
        ("/run/flannel/subnet.env", "/coreos.com/network", "ip flannel-ipv4"),
        ("/run/node1/subnet.env", "coreos.com/network/", "ip flannel-ipv4"),
        ("/run/flannel/subnet.env", "/red/network", "ip flannel-ipv4-red-network"),
        ("/run/flannel/net 2.env", "/coreos.com/network", "ip flannel-ipv4-net-2"),
        ("/run/flannel/red", "/red/network", "ip flannel-ipv4-red"),
    ],
)
def test_a_second_daemon_has_tables_of_its_own(file: str, prefix: str, name: str) -> None:
    called = names(Path(file), prefix)
    assert called[4] == name
    assert list(tables(BOTH, LEASE, called, masq=True, forward=True)) == [called[4], called[6]]


def test_the_order_and_the_words_of_the_rules() -> None:
    assert [line.strip() for line in WANTED[TABLES[4]].splitlines()] == [
        "table ip flannel-ipv4 {",
        'comment "rules for flannel-ipv4"',
        "chain forward {",
        'comment "chain to accept flannel traffic"',
        "type filter hook forward priority filter; policy accept;",
        'ip saddr 10.244.0.0/16 counter accept comment "flanneld forward: from pods"',
        'ip daddr 10.244.0.0/16 counter accept comment "flanneld forward: to pods"',
        "}",
        "chain postrtg {",
        'comment "chain to manage traffic masquerading by flannel"',
        "type nat hook postrouting priority srcnat; policy accept;",
        'meta mark & 0x4000 == 0x4000 counter return comment "flanneld masq: marked by kube-proxy"',
        'ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 counter return comment "flanneld masq: own pods to pods"',
        'ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 counter return comment "flanneld masq: pods to own pods"',
        'ip saddr != 10.244.0.0/16 ip daddr 10.244.1.0/24 counter return comment "flanneld masq: clients to own pods"',
        "ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 counter masquerade fully-random "
        'comment "flanneld masq: pods to the world"',
        "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 counter masquerade fully-random "
        'comment "flanneld masq: host to pods"',
        "}",
        "}",
    ]


def test_a_table_is_replaced_whole_and_one_that_is_not_wanted_goes() -> None:
    assert replacement("ip x", "table ip x {\n}\n") == "add table ip x\ndelete table ip x\ntable ip x {\n}\n"
    assert replacement("ip x", "") == "add table ip x\ndelete table ip x\n"


# --- the decisions ------------------------------------------------------------------------------------------------

Verdict = Literal["as it is", "masquerade"]
RULE = re.compile(r'^\s+(?P<match>(?:meta|ip6?) .*) counter (?P<verdict>return|masquerade).* comment "flanneld masq')
MARK = re.compile(r"meta mark & (\S+) == (\S+)")
ADDRESS = re.compile(r"ip6? (saddr|daddr) (!= )?(\S+)")


def decided(text: str, source: IP, destination: IP, mark: int) -> Verdict:
    """What the rules of a text say, read by themselves."""
    for line in text.splitlines():
        rule = RULE.match(line)
        if rule is None:
            continue
        ends = {"saddr": source, "daddr": destination}
        fits = [mark & int(mask, 0) == int(value, 0) for mask, value in MARK.findall(rule["match"])]
        fits += [(ends[end] in ip_network(net)) is not bool(no) for end, no, net in ADDRESS.findall(rule["match"])]
        assert fits, line
        if all(fits):
            return "masquerade" if rule["verdict"] == "masquerade" else "as it is"
    return "as it is"


def expected(network: Net, subnet: Net, source: IP, destination: IP, mark: int) -> Verdict:
    """flannel's iptables rules, in the other order: what is masqueraded, and why."""
    if mark & MASQUERADED:
        return "as it is"
    multicast = destination in ip_network(MULTICAST[network.version])
    pod_to_world = source in network and destination not in network and not multicast
    stranger_to_remote_pod = source not in network and destination in network and destination not in subnet
    between_other_nodes = source in network and source not in subnet and destination in network
    passes = between_other_nodes and destination not in subnet
    return "masquerade" if pod_to_world or stranger_to_remote_pod or passes else "as it is"


def addresses(network: Net, subnet: Net, *others: str) -> st.SearchStrategy[IP]:
    edges = [subnet[0], subnet[-1], subnet[0] - 1, subnet[-1] + 1, network[0], network[-1], network[0] - 1]
    return st.sampled_from([*edges, network[-1] + 1, *map(ip_address, others)])


@pytest.mark.parametrize(
    ("network", "subnet", "others"),
    [
        (N4, P4, ("192.0.2.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "10.244.7.7")),
        (N6, P6, ("2001:db8::1", "ff02::1", "fe80::1", "fd00:10:0:7::7")),
    ],
    ids=["IPv4", "IPv6"],
)
@given(data=st.data(), mark=st.sampled_from([0, 0x4000, 0xC000, 0x8000, 0x3FFF, 0x14000]))
def test_the_decisions_are_those_of_the_iptables_rules(
    network: Net, subnet: Net, others: tuple[str, ...], data: st.DataObject, mark: int
) -> None:
    choice = addresses(network, subnet, *others)
    source, destination = data.draw(choice), data.draw(choice)
    text = WANTED[TABLES[network.version]]
    assert decided(text, source, destination, mark) == expected(network, subnet, source, destination, mark)
