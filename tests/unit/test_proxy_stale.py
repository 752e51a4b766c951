"""Which flows of connection tracking go on, and which are deleted so that the client gets another backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from proxy_world import HERE, THERE, endpoint, inputs, put, service, slice_, state_of

from tortie.base.addr import parse_ip, parse_net
from tortie.base.flow import TCP, UDP, Flow, Way
from tortie.calc.proxy.stale import destinations, judge, touched
from tortie.calc.proxy.state import ProxyState

OWN = frozenset(map(parse_ip, ("192.0.2.10", "2001:db8::10", "127.0.0.1")))
CLIENT = {4: parse_ip("10.244.1.9"), 6: parse_ip("fd00::9")}


def flow(asked: str, answered: str, protocol: int = UDP) -> Flow:
    """From a client to `asked`, `ADDRESS PORT`; replies come from `answered`."""
    (ip, port), (reply, reply_port) = asked.split(), answered.split()
    client = CLIENT[parse_ip(ip).version]
    opened = Way(client, parse_ip(ip), protocol, 4000, int(port))
    return Flow(opened, Way(parse_ip(reply), client, protocol, int(reply_port), 4000))


def dns(*slices: Any, **spec: Any) -> ProxyState:
    ports = [{"name": "p", "port": 53, "protocol": "UDP", "nodePort": 30053}]
    both = {"clusterIPs": ["10.96.0.10", "fd96::10"], "ip": "10.96.0.10"}
    return state_of(service("dns", ports=ports, type="NodePort", **both, **spec), *slices)


def at(*ips: str | dict[str, Any], family: str = "IPv4") -> Any:
    return slice_(*ips, of="dns", protocol="UDP", port=5353, family=family)


FULL = at("10.0.0.1", "10.0.0.2"), at("fd00::1", family="IPv6")

FLOWS = [
    ("to a backend", FULL, "10.96.0.10 53", "10.0.0.2 5353", False),
    ("to one that went", FULL, "10.96.0.10 53", "10.0.0.3 5353", True),
    ("to another port of a backend", FULL, "10.96.0.10 53", "10.0.0.2 53", True),
    ("to one of an empty service", (), "10.96.0.10 53", "10.0.0.3 5353", True),
    ("not translated, and there are backends", FULL, "10.96.0.10 53", "10.96.0.10 53", True),
    ("not translated, and there is nobody", (), "10.96.0.10 53", "10.96.0.10 53", False),
    ("another port of the address", FULL, "10.96.0.10 54", "10.96.0.10 54", False),
    ("another address", FULL, "10.96.0.11 53", "10.0.0.3 5353", False),
    ("IPv6, to a backend", FULL, "fd96::10 53", "fd00::1 5353", False),
    ("IPv6, to one that went", FULL, "fd96::10 53", "fd00::2 5353", True),
    ("NodePort, to a backend", FULL, "192.0.2.10 30053", "10.0.0.1 5353", False),
    ("NodePort, to one that went", FULL, "192.0.2.10 30053", "10.0.0.3 5353", True),
    ("NodePort, IPv6", FULL, "2001:db8::10 30053", "fd00::2 5353", True),
    ("NodePort, not translated", FULL, "192.0.2.10 30053", "192.0.2.10 30053", True),
    ("the port of another machine", FULL, "192.0.2.11 30053", "10.0.0.3 5353", False),
    ("the port at loopback", FULL, "127.0.0.1 30053", "127.0.0.1 30053", False),
]  # fmt: skip


@pytest.mark.parametrize(("what", "slices", "asked", "answered", "gone"), FLOWS, ids=[row[0] for row in FLOWS])
def test_flows(what: str, slices: tuple[Any, ...], asked: str, answered: str, gone: bool) -> None:
    one = flow(asked, answered)
    assert judge(dns(*slices), OWN)(one) is gone


WEB = service("web", port=80, ip="10.96.0.10")
EARLY = flow("10.96.0.10 80", "10.96.0.10 80", TCP)


def test_of_tcp_one_that_began_too_early_goes() -> None:
    state = state_of(WEB, slice_("10.0.0.1"))
    assert judge(state, OWN)(EARLY)
    assert not judge(state, OWN)(replace(EARLY, answered=True)), "somebody answers there"
    assert not judge(state, OWN)(flow("10.96.0.10 80", "10.0.0.3 8080", TCP)), "it ends by itself"
    assert not judge(state, OWN)(flow("10.96.0.10 80", "10.0.0.3 8080")), "UDP, where the service has none"
    assert not judge(state_of(WEB), OWN)(EARLY), "there is nobody to get"


def test_all_addresses_that_flows_are_opened_to() -> None:
    assert destinations(state_of(WEB), OWN) == {parse_ip("10.96.0.10")}
    assert destinations(dns(*FULL), OWN) == {parse_ip("10.96.0.10"), parse_ip("fd96::10"), *OWN}


def test_a_policy_cuts_no_flow() -> None:
    """Who got a backend of another node before goes on, though he would not get it today."""
    told = at(endpoint("10.0.0.1", HERE), endpoint("10.0.0.2", THERE))
    state = dns(told, externalTrafficPolicy="Local")
    assert not judge(state, OWN)(flow("192.0.2.10 30053", "10.0.0.2 5353"))


def test_node_ports_only_where_they_are_answered() -> None:
    ports = [{"name": "p", "port": 53, "protocol": "UDP", "nodePort": 30053}]
    one = service("dns", ports=ports, type="NodePort")
    for nets, gone in (("192.0.2.0/24", True), ("198.51.100.0/24", False)):
        state = state_of(one, at("10.0.0.1"), node_ports=(parse_net(nets),))
        assert judge(state, OWN)(flow("192.0.2.10 30053", "10.0.0.3 5353")) is gone


# --- what a change touches ------------------------------------------------------------------------------------------


def steps(*changes: Any, first: tuple[Any, ...]) -> set[str]:
    one = inputs(*first)
    old = one.state()
    put(one, *changes)
    return set(map(str, touched(old, one.state())))


UDP_ONE = service("dns", "10.96.0.10", port=53, protocol="UDP", type="NodePort", node_port=30053)
NEW = service("web", "10.96.0.11", port=53, protocol="UDP")


def test_a_backend_that_goes_touches_its_frontends_and_itself() -> None:
    found = steps(at("10.0.0.1"), first=(UDP_ONE, at("10.0.0.1", "10.0.0.2")))
    assert found == {"10.96.0.10", "0.0.0.0", "10.0.0.2"}


def test_the_first_backend_touches_the_frontends() -> None:
    assert steps(at("10.0.0.1"), first=(UDP_ONE,)) == {"10.96.0.10", "0.0.0.0"}
    assert steps(NEW, first=(slice_("10.0.0.1", protocol="UDP"),)) == {"10.96.0.11"}
    assert steps(slice_("10.0.0.1"), first=(service("web", "10.96.0.12"),)) == {"10.96.0.12"}


def test_what_touches_nothing() -> None:
    assert steps(at("10.0.0.1", "10.0.0.2"), first=(UDP_ONE, at("10.0.0.1"))) == set()
    assert steps(NEW, first=(UDP_ONE, at("10.0.0.1"))) == set()
    assert steps(slice_("10.0.0.1"), first=(service(), slice_("10.0.0.2"))) == set()
    assert steps(slice_(), first=(service(), slice_("10.0.0.2"))) == set()
    assert steps(first=(UDP_ONE, at("10.0.0.1"))) == set()


def test_ipv6_has_its_own_sign_for_the_addresses_of_the_node() -> None:
    six = service("dns", "fd96::10", port=53, protocol="UDP", type="NodePort", node_port=30053)
    found = steps(at("fd00::1", family="IPv6"), first=(six, at("fd00::2", family="IPv6")))
    assert found == {"fd96::10", "::", "fd00::2"}


def test_every_flow_that_a_change_makes_stale_is_touched() -> None:
    old, new = dns(*FULL), dns(at("10.0.0.1"))
    seen = touched(old, new)
    own = frozenset(ip for ip in seen if ip.is_unspecified)
    assert own == {parse_ip("0.0.0.0"), parse_ip("::")}
    for asked in ("10.96.0.10 53", "192.0.2.10 30053"):
        one = flow(asked, "10.0.0.2 5353")
        assert judge(new, OWN)(one)
        assert {one.opened.destination, one.reply.source} & seen
