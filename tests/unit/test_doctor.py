"""The doctor's judgement, on values."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tortie.agent.doctor import tunnel_addresses
from tortie.agent.machine import _tried
from tortie.agent.policy_routing import as_seen, bits_set
from tortie.base.dialled import Answer, Dialled
from tortie.base.errors import Unavailable
from tortie.calc.doctor import Chain, Cluster, Finding, Interface, Machine, Marking, Seen, Way, judge
from tortie.cli.doctor import _without_agent
from tortie.kernel.netlink.tables import AF_INET, AF_INET6, RT_TABLE_MAIN
from tortie.kernel.ping import checksum
from tortie.kernel.rules import Rule
from tortie.model.document import parse
from tortie.model.node import Node

OWN, FAR = ip_address("10.0.0.1"), ip_address("10.0.0.2")
ETH0 = Interface(name="eth0", mtu=1500, addresses=(OWN,))
TUNNEL = Interface(name="vxlan.calico", kind="vxlan", mtu=1450, info={"id": 4096, "port": 4789})
POD = Interface(name="cali123", mtu=1450)
MACHINE = Machine(
    features={"nft": True, "vxlan": True, "ipip": False},
    forwarding={4: True, 6: True},
    conntrack=(10, 100),
    interfaces=(ETH0, TUNNEL, POD),
    bird="BIRD version 2.0.12",
    clock_ok=True,
)
CLUSTER = Cluster(
    node="a", addresses=(OWN,), tunnels=frozenset({"VXLAN"}), pools=(ip_network("10.1.0.0/16"),), datastore="store.db"
)
WAY = Way(node="b", ip=FAR, answers=True, bgp=Answer(Dialled.OPEN), largest=1500, link_mtu=1500)
SEEN = Seen(machine=MACHINE, cluster=CLUSTER, ways=(WAY,))


def machine(**what: Any) -> Seen:
    return replace(SEEN, machine=replace(MACHINE, **what))


def cluster(**what: Any) -> Seen:
    return replace(SEEN, cluster=replace(CLUSTER, **what))


def way(**what: Any) -> Seen:
    return replace(SEEN, ways=(replace(WAY, **what),))


def interfaces(*more: Interface) -> Seen:
    return machine(interfaces=more)


def rules(*every: Rule) -> Seen:
    return machine(rules=tuple(map(as_seen, every)), markings=())


rule = partial(Rule, AF_INET, 9)
PODS = ip_network("10.1.4.0/24")


FLOWS = replace(CLUSTER, flow_tables=True)
CASES: list[tuple[Seen, str, str, str]] = [
    (machine(features={"nft": False, "vxlan": True}), "bad", "kernel", "lacks nft"),
    (machine(features={"nft": True, "vxlan": False}), "bad", "kernel", "lacks vxlan, which is needed here"),
    (
        replace(machine(features={"nft": True, "vxlan": True, "flow tables": False}), cluster=FLOWS),
        "warn",
        "kernel",
        "lacks flow tables",
    ),
    (machine(forwarding={4: False, 6: False}), "bad", "forwarding", "IPv4 is not forwarded"),
    (interfaces(replace(ETH0, forwarding=False)), "bad", "forwarding", "comes in by eth0 is not forwarded"),
    (machine(loose_filter=True), "warn", "rp_filter", "is 2 (loose)"),
    (machine(conntrack=(95, 100)), "bad", "conntrack", "95 of 100 connections"),
    (interfaces(replace(ETH0, addresses=())), "bad", "address", "10.0.0.1 is on no interface"),
    (
        interfaces(replace(ETH0, carrier=False)),
        "bad",
        "address",
        "has this node's address 10.0.0.1, and is down",
    ),
    (machine(duplicates={OWN: ("02:00:00:00:00:09",)}), "bad", "duplicate", "10.0.0.1 is also the address of 02:00"),
    (interfaces(replace(ETH0, broken=(OWN,))), "bad", "duplicate", "somebody else's, the kernel found"),
    (cluster(twins={OWN: ("c",)}), "bad", "duplicate", "also the address of c in the datastore"),
    (interfaces(ETH0, replace(TUNNEL, mtu=1500)), "bad", "MTU", "eth0 below it leaves 1450 of its 1500"),
    (interfaces(ETH0, replace(TUNNEL, info={"local6": "fd00::1"})), "bad", "MTU", "below it leaves 1430 of its 1500"),
    (interfaces(replace(ETH0, mtu=1400), POD), "bad", "MTU", "pods have 1450, and eth0 has 1400"),
    (machine(chains=(Chain(where="f", drops=True),)), "bad", "firewall", "it accepts nothing"),
    (machine(chains=(Chain(where="f", drops=True, accepts=True),)), "warn", "firewall", "not accepted there"),
    (machine(chains=(Chain(where="f", all_of_it=True, accepts=True),)), "bad", "firewall", "pods' packets too"),
    (interfaces(ETH0, replace(TUNNEL, name="flannel.1")), "bad", "tunnel", "on our port 4789 with our VNI 4096"),
    (interfaces(ETH0, replace(TUNNEL, name="x", info={"id": 1, "port": 4789})), "warn", "tunnel", "on our port 4789"),
    (machine(routes=(ip_network("192.0.2.0/24"),)), "warn", "routes", "of protocol 80, which is ours, to 192.0.2.0/24"),
    (rules(rule(100)), "warn", "ip rule", "9: from all lookup 100: may take pods' or"),
    (rules(rule(src=PODS, action="blackhole")), "warn", "ip rule", "9: from 10.1.4.0/24 blackhole"),
    (rules(rule(100, src=ip_network("10.0.0.1/32"))), "warn", "ip rule", "9: from 10.0.0.1 lookup 100"),
    (rules(rule(100, dst=ip_network("10.1.0.0/16"))), "warn", "ip rule", "9: from all to 10.1.0.0/16 lookup 100"),
    (rules(rule(100, iif="cali123")), "warn", "ip rule", "9: from all iif cali123 lookup 100"),
    (rules(rule(action="goto", goto=32767)), "warn", "ip rule", "9: from all goto 32767"),
    (rules(rule(100, mark=0xCA6C, invert=True)), "warn", "ip rule", "9: not from all fwmark 0xca6c lookup 100"),
    (rules(rule(254, mark=0x80000, mask=0xFF0000)), "warn", "marks", "asks for bits 0x001b0000 of the mark"),
    (machine(rules=(), markings=(Marking(where="t", bits=0x10000),)), "warn", "marks", "sets bits 0x00010000"),
    (machine(unmanaged=False), "warn", "NetworkManager", "takes pods' interfaces for its own"),
    (cluster(in_sync=False), "bad", "datastore", "has not read all of store.db yet"),
    (cluster(failures=("nft: no",)), "bad", "dataplane", "nft: no"),
    (machine(bird=""), "bad", "BIRD", "is not installed"),
    (cluster(bird_trouble="no answer in 2 s"), "bad", "BIRD", "no answer in 2 s"),
    (machine(clock_ok=False), "warn", "clock", "is not kept by anybody"),
    (way(answers=False, bgp=None, error="Network is unreachable"), "bad", "way", "nothing can be sent there"),
    (way(answers=False, bgp=Answer(Dialled.SILENT)), "bad", "way", "does not answer"),
    (way(answers=False), "warn", "way", "does not answer ping, though TCP passes"),
    (
        way(answers=False, bgp=Answer(Dialled.OPEN, "established")),
        "warn",
        "way",
        "does not answer ping, while its BGP session still stands",
    ),
    (way(bgp=Answer(Dialled.SILENT)), "bad", "BGP", "does not answer TCP 179"),
    (way(bgp=Answer(Dialled.REFUSED)), "bad", "BGP", "refuses TCP 179: BIRD does not listen there"),
    (way(largest=1400), "bad", "MTU", "more than 1400 bytes get lost on the way; the link carries 1500"),
    (replace(way(largest=1400), machine=replace(MACHINE, interfaces=(ETH0,))), "warn", "MTU", "more than 1400 bytes"),
]
IDS = [f"{case[2]}-{i}" for i, case in enumerate(CASES)]


@pytest.mark.parametrize(("seen", "level", "check", "text"), CASES, ids=IDS)
def test_what_is_wrong_is_said_with_what_to_do(seen: Seen, level: str, check: str, text: str) -> None:
    found = [one for one in judge(seen) if one.check == check and text in one.what]
    assert [one.level for one in found] == [level], judge(seen)
    assert found[0].todo


def test_where_all_is_well_nothing_is_wrong() -> None:
    assert {one.level for one in judge(SEEN)} == {"ok"}
    assert Finding("ok", "way", "answers, TCP 179 open, packets up to 1500 bytes", "b 10.0.0.2") in judge(SEEN)


def test_rules_that_leave_pods_and_nodes_alone() -> None:
    main = rule(RT_TABLE_MAIN, suppress_prefixlength=0)
    for well in (
        (main, rule(100)),
        (rule(RT_TABLE_MAIN, dst=ip_network("10.1.0.9/32")),),
        (rule(100, src=ip_network("203.0.113.0/24")),),
        (rule(100, src=ip_network("10.1.0.0/16"), dst=ip_network("203.0.113.0/24")),),
        (rule(100, iif="wlan0"),),
        (rule(100, mark=0x4000, mask=0x4000),),
        (rule(0),),  # each link's own VRF
    ):
        assert {one.level for one in judge(rules(*well)) if one.check in ("ip rule", "marks")} == {"ok"}, well
    assert any(one.check == "ip rule" and one.level == "warn" for one in judge(rules(main, Rule(AF_INET6, 9, 100))))
    assert any(one.level == "warn" for one in judge(rules(rule(100), main))), "tried before"


def test_which_bits_of_the_mark_others_set() -> None:
    mark = {"meta": {"key": "mark"}}

    def setting(key: object, value: object) -> dict[str, Any]:
        return {"expr": [{"counter": None}, {"mangle": {"key": key, "value": value}}]}

    assert bits_set([setting(mark, 1), setting(mark, {"|": [mark, 0x4000]}), setting(mark, {"^": [mark, 2]})]) == 0x4003
    assert bits_set([setting(mark, {"|": [{"&": [mark, 0xFF]}, 0x10000]})]) == 0x10000
    connection = {"ct": {"key": "mark"}}
    others = setting(mark, connection), setting(connection, 8), setting(mark, {"&": [mark, 4]})
    assert bits_set((*others, {"expr": [{"xt": None}, "drop"]}, {})) == 0


def test_a_tunnel_that_is_cut_though_the_node_answers() -> None:
    tunnel = Way(node="b", ip=ip_address("10.1.7.1"), tunnel="VXLAN")
    (bad,) = [one for one in judge(replace(SEEN, ways=(WAY, tunnel))) if one.level == "bad"]
    assert bad.what == "does not answer through VXLAN"
    assert bad.todo == "the node itself answers: is UDP of the VXLAN port let through between the nodes?"


def test_what_was_not_looked_at_is_said_and_the_worst_comes_first() -> None:
    found = judge(replace(machine(bird="", clock_ok=False), skipped=("firewalls: no nft",)))
    assert [one.level for one in found] == sorted(
        (one.level for one in found), key=["bad", "warn", "ok", "skipped"].index
    )
    assert found[-1] == Finding("skipped", "not looked at", "firewalls: no nft")


def test_without_an_agent_and_without_bgp() -> None:
    assert all(one.level == "ok" for one in judge(Seen(machine=MACHINE)))
    assert all(one.level == "ok" for one in judge(replace(cluster(bgp=False), machine=replace(MACHINE, bird=""))))


def test_the_ends_of_a_nodes_tunnels() -> None:
    text = """{apiVersion: projectcalico.org/v3, kind: Node, metadata: {name: b}, spec: {
      ipv4VXLANTunnelAddr: 10.1.7.1, ipv6VXLANTunnelAddr: 'fd00::7', bgp: {ipv4IPIPTunnelAddr: 10.1.7.2}}}"""
    (node,) = parse(text)
    assert isinstance(node, Node)
    assert [(kind, str(ip)) for kind, ip in tunnel_addresses(node)] == [
        ("VXLAN", "10.1.7.1"),
        ("VXLAN", "fd00::7"),
        ("IPIP", "10.1.7.2"),
    ]


def test_the_checksum_of_the_internet() -> None:
    """The example of RFC 1071, 3."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2
    assert checksum(b"\x01") == 0xFFFF - 0x0100


def test_what_cannot_be_looked_at_is_skipped(tmp_path: Path) -> None:
    """A program that does not answer, and a file that is no text."""
    (tmp_path / "latin1.conf").write_bytes(b"\xe9")
    skipped: list[str] = []
    assert _tried(lambda: subprocess.run(["sleep", "9"], timeout=0.05, check=True), "firewalls", skipped, ()) == ()
    assert _tried((tmp_path / "latin1.conf").read_text, "settings", skipped, None) is None
    assert [one.partition(":")[0] for one in skipped] == ["firewalls", "settings"]


def test_a_look_that_does_not_end_is_one_line() -> None:
    with pytest.raises(Unavailable, match=r"^the doctor took more than 0\.001 s"):
        _without_agent(0.001)
