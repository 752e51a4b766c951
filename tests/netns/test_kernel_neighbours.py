"""Neighbours, proxied addresses, forwarding entries and policy rules, read back with `ip -j`, `bridge -j`, pyroute2."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest
from pyroute2 import NetNS

from tortie.base.errors import ConfigError, Exists, NotFound
from tortie.kernel import links, neighbours, rules
from tortie.kernel.neighbours import Forwarding, Neighbour
from tortie.kernel.netlink import Netlink
from tortie.kernel.rules import Rule

pytestmark = pytest.mark.root

MAC, OTHER_MAC, FLOOD = "66:00:00:00:00:01", "66:00:00:00:00:02", "00:00:00:00:00:00"

FAMILIES = pytest.mark.parametrize(
    ("family", "ip"),
    [pytest.param(socket.AF_INET, "169.254.1.1", id="ipv4"), pytest.param(socket.AF_INET6, "fd00::9", id="ipv6")],
)


@pytest.fixture
def nl(ns) -> Iterator[Netlink]:
    with Netlink(ns.path) as nl:
        links.create_veth(nl, "eth0", "eth1")
        links.set_up(nl, "eth0")
        links.set_up(nl, "eth1")
        yield nl


@pytest.fixture
def eth0(nl) -> int:
    return links.link_index(nl, "eth0")


# --- neighbours ---------------------------------------------------------------------------------------------------


@FAMILIES
def test_neighbour(ns, nl, eth0, family: int, ip: str) -> None:
    entry = Neighbour(eth0, ip, MAC, protocol=80)
    neighbours.replace(nl, entry)
    (there,) = ns.json("neighbour", "show", "to", ip)
    assert (there["dst"], there["lladdr"], there["state"], there["dev"]) == (ip, MAC, ["PERMANENT"], "eth0")
    assert [item for item in neighbours.list_neighbours(nl, family) if item.ip == ip] == [entry]
    with NetNS(ns.name) as oracle:
        (found,) = oracle.get_neighbours(family=family, dst=ip)
    assert (found.get_attr("NDA_LLADDR"), found["ifindex"]) == (MAC, eth0)
    better = replace(entry, mac=OTHER_MAC)
    neighbours.replace(nl, better)
    assert better in neighbours.list_neighbours(nl, family, eth0)
    assert entry not in neighbours.list_neighbours(nl, family, eth0)
    neighbours.delete(nl, better)
    assert ns.json("neighbour", "show", "to", ip, "nud", "permanent") == []


@FAMILIES
def test_proxied_address(ns, nl, eth0, family: int, ip: str) -> None:
    entry = Neighbour(eth0, ip, state="none", proxy=True)
    neighbours.replace(nl, entry)
    (there,) = ns.json("neighbour", "show", "proxy")
    assert (there["dst"], there["dev"]) == (ip, "eth0")
    assert neighbours.list_neighbours(nl, family, proxy=True) == [entry]
    assert neighbours.list_neighbours(nl, proxy=True, dev=eth0) == [entry]
    assert neighbours.list_neighbours(nl, proxy=True, dev=links.link_index(nl, "eth1")) == []
    assert entry not in neighbours.list_neighbours(nl)
    neighbours.delete(nl, entry)
    assert ns.json("neighbour", "show", "proxy") == []
    with pytest.raises(NotFound, match=r"^ip neighbour delete proxy "):
        neighbours.delete(nl, entry)


@FAMILIES
def test_neighbours_of_one_link(nl, eth0, family: int, ip: str) -> None:
    eth1 = links.link_index(nl, "eth1")
    here, there = Neighbour(eth0, ip, MAC), Neighbour(eth1, ip, MAC, state="noarp")
    assert neighbours.apply_many(nl, [("replace", here), ("replace", there)]) == []
    assert {here, there} <= set(neighbours.list_neighbours(nl))
    mine = neighbours.list_neighbours(nl, family, eth0)
    assert here in mine
    assert there not in mine
    assert neighbours.list_neighbours(nl, family, 4711) == []


@FAMILIES
def test_neighbour_that_cannot_be(nl, eth0, family: int, ip: str) -> None:
    with pytest.raises(NotFound):
        neighbours.replace(nl, Neighbour(4711, ip, MAC))
    with pytest.raises(NotFound):
        neighbours.delete(nl, Neighbour(eth0, ip, MAC))
    with pytest.raises(ConfigError):
        neighbours.replace(nl, Neighbour(eth0, ip, MAC, state="eternal"))
    with pytest.raises(ConfigError):
        neighbours.replace(nl, Neighbour(eth0, "nonsense", MAC))


# --- forwarding ---------------------------------------------------------------------------------------------------


def fdb(ns, *words: str) -> list[dict]:
    return json.loads(ns.run("bridge", "-j", "fdb", "show", *words))


def test_bridge_fdb_of_a_vxlan(ns, nl) -> None:
    links.create_vxlan(nl, "vx", 1, "192.0.2.1")
    vx = links.link_index(nl, "vx")
    entry = Forwarding(vx, MAC, "192.0.2.7")
    neighbours.replace(nl, entry)
    (there,) = fdb(ns, "dev", "vx")
    assert (there["mac"], there["dst"], there["flags"], there["state"]) == (MAC, "192.0.2.7", ["self"], "permanent")
    assert neighbours.list_forwarding(nl, vx) == [entry]
    moved = replace(entry, dst="192.0.2.8")
    neighbours.replace(nl, moved)
    assert neighbours.list_forwarding(nl, vx) == [moved]
    neighbours.delete(nl, moved)
    assert fdb(ns, "dev", "vx") == []
    with pytest.raises(NotFound, match=f"^bridge fdb delete {MAC} dev if{vx} dst 192.0.2.8 self permanent: "):
        neighbours.delete(nl, moved)


@pytest.mark.parametrize(("local", "base"), [("192.0.2.1", "192.0.2."), ("2001:db8::1", "2001:db8::")])
def test_flooding_to_several(ns, nl, local: str, base: str) -> None:
    links.create_vxlan(nl, "vx", 1, local)
    vx = links.link_index(nl, "vx")
    entries = [Forwarding(vx, FLOOD, f"{base}{number}") for number in range(10, 60)]
    assert neighbours.apply_many(nl, [("append", entry) for entry in entries]) == []
    assert {item["dst"] for item in fdb(ns, "dev", "vx")} == {entry.dst for entry in entries}
    assert set(neighbours.list_forwarding(nl, vx)) == set(entries)
    neighbours.append(nl, Forwarding(vx, FLOOD, f"{base}99"))
    strange = Forwarding(vx, MAC, f"{base}10")
    failures = neighbours.apply_many(nl, [("delete", entry) for entry in [strange, *entries]])
    assert [index for index, _ in failures] == [0]
    assert [item["dst"] for item in fdb(ns, "dev", "vx")] == [f"{base}99"]


def test_fdb_of_a_bridge_port(ns, nl, eth0) -> None:
    links.create_bridge(nl, "br0")
    links.set_master(nl, "eth0", "br0")
    entry = Forwarding(eth0, MAC, state="noarp", master=True)
    neighbours.replace(nl, entry)
    (there,) = [item for item in fdb(ns, "br", "br0") if item["mac"] == MAC]
    assert (there["ifname"], there["master"], there["state"]) == ("eth0", "br0", "static")
    assert entry in neighbours.list_forwarding(nl)
    assert entry in neighbours.list_forwarding(nl, eth0)
    neighbours.delete(nl, entry)
    assert MAC not in [item["mac"] for item in fdb(ns)]


# --- policy rules -------------------------------------------------------------------------------------------------


def rule_kinds(family: int) -> dict[str, Rule]:
    net = ip_network("fd00:1::/64" if family == socket.AF_INET6 else "10.1.0.0/16")
    base = Rule(family, 100, 1000, protocol=80)
    return {
        "all": base,
        "source": replace(base, src=net),
        "destination": replace(base, dst=net),
        "mark": replace(base, mark=0x10),
        "masked-mark": replace(base, mark=0x10, mask=0xF0),
        "not": replace(base, mark=0x100000, mask=0x100000, invert=True),
        "links": replace(base, iif="lo", oif="eth0"),
        "main": replace(base, table=254, suppress_prefixlength=0),
        "prohibit": replace(base, table=0, action="prohibit"),
        "goto": replace(base, table=0, action="goto", goto=32766),
    }


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", list(rule_kinds(2)))
def test_every_kind_of_rule(ns, nl, family: int, kind: str) -> None:
    option = "-6" if family == socket.AF_INET6 else "-4"
    rule = rule_kinds(family)[kind]
    before = rules.list_rules(nl, family)
    rules.add_rule(nl, rule)
    assert [item for item in rules.list_rules(nl, family) if item.priority == 100] == [rule]
    with pytest.raises(Exists, match=r"^ip (-6 )?rule add priority 100 "):
        rules.add_rule(nl, rule)
    (there,) = ns.json(option, "rule", "show", "priority", "100")
    assert there.get("table") == {0: None, 254: "main"}.get(rule.table, str(rule.table))
    assert there.get("fwmark") == (hex(rule.mark) if rule.mark else None)
    assert ("not" in there) == rule.invert
    rules.delete_rule(nl, rule)
    assert rules.list_rules(nl, family) == before
    with pytest.raises(NotFound):
        rules.delete_rule(nl, rule)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_ip_understands_what_a_rule_prints(ns, nl, family: int) -> None:
    option = "-6" if family == socket.AF_INET6 else "-4"
    for rule in rule_kinds(family).values():
        words = str(rule).split()
        if "not" in words:  # `ip` wants it first
            words.remove("not")
            words.insert(0, "not")
        ns.ip(option, "rule", "add", *words)
        assert rule in rules.list_rules(nl, family)
        rules.delete_rule(nl, rule)
