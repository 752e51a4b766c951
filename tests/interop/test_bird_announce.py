"""`bgp.announce` against BIRD: what is predicted to be told is what the peers have, for generated configurations.

b  iBGP, tells of routes ──┐
c  eBGP, AS 65001        ──┼── br0 ── a: our bird.conf, routes of all kinds in its kernel
d  iBGP                  ──┘
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import pytest

from tortie.agent.node_view import refused_objects
from tortie.base.addr import parse_net
from tortie.base.errors import ConfigError
from tortie.bgp.announce import admitted, announce
from tortie.bgp.birdc import parse_protocols, parse_routes
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import TOP, AddCommunity, Filter, FilterRule, PrependPath, SetPriority
from tortie.bgp.sessions import Cluster, ExplicitPeer, Peer, Router, Scope, sessions
from tortie.bgp.table import candidate, communities
from tortie.kernel.bird import Bird
from tortie.render.announcing import announcing
from tortie.render.bird import BirdConfig, Pool, render

pytestmark = pytest.mark.root

CONFIGURATIONS = 12
PATIENCE = 30.0
A = IPv4Address("10.9.0.1")
PEERS = {"b": ("10.9.0.2", 64512), "c": ("10.9.0.3", 65001), "d": ("10.9.0.4", 64512)}
KERNEL = (
    "192.168.1.5 dev cali1 metric 1024",
    "192.168.1.6 dev cali1 metric 512",
    "192.168.2.9 dev cali1 metric 1024",
    "172.31.5.0/24 dev cali1",
    "10.77.1.1 dev cali1 metric 1024",
    "192.168.77.0/26 via 10.9.0.77 proto 80",
    "192.168.88.0/26 dev vxlan.calico proto 80",
    "10.96.5.0/24 dev cali1 metric 700",
    "default via 10.9.0.254",
)
LEARNED = {
    "192.168.3.0/26": "bgp_community.add((100, 1));",
    "192.168.2.9/32": "",
    "10.77.9.0/26": "",
    "203.0.113.0/24": "bgp_large_community.add((1, 2, 3));",
    "192.168.4.0/26": "bgp_community.add((65535, 65281));",
    "192.168.5.0/26": "bgp_community.add((65535, 65282));",
    "192.168.6.7/32": f"bgp_local_pref = {TOP - 512};",
}
"""What b tells, with what is done to it first."""
NETS = [
    *("192.168.0.0/16", "192.168.1.0/26", "192.168.2.0/24", "10.77.0.0/16", "172.31.0.0/16", "0.0.0.0/0"),
    *("203.0.113.0/24", "10.96.0.0/12", "192.168.1.6/32"),
]


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout


# --- generated ----------------------------------------------------------------------------------------------------


def rule(pick: random.Random) -> FilterRule:
    """A condition or two out of all that there are, of which some hold."""
    some: dict[str, object] = {}
    if pick.random() < 0.7:
        net = parse_net(pick.choice(NETS))
        inside = pick.random() < 0.8
        some |= {"net": net, "inside": inside, "negated": pick.random() < 0.3}
        if inside and pick.random() < 0.4:
            some["lengths"] = (least := pick.randint(net.prefixlen, 32), pick.randint(least, 32))
    for name, value in (
        ("learned", True),
        ("interface", pick.choice(["cali*", "eth0", "*.calico"])),
        ("same_as", pick.random() < 0.5),
        ("community", pick.choice([(100, 1), (1, 2, 3)])),
        ("priority", pick.choice([512, 1024])),
    ):
        if pick.random() < 0.15:
            some[name] = value
    operations = (AddCommunity((7, 7)), AddCommunity((7, 7, 7)), SetPriority(900), PrependPath((64999,)))
    accept = pick.random() < 0.5
    chosen = tuple(one for one in operations if accept and pick.random() < 0.3)
    return FilterRule(accept=accept, operations=chosen, **some)  # type: ignore[arg-type]


def generated(number: int) -> BirdConfig:
    pick = random.Random(number)

    def few(texts: list[str]) -> tuple[object, ...]:
        return tuple(ip_network(text) for text in texts if pick.random() < 0.6)

    filters = tuple(
        Filter(name=name, export4=tuple(rule(pick) for _ in range(pick.randint(1, 3)))) for name in ("one", "two")
    )
    explicit = [
        ExplicitPeer(
            scope=Scope.NODE,
            ip=IPv4Address(ip),
            remote_as=number_,
            passive=True,
            filters=tuple(one.name for one in filters if pick.random() < 0.4),
        )
        for ip, number_ in PEERS.values()
    ]
    me = Router(name="a", ipv4=A)
    pools = few(["192.168.0.0/16", "10.77.0.0/16", "172.31.0.0/16"])
    return BirdConfig(
        router_id=A,
        ipv4=A,
        blocks=few(["192.168.1.0/26", "10.77.1.0/26", "192.168.99.0/26"]),  # type: ignore[arg-type]
        pools=tuple(Pool(cidr=one, export_disabled=pick.random() < 0.3) for one in pools),  # type: ignore[arg-type]
        services=few(["10.96.0.0/12"]),  # type: ignore[arg-type]
        advertisements=(Advertisement(ip_network(pick.choice(NETS[:4])), ((100, 9), (1, 1, 9))),),
        filters=filters,
        peers=sessions(me, (), explicit, Cluster(mesh_enabled=False)),
        connect_delay=1,
        connect_retry=1,
    )


def plain(ip: str, asn: int, routes: Mapping[str, str]) -> str:
    """bird.conf of a peer that takes all and tells of its static routes."""
    told = "".join(f"    if net = {net} then {{ {what} accept; }}\n" for net, what in routes.items())
    static = "".join(f"  route {net} blackhole;\n" for net in routes)
    return f"""router id {ip};
