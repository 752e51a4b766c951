"""`tortie doctor` on two nodes with agents and a router between them, in which one thing after the other is broken.

one eth0 10.7.1.1 ── 10.7.1.254 router 10.7.2.254 ── 10.7.2.1 eth0 two
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from agent_node import Node, Site, pool, site_in, until
from msgspec.structs import replace

from namespaces import Ns

pytestmark = pytest.mark.root


def link(ns: Ns, router: Ns, number: int) -> None:
    ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", router.name)
    ns.ip("link", "set", "eth0", "up")
    router.ip("link", "set", f"port{number}", "up")
    ns.ip("address", "add", f"10.7.{number}.1/24", "dev", "eth0")
    router.ip("address", "add", f"10.7.{number}.254/24", "dev", f"port{number}")
    ns.ip("route", "add", "default", "via", f"10.7.{number}.254")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_in(tmp_path_factory.mktemp("site")) as site:
        site.set_up()
        names = ("one", "two")
        for number, name in enumerate(names, 1):
            site.node(name, "--health-port", "0", "--metrics-port", "0", ipv4=f"10.7.{number}.1/24")
        router = site.node("router").ns
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        for number, node in enumerate(site.nodes[:2], 1):
            link(node.ns, router, number)
            node.start()
        one = site.nodes[0]
        until(lambda: json.loads(one.ask("/node")[1])["peers"], lambda seen: seen and seen[0]["state"] == "Established")
        yield site


@pytest.fixture
def one(site: Site) -> Node:
    return site.nodes[0]


@pytest.fixture
def router(site: Site) -> Ns:
    return site.nodes[2].ns


def findings(node: Node) -> list[dict[str, Any]]:
    status, body = node.ask("/doctor")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["findings"]
    return found


def said(found: list[dict[str, Any]], level: str) -> list[str]:
    return [f"{one['check']}: {one['where']}: {one['what']}" for one in found if one["level"] == level]


@contextmanager
def broken(ns: Ns, how: str, back: str) -> Iterator[None]:
    """Shell commands that break something and mend it again."""
    ns.run("sh", "-c", how)
    try:
        yield
    finally:
        ns.run("sh", "-c", back)


def test_two_nodes_that_are_well(one: Node) -> None:
    """And they stay so: whoever dials an established session brings it down."""

    def session() -> tuple[str, str]:
        (peer,) = json.loads(one.ask("/node")[1])["peers"]
        return peer["state"], peer["since"].partition(".")[0]

    before = session()
    found = findings(one)
    assert session() == before
    assert said(found, "bad") == []
    assert "way: two 10.7.2.1: answers, BGP established, packets up to 1500 bytes" in said(found, "ok")
    assert "address: : 10.7.1.1 on eth0" in said(found, "ok")
    assert any(text.startswith("datastore: : in sync with") for text in said(found, "ok"))


def test_a_narrow_place_on_the_way(one: Node, router: Ns) -> None:
    """Nobody tells: the router's answers, that the packet was too big, get lost."""
    quiet = "nft 'add table ip q; add chain ip q o { type filter hook output priority 0; }; "
    quiet += "add rule ip q o icmp type destination-unreachable drop'"
    narrow = f"{quiet}; ip link set port2 mtu 1400"
    with broken(router, narrow, "nft delete table ip q; ip link set port2 mtu 1500"):
        (text,) = [text for text in said(findings(one), "warn") if text.startswith("MTU")]
    assert text == "MTU: two 10.7.2.1: packets of more than 1400 bytes get lost on the way; the link carries 1500"


def test_the_switch_that_is_off(one: Node) -> None:
    with broken(one.ns, "sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"):
        (text,) = said(findings(one), "bad")
    assert text == "forwarding: net.ipv4.ip_forward: IPv4 is not forwarded: pods reach nobody outside their node"


def test_rules_and_marks_of_others(one: Node) -> None:
    """The rules are said as ip prints them; one for marked packets alone takes nobody's."""
    how = "ip rule add priority 90 from 10.7.1.1 lookup 100; ip rule add priority 92 fwmark 1/0xff lookup 102; "
    how += "ip -6 rule add priority 91 not fwmark 0x10000/0xff0000 lookup 101; nft 'add table ip m; add chain ip m c "
    how += "{ type filter hook prerouting priority -150; }; add rule ip m c meta mark set meta mark or 0x10000'"
    back = "ip rule del priority 90; ip rule del priority 92; ip -6 rule del priority 91; nft delete table ip m"
    with broken(one.ns, how, back):
        printed = [one.ns.run("ip", *family, "rule", "show") for family in ([], ["-6"])]
        four, six = (printed[i].replace("\t", " ").splitlines()[1].rstrip() for i in (0, 1))
        warned = [text for text in said(findings(one), "warn") if text.startswith(("ip rule", "marks"))]
    assert sorted(warned) == [
        f"ip rule: ip -6 rule: {six}: may take pods' or nodes' packets past the main table, where their routes are",
        f"ip rule: ip rule: {four}: may take pods' or nodes' packets past the main table, where their routes are",
        f"marks: ip -6 rule: {six}: asks for bits 0x001b0000 of the mark, which policy changes",
        "marks: nft list table ip m: sets bits 0x00010000 of the mark, by which policy knows what it has decided",
    ]
    ok = [text.partition(":")[0] for text in said(findings(one), "ok")]
    assert {"ip rule", "marks"} <= set(ok)


