"""Services on real packets: who gets which backend, and whom that one sees."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from service_ground import (
    BALANCED,
    CLUSTER_IP,
    NODE,
    OUTSIDE,
    REFUSED,
    SCTP,
    TCP,
    UDP,
    Ground,
    Said,
    backends,
    built_ground,
    entrance,
    frontend,
    pod,
    served,
    state_of,
)

from tortie.base.addr import parse_net
from tortie.calc.proxy.state import ProxyState
from tortie.dataplane.service_hits import hits
from tortie.dataplane.stages.services import Services
from tortie.render.proxy.chains import TABLE

pytestmark = pytest.mark.root

BOTH = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
KINDS = pytest.mark.parametrize("protocol", [TCP, UDP], ids=["TCP", "UDP"])
HERE, THERE = {"one", "two"}, {"two"}


@pytest.fixture(scope="module")
def built() -> Iterator[Ground]:
    with built_ground() as ground:
        yield ground


@pytest.fixture
def ground(built: Ground) -> Iterator[Ground]:
    yield built
    built.apply(None)


# --- who gets what ------------------------------------------------------------------------------------------------


@BOTH
@KINDS
def test_cluster_ip(ground: Ground, version: int, protocol: int) -> None:
    ip = CLUSTER_IP[version]
    where = frontend(version, ip, 80, protocol)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(version, "one", "two")))))
    assert ground.many("client", ip, 80, protocol) == {name: {pod("client", version)} for name in HERE}
    ours = ground.many("outside", ip, 80, protocol)
    assert ours.keys() == HERE
    assert OUTSIDE[version] not in ours["one"] | ours["two"], "masqueraded"
    assert ground.many("node", ip, 80, protocol).keys() == HERE


@BOTH
@KINDS
def test_node_port(ground: Ground, version: int, protocol: int) -> None:
    where = frontend(version, None, 30080, protocol)
    ground.apply(state_of(served("web", entrance("NodePort", where, backends(version, "one", "two")))))
    seen = ground.many("outside", NODE[version], 30080, protocol)
    assert seen.keys() == HERE
    assert OUTSIDE[version] not in seen["one"] | seen["two"], "masqueraded"
    assert ground.many("node", NODE[version], 30080, protocol).keys() == HERE
    assert ground.many("client", NODE[version], 30080, protocol).keys() == HERE
    loopback = "127.0.0.1" if version == 4 else "::1"
    assert ground.ask("node", loopback, 30080, protocol) == Said(REFUSED), "not at loopback"


@BOTH
def test_node_port_only_at_some_addresses(ground: Ground, version: int) -> None:
    web = served("web", entrance("NodePort", frontend(version, None, 30080), backends(version, "one")))
    ground.apply(state_of(web, node_ports=(parse_net("192.0.2.0/24"), parse_net("2001:db8:2::/64"))))
    assert ground.ask("outside", NODE[version], 30080) == Said(REFUSED)
    ground.apply(state_of(web, node_ports=(parse_net("198.51.100.0/24"), parse_net("2001:db8:51::/64"))))
    assert ground.ask("outside", NODE[version], 30080).name == "one"


@BOTH
@KINDS
def test_local_policy_keeps_the_client_and_drops_without_backends(ground: Ground, version: int, protocol: int) -> None:
    every, here = backends(version, "one", "two"), backends(version, "two")

    def state(local: bool) -> None:
        more = {"local": here if local else (), "unserved": "drop"}
        ground.apply(
            state_of(
                served(
                    "web",
                    entrance("NodePort", frontend(version, None, 30080, protocol), every, **more),
                    entrance("LoadBalancer", frontend(version, BALANCED[version], 80, protocol), every, **more),
                )
            )
        )

    for to, port in ((NODE[version], 30080), (BALANCED[version], 80)):
        state(local=True)
        assert ground.many("outside", to, port, protocol) == {"two": {OUTSIDE[version]}}
        assert ground.many("client", to, port, protocol).keys() == HERE
        assert ground.many("node", to, port, protocol).keys() == HERE
        state(local=False)
        assert ground.dropped("outside", to, port, protocol)
        assert ground.many("client", to, port, protocol).keys() == HERE
        assert ground.many("node", to, port, protocol).keys() == HERE


@BOTH
def test_pod_at_a_load_balancer_is_seen_as_itself(ground: Ground, version: int) -> None:
    where = frontend(version, BALANCED[version], 80)
    ground.apply(state_of(served("web", entrance("LoadBalancer", where, backends(version, "one")))))
    assert ground.ask("client", BALANCED[version], 80) == Said("one", pod("client", version))
    assert ground.ask("outside", BALANCED[version], 80).saw != OUTSIDE[version]


@BOTH
def test_masquerade_all(ground: Ground, version: int) -> None:
    web = served("web", entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80), backends(version, "one")))
    ground.apply(state_of(web))
    assert ground.ask("client", CLUSTER_IP[version], 80).saw == pod("client", version)
    ground.apply(state_of(web, masquerade_all=True))
    assert ground.ask("client", CLUSTER_IP[version], 80).saw != pod("client", version)
    ground.apply(state_of(web))
    assert ground.ask("client", CLUSTER_IP[version], 80).saw == pod("client", version)


@BOTH
def test_pods_become_known(ground: Ground, version: int) -> None:
    web = served("web", entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80), backends(version, "one")))
    ground.apply(replace(state_of(web), pods=()))
    assert ground.ask("client", CLUSTER_IP[version], 80).saw != pod("client", version)
    ground.apply(state_of(web))
    assert ground.ask("client", CLUSTER_IP[version], 80).saw == pod("client", version)


@BOTH
@KINDS
def test_hairpin(ground: Ground, version: int, protocol: int) -> None:
    where = frontend(version, CLUSTER_IP[version], 80, protocol)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(version, "one")))))
    said = ground.ask("one", CLUSTER_IP[version], 80, protocol)
    assert said.name == "one"
    assert said.saw != pod("one", version)


@BOTH
def test_source_ranges(ground: Ground, version: int) -> None:
    where = frontend(version, BALANCED[version], 80)

    def state(*nets: str) -> None:
        sources = tuple(map(parse_net, nets))
        more = {"sources": sources} if nets else {}
        ground.apply(state_of(served("web", entrance("LoadBalancer", where, backends(version, "one"), **more))))

    for nets, good in (
        (("192.0.2.0/24", "2001:db8:2::/64"), False),
        (("198.51.100.0/24", "2001:db8:51::/64"), True),
        (("0.0.0.0/0", "::/0"), True),
        (("192.0.2.0/24" if version == 6 else "2001:db8:2::/64",), False),
        ((), True),
    ):
        state(*nets)
        if good:
            assert ground.ask("outside", BALANCED[version], 80).name == "one"
        else:
            assert ground.dropped("outside", BALANCED[version], 80)


# --- nobody there -------------------------------------------------------------------------------------------------


@BOTH
@KINDS
@pytest.mark.parametrize("place", ["client", "node", "outside"])
def test_without_backends_it_is_refused_at_once(ground: Ground, version: int, protocol: int, place: str) -> None:
    ground.apply(
        state_of(
            served(
                "web",
                entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80, protocol), ()),
                entrance("NodePort", frontend(version, None, 30080, protocol), ()),
                entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 81, protocol), (), unserved="drop"),
            )
        )
    )
    assert ground.ask(place, CLUSTER_IP[version], 80, protocol) == Said(REFUSED)
    assert ground.ask(place, NODE[version], 30080, protocol) == Said(REFUSED)
    assert ground.ask(place, CLUSTER_IP[version], 99, protocol) == Said(REFUSED), "a port of no entrance"
    assert ground.dropped(place, CLUSTER_IP[version], 81, protocol)


# --- affinity -----------------------------------------------------------------------------------------------------


def affine(version: int, names: set[str], seconds: int, **more: object) -> ProxyState:
    answers = backends(version, *sorted(names))
    return state_of(
        served(
            "web",
            entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 80), answers, affinity=seconds),
            entrance("ClusterIP", frontend(version, CLUSTER_IP[version], 53, UDP), answers, affinity=seconds),
            entrance("NodePort", frontend(version, None, 30080), answers, affinity=seconds, **more),
        )
    )


@BOTH
def test_affinity(ground: Ground, version: int) -> None:
    """The same backend again, at each frontend; another once it has gone, and that one again."""
    ground.apply(affine(version, HERE, 300))
    places = (("client", CLUSTER_IP, 80, TCP), ("client", CLUSTER_IP, 53, UDP), ("outside", NODE, 30080, TCP))
    for place, to, port, protocol in places:
        (name,) = ground.many(place, to[version], port, protocol)
        ground.apply(affine(version, HERE - {name}, 300))
        (other,) = ground.many(place, to[version], port, protocol)
        assert other != name
        ground.apply(affine(version, HERE, 300))
        assert ground.many(place, to[version], port, protocol).keys() == {other}
    ground.stage = Services(ground.spaces["node"].path)
    ground.apply(affine(version, HERE, 300))
    assert ground.many("outside", NODE[version], 30080).keys() == {other}, "remembered through a restart"


@BOTH
def test_affinity_is_over(ground: Ground, version: int) -> None:
    ground.apply(affine(version, HERE, 1))
    name = f"clients{version}"
    assert len(ground.many("client", CLUSTER_IP[version], 80, times=10)) == 1
    listed = json.loads(ground.spaces["node"].run("nft", "-j", "list", "map", *TABLE.split(), name))
    (element,) = next(one["map"]["elem"] for one in listed["nftables"] if "map" in one)
    assert element[0]["elem"]["timeout"] == 1
    found: set[str] = set()
    deadline = time.monotonic() + 30
    while found != HERE and time.monotonic() < deadline:
        time.sleep(1.1)
        found |= ground.many("client", CLUSTER_IP[version], 80, times=1).keys()
    assert found == HERE


@BOTH
def test_affinity_with_local_policy(ground: Ground, version: int) -> None:
    """Who was given a backend elsewhere gets one of here when the policy becomes Local."""
    for _ in range(3):
        ground.apply(affine(version, HERE, 300))
        (name,) = ground.many("outside", NODE[version], 30080, times=5)
        (other,) = HERE - {name}
        ground.apply(affine(version, HERE, 300, local=backends(version, other)))
        assert ground.many("outside", NODE[version], 30080, times=10) == {other: {OUTSIDE[version]}}


@BOTH
def test_priority_is_none_again(ground: Ground, version: int) -> None:
    """What affinity wrote into it is not seen by whoever looks at priorities afterwards."""
    node = ground.spaces["node"]
    ground.apply(affine(version, HERE, 300))
    rules = "".join(
        f"add rule inet seen {hook} tcp dport 8080 ct state new counter\n"
        f"add rule inet seen {hook} tcp dport 8080 ct state new meta priority != none counter\n"
        for hook in ("forward", "output", "prerouting")
    )
    chains = "".join(
        f"add chain inet seen {hook} {{ type filter hook {hook} priority 0; }}\n"
        for hook in ("forward", "output", "prerouting")
    )
    node.run("nft", "-f", "-", stdin=f"add table inet seen\n{chains}{rules}")
    try:
        for place in ("client", "node"):
            ground.many(place, CLUSTER_IP[version], 80, times=5)
        listed = json.loads(node.run("nft", "-j", "list", "table", "inet", "seen"))["nftables"]
        for hook in ("prerouting", "output"):
            counts = [
                next(word["counter"]["packets"] for word in one["rule"]["expr"] if "counter" in word)
                for one in listed
                if one.get("rule", {}).get("chain") == hook
            ]
            assert counts[0] >= 5
            assert counts[1] == 0
    finally:
        node.run("nft", "delete", "table", "inet", "seen")


# --- the rest -----------------------------------------------------------------------------------------------------


@BOTH
def test_mark_keeps_its_other_bits(ground: Ground, version: int) -> None:
    node = ground.spaces["node"]
    where = frontend(version, None, 30080)
    ground.apply(state_of(served("web", entrance("NodePort", where, backends(version, "one")))))
    node.run(
        "nft",
        "-f",
        "-",
        stdin="add table inet seen\n"
        "add chain inet seen before { type filter hook prerouting priority -150; }\n"
        "add chain inet seen midway { type filter hook forward priority 0; }\n"
        "add chain inet seen after { type filter hook postrouting priority 150; }\n"
        "add rule inet seen before tcp dport 30080 meta mark set 0x00ab0012\n"
        "add rule inet seen midway ct state new meta mark 0x00ab4012 counter\n"
        "add rule inet seen after tcp dport 8080 ct state new meta mark 0x00ab0012 counter\n",
    )
    try:
        assert ground.ask("outside", NODE[version], 30080).name == "one"
        listed = json.loads(node.run("nft", "-j", "list", "table", "inet", "seen"))["nftables"]
        counts = {
            one["rule"]["chain"]: word["counter"]["packets"]
            for one in listed
            if "rule" in one
            for word in one["rule"]["expr"]
            if "counter" in word
        }
        assert counts == {"midway": 1, "after": 1}
    finally:
        node.run("nft", "delete", "table", "inet", "seen")


@BOTH
def test_policy_before_translation_sees_the_service_and_behind_it_the_pod(ground: Ground, version: int) -> None:
    node, family = ground.spaces["node"], "ip" if version == 4 else "ip6"
    where = frontend(version, CLUSTER_IP[version], 80)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(version, "one")))))
    node.run(
        "nft",
        "-f",
        "-",
        stdin="add table inet seen\n"
        "add chain inet seen before { type filter hook prerouting priority -150; }\n"
        "add chain inet seen behind { type filter hook forward priority 0; }\n"
        f"add rule inet seen before {family} daddr {CLUSTER_IP[version]} tcp dport 80 ct state new counter\n"
        f"add rule inet seen behind {family} daddr {pod('one', version)} tcp dport 8080 ct state new counter\n",
    )
    try:
        assert ground.ask("client", CLUSTER_IP[version], 80).name == "one"
        listed = json.loads(node.run("nft", "-j", "list", "table", "inet", "seen"))["nftables"]
        counts = [
            word["counter"]["packets"]
            for one in listed
            if "rule" in one
            for word in one["rule"]["expr"]
            if "counter" in word
        ]
        assert counts == [1, 1]
    finally:
        node.run("nft", "delete", "table", "inet", "seen")


@BOTH
def test_hits(ground: Ground, version: int) -> None:
    ground.apply(affine(version, HERE, 300))
    (name,) = ground.many("client", CLUSTER_IP[version], 80, times=7)
    where = frontend(version, CLUSTER_IP[version], 80)
    found = {(one.frontend, one.backend, one.local): one for one in hits(ground.spaces["node"].path)}
    (backend,) = backends(version, name)
    assert found[where, backend, False].connections == 7
    assert found[where, backend, False].octets > 0
    assert sum(one.connections for one in found.values()) == 7
    assert {one.frontend.ip for one in found.values()} == {where.ip, None}
    ground.apply(None)
    assert hits(ground.spaces["node"].path) == []


@BOTH
def test_sctp(ground: Ground, version: int) -> None:
    try:
        for name in ("one", "two"):
            ground.answers.listen(name, ground.spaces[name], version, SCTP)
    except OSError as why:
        pytest.skip(f"this kernel has no SCTP: {why}")
    where = frontend(version, CLUSTER_IP[version], 80, SCTP)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(version, "one", "two")))))
    assert ground.many("client", CLUSTER_IP[version], 80, SCTP).keys() == HERE


def test_sctp_is_in_the_maps(ground: Ground) -> None:
    """Also where this machine's kernel has no sockets of it."""
    where = frontend(4, CLUSTER_IP[4], 80, SCTP)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(4, "one")))))
    (one,) = hits(ground.spaces["node"].path)
    assert (one.frontend, one.backend) == (where, backends(4, "one")[0])


def test_none_takes_the_table_away(ground: Ground) -> None:
    node = ground.spaces["node"]
    where = frontend(4, CLUSTER_IP[4], 80)
    ground.apply(state_of(served("web", entrance("ClusterIP", where, backends(4, "one")))))
    assert TABLE in node.run("nft", "list", "tables")
    ground.apply(None)
    assert TABLE not in node.run("nft", "list", "tables")
    assert not ground.stage.plan(None)
    with ground.open("client", 4) as one:
        one.settimeout(0.3)
        with pytest.raises(OSError):
            one.connect((CLUSTER_IP[4], 80))