log stderr all;
protocol device {{ scan time 1; }}
protocol static {{ ipv4; {static} }}
protocol bgp a {{
  local {ip} as {asn};
  neighbor {A} as 64512;
  multihop;
  connect delay time 1;
  connect retry time 1;
  ipv4 {{ import all; add paths on; export filter {{
{told}    reject; }}; }};
}}
"""


# --- the four machines --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Four:
    a: Bird
    peers: Mapping[str, Bird]


@contextmanager
def namespace(name: str) -> Iterator[str]:
    full = f"tt-{os.getpid()}-an-{name}"
    run("ip", "netns", "add", full)
    try:
        run("ip", "-n", full, "link", "set", "lo", "up")
        yield full
    finally:
        run("ip", "netns", "del", full)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Four]:
    with ExitStack() as stack:
        switch = stack.enter_context(namespace("sw"))
        run("ip", "-n", switch, "link", "add", "br0", "up", "type", "bridge")
        birds: dict[str, Bird] = {}
        for number, name in enumerate(("a", *PEERS), 1):
            ns, home = stack.enter_context(namespace(name)), tmp_path_factory.mktemp(name)
            port = f"port{number}"
            run("ip", "-n", ns, "link", "add", "eth0", "up", "type", "veth", "peer", "name", port, "netns", switch)
            run("ip", "-n", switch, "link", "set", port, "up", "master", "br0")
            run("ip", "-n", ns, "address", "add", f"10.9.0.{number}/24", "dev", "eth0")
            birds[name] = Bird(home / "bird.conf", home / "bird.ctl", ns, log=Path(home / "bird.log"))
        ours = birds["a"].netns or ""
        for link in ("cali1", "vxlan.calico"):
            run("ip", "-n", ours, "link", "add", link, "up", "type", "bridge")
        for route in KERNEL:
            run("ip", "-n", ours, "route", "add", *route.split())
        birds["a"].swap(render(generated(0)))
        for name, (ip, asn) in PEERS.items():
            birds[name].swap(plain(ip, asn, LEARNED if name == "b" else {}))
        for one in birds.values():
            stack.callback(one.stop)
            one.start(recover=False)
        four = Four(birds.pop("a"), birds)
        deadline = time.monotonic() + PATIENCE
        while sum(one.session is not None and one.session.established for one in protocols(four)) < len(PEERS):
            assert time.monotonic() < deadline, protocols(four)
            time.sleep(0.05)
        yield four


def protocols(four: Four) -> list[object]:
    return list(parse_protocols(four.a.ask("show protocols all")))


Told = dict[str, tuple[frozenset[tuple[int, ...]], ...]]
"""Prefix -> the communities of each route to it."""


def predicted(four: Four, config: BirdConfig, peer: Peer) -> Told:
    rows = [row for row in parse_routes(four.a.ask("show route all")) if row.table == "master4"]
    by, known = announcing(config, 4), {one.name: one for one in config.peers}
    decisions = (announce(candidate(row, known), peer, by) for row in rows)
    return collected((str(one.route.prefix), one.route.communities) for one in decisions if one.accepted)


def heard(four: Four, name: str) -> Told:
    rows = parse_routes(four.peers[name].ask("show route all protocol a"))
    return collected((str(row.prefix), communities(row)) for row in rows)


def collected(found: Iterator[tuple[str, frozenset[tuple[int, ...]]]]) -> Told:
    told: dict[str, list[frozenset[tuple[int, ...]]]] = {}
    for prefix, marks in found:
        told.setdefault(prefix, []).append(marks)
    return {prefix: tuple(sorted(marks, key=sorted)) for prefix, marks in told.items()}


@pytest.mark.parametrize("number", range(CONFIGURATIONS))
def test_what_is_predicted_is_what_peers_have(four: Four, number: int) -> None:
    config = generated(number)
    four.a.swap(render(config))
    for name, (ip, _) in PEERS.items():
        peer = next(one for one in config.peers if str(one.ip) == ip)
        deadline = time.monotonic() + PATIENCE
        while (want := predicted(four, config, peer)) != (have := heard(four, name)):
            assert time.monotonic() < deadline, json.dumps([name, repr(want), repr(have)], indent=1)
            time.sleep(0.1)


def test_the_generated_configurations_are_about_something(four: Four) -> None:
    """Over all of them every way to be told or not to be told is met."""
    steps: set[str] = set()
    rows = [row for row in parse_routes(four.a.ask("show route all")) if row.table == "master4"]
    for number in range(CONFIGURATIONS):
        config = generated(number)
        known = {one.name: one for one in config.peers}
        for peer in config.peers:
            for row in rows:
                decision = announce(candidate(row, known), peer, announcing(config, 4))
                steps.add(decision.step)
    wanted = ("BGPFilter one, export rule 0", "disableBGPExport", "vxlan.calico", "protocol 80", "a block of this node")
    wanted += ("inside the own block", "urgent", "services", "inside the pool", "no filter accepts it", "iBGP")
    wanted += ("no-advertise", "no-export", "it came from this peer")
    assert [one for one in wanted if not any(one in step for step in steps)] == []


def test_a_configuration_that_is_refused_names_the_session(four: Four) -> None:
    text = render(generated(0)).replace("neighbor 10.9.0.3 as 65001;", "neighbor 10.9.0.3 as 65001x;")
    with pytest.raises(ConfigError, match=r"syntax error.* of protocol bgp Node_10_9_0_3 from peer4$") as refused:
        four.a.swap(text)
    assert refused_objects([str(refused.value)], {"Node_10_9_0_3": ["BGPPeer c"]}) == {"BGPPeer c": str(refused.value)}


def test_a_peer_that_reflects_is_told_what_another_told(four: Four) -> None:
    config = generated(1)
    by = announcing(config, 4)
    known = {one.name: one for one in config.peers}
    rows = [row for row in parse_routes(four.a.ask("show route all")) if row.protocol == "Node_10_9_0_2"]
    d = replace(known["Node_10_9_0_4"], filters=())
    row = next(row for row in rows if str(row.prefix) == "203.0.113.0/24")
    assert announce(candidate(row, known), d, by).step.startswith("iBGP")
    client = replace(d, rr_client=True, cluster_id="1.0.0.1")
    assert announce(candidate(row, known), client, by).step == "inside no pool, and no filter accepts it"


def test_what_an_import_filter_rejects_is_kept_and_explained(four: Four) -> None:
    """And the session stays up when it gets its first filter."""
    config = generated(2)
    plain = replace(config, peers=tuple(replace(one, filters=()) for one in config.peers))
    four.a.swap(render(plain))
    rules = (
        FilterRule(accept=True, net=parse_net("192.168.3.0/26"), inside=False),
        FilterRule(accept=False, community=(1, 2, 3)),
        FilterRule(accept=False, net=parse_net("192.168.0.0/16"), lengths=(26, 26)),
    )
    own = Filter(name="own", import4=rules)
    peers = tuple(replace(one, filters=("own",) if one.name == "Node_10_9_0_2" else ()) for one in config.peers)
    before = since(four)
    four.a.swap(render(replace(config, filters=(own,), peers=peers)))
    known = {one.name: one for one in peers}
    want = {"203.0.113.0/24": "1", "192.168.4.0/26": "2", "192.168.5.0/26": "2"}

    def rejected() -> dict[str, str]:
        rows = parse_routes(four.a.ask("show route all filtered"))
        decided = {str(row.prefix): admitted(candidate(row, known), known[row.protocol], {"own": own}) for row in rows}
        assert not any(accepted for accepted, _ in decided.values())
        return {prefix: why.removeprefix("BGPFilter own, import rule ") for prefix, (_, why) in decided.items()}

    deadline = time.monotonic() + PATIENCE
    while rejected() != want:
        assert time.monotonic() < deadline, rejected()
        time.sleep(0.1)
    assert since(four) == before
    taken = [row for row in parse_routes(four.a.ask("show route all")) if row.protocol == "Node_10_9_0_2"]
    assert all(admitted(candidate(row, known), known[row.protocol], {"own": own})[0] for row in taken)


def since(four: Four) -> dict[str, str]:
    """To the second, for BIRD works it out anew each time."""
    rows = parse_protocols(four.a.ask("show protocols all"))
    return {one.name: one.since.partition(".")[0] for one in rows if one.session is not None}