def test_somebody_else_has_the_address(one: Node, router: Ns) -> None:
    """The router answers for it: the kernel asks nobody before it takes an IPv4 address."""
    with broken(router, "ip address add 10.7.1.1/32 dev port1", "ip address del 10.7.1.1/32 dev port1"):
        bad = said(findings(one), "bad")
    mac = router.json("link", "show", "port1")[0]["address"]
    assert f"duplicate: : 10.7.1.1 is also the address of {mac} on the link" in bad


def test_a_firewall_that_drops_what_is_forwarded(one: Node) -> None:
    chain = "add chain inet wall f { type filter hook forward priority 0; policy drop; }"
    with broken(one.ns, f"nft 'add table inet wall; {chain}'", "nft delete table inet wall"):
        (bad,) = said(findings(one), "bad")
        assert bad == "firewall: nft list chain inet wall f: drops whatever is forwarded: it accepts nothing"
        one.ns.run("nft", "add rule inet wall f ip saddr 192.0.2.0/24 accept")
        (text,) = [text for text in said(findings(one), "warn") if text.startswith("firewall")]
        assert text == "firewall: nft list chain inet wall f: drops what is forwarded and not accepted there"


def test_a_tunnel_of_somebody_else(one: Node) -> None:
    vxlan = "ip link add vx0 type vxlan id 4096 dstport 4789 local 10.7.1.1 nolearning"
    with broken(one.ns, vxlan, "ip link del vx0"):
        found = findings(one)
    assert "tunnel: vx0: is a VXLAN tunnel on our port 4789 with our VNI 4096" in said(found, "bad")


def test_the_way_that_is_cut(one: Node, router: Ns) -> None:
    wall = "nft 'add table ip w; add chain ip w f { type filter hook forward priority 0; }; add rule ip w f "
    with broken(router, f"{wall}tcp dport 179 drop'", "nft delete table ip w"):
        one.ns.run("birdc", "-s", str(one.run_dir / "bird.ctl"), "restart", "all")
        assert "BGP: two 10.7.2.1: does not answer TCP 179" in said(findings(one), "bad")
    with broken(router, f"{wall}icmp type echo-request drop'", "nft delete table ip w"):
        cut = "way: two 10.7.2.1: does not answer ping, "  # the session may be up again by now, or not
        assert any(text.startswith(cut) for text in said(findings(one), "warn"))
    with broken(router, "ip link set port2 down", "ip link set port2 up"):
        assert any(text.startswith("way: two 10.7.2.1: does not answer") for text in said(findings(one), "bad"))


def test_a_tunnel_that_is_cut(site: Site, one: Node, router: Ns) -> None:
    """The node at its other end answers all the same."""
    plain = pool("tunnelled", "10.66.0.0/16")
    site.write(replace(plain, spec=replace(plain.spec, vxlan_mode="Always")))
    tunnels = until(lambda: ways(one, "through VXLAN"), bool, "a tunnel")
    assert all(text.startswith("way: two 10.66.") for text in tunnels)
    wall = "nft 'add table ip w; add chain ip w f { type filter hook forward priority 0; }; add rule ip w f "
    with broken(router, f"{wall}udp dport 4789 drop'", "nft delete table ip w"):
        (bad,) = said(findings(one), "bad")
    assert bad.endswith("does not answer through VXLAN")


def ways(node: Node, text: str) -> list[str]:
    return [found for found in said(findings(node), "ok") if found.startswith("way") and text in found]


def test_without_an_agent_the_machine_is_looked_at_all_the_same(one: Node) -> None:
    command = ["ip", "netns", "exec", one.ns.name, sys.executable, "-m", "tortie.agent.doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    found = json.loads(done.stdout)["findings"]
    assert any(text.startswith("kernel: : has nft") for text in said(found, "ok"))
    assert any("no agent runs here" in text for text in said(found, "skipped"))
