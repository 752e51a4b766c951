"""Networks of stand-alone plugins on values: what configurations publish, who has which addresses, what is routed."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tortie.agent.pod_network_files import Found, read, signature, since
from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.cluster import Cluster
from tortie.calc.doctor import Cluster as SeenCluster
from tortie.calc.doctor import Machine, Seen, judge
from tortie.calc.node_addresses import Link, ip_interface
from tortie.calc.state import PodNetworks, PodRoute
from tortie.dataplane.route_steps import plan
from tortie.dataplane.stages.pod_networks import Ground, Leg, select
from tortie.kernel.routes import Route
from tortie.model.document import convert
from tortie.model.node import Node
from tortie.model.pod_networks import (
    POD_NETWORKS,
    PodNetwork,
    Span,
    pod_networks,
    titled,
    with_pod_networks,
    written,
)
from tortie.render.bird import render
from tortie.render.routing import bird_config

SEED = int(os.environ.get("TORTIE_SEED") or random.randrange(2**32))
"""Printed by what fails; TORTIE_SEED repeats a run."""
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"


def node(number: int, *networks: PodNetwork, name: str = "", **annotations: str) -> Node:
    bgp = {"ipv4Address": f"10.211.55.{number}/24", "ipv6Address": f"fd00:55::{number}/64"}
    bare = convert(Node, {"metadata": {"name": name or f"n{number}"}, "spec": {"bgp": bgp}})
    return with_pod_networks(bare, written(networks))


def l3(*subnets: str, name: str = "ipvlannet", mode: str = "l3", since: str = EARLY, **fields: Any) -> PodNetwork:
    spans = tuple(Span(subnet=subnet, since=since) for subnet in subnets)
    return PodNetwork(name=name, mode=mode, spans=spans, **fields)


def on(number: int, *subnets: str, **fields: Any) -> PodNetwork:
    """With a master that has the node's addresses."""
    addresses = f"10.211.55.{number}/24", f"fd00:55::{number}/64"
    return l3(*subnets, **{"master": "eth0", "addresses": addresses, **fields})


def made(here: str, nodes: Iterable[Node]) -> tuple[PodNetworks, dict[str, str]]:
    cluster = Cluster(here)
    for one in nodes:
        cluster.put(one)
    state = cluster.state()
    return state.pod_networks, dict(cluster.problems)


def ways(networks: PodNetworks) -> dict[str, tuple[str, str]]:
    return {str(one.dst): (one.node, "" if one.direct else str(one.ways[0])) for one in networks.routes}


# --- who routes what ----------------------------------------------------------------------------------------------


def test_the_case_of_three_nodes() -> None:
    """What had to be typed on each of them."""
    subnets = {7: "10.211.56.0/24", 8: "10.211.57.0/24", 9: "10.211.59.0/24"}
    nodes = [node(number, on(number, subnet)) for number, subnet in subnets.items()]
    for number in subnets:
        found, problems = made(f"n{number}", nodes)
        assert problems == {}
        others = {subnet: (f"n{other}", f"10.211.55.{other}") for other, subnet in subnets.items() if other != number}
        assert ways(found) == others
        assert {one.master for one in found.routes} == {"eth0"}
    found, _ = made("elsewhere", nodes)
    assert len(found.routes) == 3
    assert {one.master for one in found.routes} == {""}


def test_a_node_that_is_renumbered_or_goes() -> None:
    cluster = Cluster("n7")
    for number in (7, 8):
        cluster.put(node(number, on(number, f"10.77.{number}.0/24")))
    before = cluster.state().pod_networks
    assert cluster.state().pod_networks is before  # nothing has changed
    cluster.put(node(18, on(18, "10.77.8.0/24"), name="n8"))
    assert ways(cluster.state().pod_networks) == {"10.77.8.0/24": ("n8", "10.211.55.18")}
    cluster.drop(Node, "", "n8")
    assert ways(cluster.state().pod_networks) == {}


def test_a_bridge_is_reached_by_the_nodes_own_address() -> None:
    found, _ = made("n7", [node(8, l3("10.77.8.0/24", "fd00:77:8::/64", mode="bridge"))])
    assert ways(found) == {"10.77.8.0/24": ("n8", "10.211.55.8"), "fd00:77:8::/64": ("n8", "fd00:55::8")}


def test_past_its_master_nothing_gets_to_a_pod() -> None:
    """The node's own address on another link is no way."""
    far = l3("10.77.8.0/24", "fd00:77:8::/64", master="eth1", addresses=("198.51.100.8/24",))
    found, problems = made("n7", [node(8, far)])
    assert ways(found) == {"10.77.8.0/24": ("n8", "198.51.100.8")}
    text = "eth1 of n8 has no IPv6 address, which would be the way to fd00:77:8::/64"
    assert problems == {"pod network ipvlannet of n8": text}


def test_what_bgp_tells() -> None:
    nodes = [node(7, on(7, "10.77.7.0/24", announce=True)), node(8, on(8, "10.77.8.0/24", announce=True))]
    found, _ = made("n7", nodes)
    assert (found.own, found.others) == ((parse_net("10.77.7.0/24"),), (parse_net("10.77.8.0/24"),))
    assert found.routes[0].announced


def test_routers_need_the_master_to_have_the_address_of_bgp() -> None:
    far = l3("10.77.8.0/24", master="eth1", addresses=("198.51.100.8/24",), announce=True)
    found, problems = made("n8", [node(7), node(8, far)])
    text = "10.77.8.0/24 is not announced: eth1 has not the address that BGP speaks from, 10.211.55.8"
    assert (found.own, problems) == ((), {"pod network ipvlannet of n8": text})
    found, _ = made("n7", [node(7), node(8, far)])
    assert not found.routes[0].announced


def test_of_two_that_claim_the_same_the_earlier_one_has_it() -> None:
    nodes = [node(7, on(7, "10.77.8.0/25", since=LATE)), node(8, on(8, "10.77.8.0/24", since=EARLY))]
    for here in ("n7", "n8", "n9"):
        found, problems = made(here, nodes)
        text = f"10.77.8.0/25 overlaps 10.77.8.0/24 of n8, which has had it since {EARLY}"
        assert problems == {"pod network ipvlannet of n7": text}
        assert (found.refused == problems) is (here == "n7")
        assert ways(found) == ({} if here == "n8" else {"10.77.8.0/24": ("n8", "10.211.55.8")})


def test_at_the_same_instant_the_name_decides() -> None:
    nodes = [node(8, on(8, "10.77.8.0/24")), node(7, on(7, "10.77.8.0/24"))]
    found, problems = made("n9", nodes)
    assert ways(found)["10.77.8.0/24"][0] == "n7"
    assert list(problems) == ["pod network ipvlannet of n8"]


def test_networks_of_one_node_may_overlap() -> None:
    both = node(8, on(8, "10.77.8.0/24"), on(8, "10.77.8.0/25", name="second"))
    found, problems = made("n7", [both])
    assert (ways(found).keys(), problems) == ({"10.77.8.0/24", "10.77.8.0/25"}, {})


def test_a_routed_network_has_no_node_in_it() -> None:
    found, problems = made("n7", [node(7), node(8, on(8, "10.211.0.0/16"))])
    assert ways(found) == {}
    text = "10.211.0.0/16 has 10.211.55.7 in it, an address of n7 itself"
    assert problems == {"pod network ipvlannet of n8": text}


def test_pods_of_l2_are_on_the_network_itself() -> None:
    lan = [
        PodNetwork(
            name="lan",
            mode="l2",
            master="eth0",
            addresses=(f"10.211.55.{number}/24",),
            spans=(Span(subnet="10.211.55.0/24", start=start, end=end, since=EARLY),),
        )
        for number, start, end in ((7, "10.211.55.129", "10.211.55.139"), (8, "10.211.55.140", "10.211.55.149"))
    ]
    found, problems = made("n7", [node(7, lan[0]), node(8, lan[1])])
    assert (ways(found), problems) == ({}, {})
    own = on(8, "10.79.8.0/24", mode="l2", name="lan")
    found, problems = made("n7", [node(7, lan[0]), node(8, own)])
    assert (ways(found), problems) == ({"10.79.8.0/24": ("n8", "")}, {})


def test_ranges_of_l2_must_not_overlap() -> None:
    def lan(start: str, end: str, since: str) -> PodNetwork:
        return PodNetwork(
            name="lan", mode="l2", spans=(Span(subnet="10.211.55.0/24", start=start, end=end, since=since),)
        )

    nodes = [
        node(7, lan("10.211.55.129", "10.211.55.140", EARLY)),
        node(8, lan("10.211.55.140", "10.211.55.149", LATE)),
    ]
    _, problems = made("n7", nodes)
    assert list(problems) == ["pod network lan of n8"]
    assert problems["pod network lan of n8"].startswith("10.211.55.140 to 10.211.55.149 overlaps 10.211.55.129 to ")


def test_a_spoilt_annotation_costs_the_node_no_more_than_that() -> None:
    for text in ("[", '[{"name": "x"}]', '[{"name": "x", "mode": "l3", "spans": [{"subnet": "10.0.0.1/8"}]}]'):
        spoilt = with_pod_networks(node(8), text)
        found, problems = made("n7", [node(7), spoilt])
        assert list(problems) == ["pod networks of n8"]
        assert found.routes == ()
        cluster = Cluster("n7")
        cluster.put(spoilt)
        assert cluster.address_of("n8", 4) == "10.211.55.8"


def test_the_order_of_nodes_makes_no_difference_and_no_address_has_two_nodes() -> None:
    dice = random.Random(SEED)
    for _ in range(60):
        nodes = []
        for number in range(2, 9):
            drawn = (parse_net(f"10.77.{dice.randrange(8) * 8}.0/{dice.choice((21, 22, 24))}") for _ in range(2))
            networks = [
                l3(str(net), name=f"x{i}", mode=dice.choice(("bridge", "l2")), since=dice.choice((EARLY, LATE)))
                for i, net in enumerate(drawn)
            ]
            nodes.append(node(number, *networks))
        wanted = made("n1", nodes)
        for _ in range(3):
            dice.shuffle(nodes)
            assert made("n1", nodes) == wanted, SEED
        routes = wanted[0].routes
        for one in routes:
            owners = {other.node for other in routes if other.dst.overlaps(one.dst)}
            assert owners == {one.node}, SEED


def test_what_bird_is_told() -> None:
    """Own networks are announced and never written to the kernel; a reflector passes on those of others; the agent's
    routes are not for BIRD to learn."""
    for cluster_id in ("", "244.0.0.1"):
        cluster = Cluster("n7")
        mine = node(7, on(7, "10.77.7.0/24", announce=True))
        bgp = replace(mine.spec.bgp, route_reflector_cluster_id=cluster_id)
        cluster.put(replace(mine, spec=replace(mine.spec, bgp=bgp)))
        quiet = bird_config(cluster.state(), 0)
        assert quiet is not None
        assert quiet.unlearned == ()
        cluster.put(node(8, on(8, "10.77.8.0/24", announce=True)))
        config = bird_config(cluster.state(), 0)
        assert config is not None
        text = render(config)
        assert "  route 10.77.7.0/24 blackhole;" in text
        assert "ipv4 { import where krt_source != 87; export filter to_kernel4; };" in text
        kernel = text.partition("filter to_kernel4 {")[2].partition("\n}")[0]
        assert "if net ~ [ 10.77.7.0/24+ ] then reject;" in kernel
        announced = text.partition("function announce4(")[2].partition("\n}")[0]
        assert ("10.77.8.0/24+" in announced) is bool(cluster_id)
        assert "10.77.8.0/24" not in kernel


# --- what is published --------------------------------------------------------------------------------------------

ETH0 = Link(
    "eth0", 2, True, (ip_interface("10.211.55.8/24"), ip_interface("fe80::1/64"), ip_interface("fd00:55::8/64"))
)
IPVLAN = {
    "name": "ipvlannet",
    "type": "ipvlan",
    "master": "eth0",
    "mode": "l3",
    "autoRoutes": True,
    "ipam": {"type": "host-local", "subnet": "10.211.57.0/24"},
}


def found(tmp_path: Path, before: tuple[PodNetwork, ...] = (), master: str = "eth0", **files: Any) -> Found:
    for name, document in files.items():
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / name.replace("__", ".")).write_text(text)
    names = [name for name, *_ in signature(tmp_path)]
    return read(names, tmp_path, before, (ETH0,), lambda: master)


def test_a_configuration_is_published_with_its_masters_addresses(tmp_path: Path) -> None:
    (network,) = found(tmp_path, ipvlan__conf=IPVLAN).networks
    assert network == PodNetwork(
        name="ipvlannet",
        mode="l3",
        master="eth0",
        addresses=("10.211.55.8/24", "fd00:55::8/64"),
        spans=(Span(subnet="10.211.57.0/24"),),
        file="ipvlan.conf",
    )
    assert pod_networks(node(8, network)) == (network,)


def test_lists_and_single_plugins_with_and_without_the_word(tmp_path: Path) -> None:
    listed = {"name": "listed", "cniVersion": "1.0.0", "plugins": [{**IPVLAN, "AutoRoutes": True}, {"type": "tuning"}]}
    silent = {key: value for key, value in IPVLAN.items() if key != "autoRoutes"}
    macvlan = {**IPVLAN, "name": "lan", "type": "macvlan", "master": None, "mode": "private"}
    got = found(
        tmp_path,
        b__conflist=listed,
        a__conf=silent,
        c__json=macvlan,
        d__conf={**silent, "autoRoutes": False},
        e__txt="{",
    )
    assert got.problems == {}
    assert [(one.name, one.mode, one.master) for one in got.networks] == [
        ("listed", "l3", "eth0"),
        ("lan", "l2", "eth0"),
    ]


def test_ranges_of_host_local(tmp_path: Path) -> None:
    lan = {"subnet": "10.211.55.0/24", "rangeStart": "10.211.55.129", "rangeEnd": "10.211.55.139"}
    sets = {"type": "host-local", "ranges": [[lan, {"subnet": "10.5.0.0/16"}], [{"subnet": "fd00:5::/64"}]]}
    (network,) = found(tmp_path, x__conf={**IPVLAN, "ipam": sets}).networks
    assert [span.subnet for span in network.spans] == ["10.211.55.0/24", "10.5.0.0/16", "fd00:5::/64"]
    assert network.spans[0].bounds == (int(parse_ip("10.211.55.129")), int(parse_ip("10.211.55.139")))


WRONG = {
    "autoRoutes: must be true, false": {"autoRoutes": "yes"},
    "autoRoutes: there are no routes to pods of the type vlan": {"type": "vlan"},
    "ipam.type: must be host-local": {"ipam": {"type": "dhcp"}},
    "ipam.subnet: there is none": {"ipam": {"type": "host-local"}},
    'ipam: "10.0.0.1/8" has host bits set': {"ipam": {"type": "host-local", "subnet": "10.0.0.1/8"}},
    "ipam: 10.9.0.1 is not in 10.8.0.0/16": {
        "ipam": {"type": "host-local", "subnet": "10.8.0.0/16", "rangeStart": "10.9.0.1"}
    },
    "ipam.ranges: must be a list of lists": {"ipam": {"type": "host-local", "ranges": [{"subnet": "10.8.0.0/16"}]}},
    'mode: "l4" is not one of l2, l3, l3s': {"mode": "l4"},
    "linkInContainer: ": {"linkInContainer": True},
    "autoRoutes: routers send to the node": {"mode": "l2", "autoRoutes": "bgp"},
    "master: there is no default route": {"master": ""},
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_a_configuration(tmp_path: Path, text: str) -> None:
    got = found(tmp_path, master="", x__conf={**IPVLAN, **WRONG[text]})
    assert got.networks == ()
    assert got.problems["x.conf"].startswith(text)


def test_half_a_file_goes_on_counting_as_it_was(tmp_path: Path) -> None:
    before = found(tmp_path, x__conf=IPVLAN).networks
    got = found(tmp_path, before, x__conf='{"name": "ipvl')
    assert got.networks == before
    assert list(got.problems) == ["x.conf"]
    (tmp_path / "x.conf").unlink()
    assert found(tmp_path, before) == Found()
    assert signature(tmp_path / "nowhere") == ()


def test_a_subnet_keeps_the_time_it_was_published(tmp_path: Path) -> None:
    networks = found(tmp_path, x__conf=IPVLAN).networks
    first = since(networks, (), EARLY)
    assert first[0].spans[0].since == EARLY
    assert since(networks, first, LATE) == first
    other = found(tmp_path, x__conf={**IPVLAN, "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}).networks
    assert since(other, first, LATE)[0].spans[0].since == LATE


def test_the_annotation_and_nothing_else_of_a_node_is_touched() -> None:
    bare = convert(Node, {"metadata": {"name": "n8", "annotations": {"mine": "stays"}}})
    there = with_pod_networks(bare, written([on(8, "10.77.8.0/24")]))
    assert there.metadata.annotations.keys() == {"mine", POD_NETWORKS}
    assert with_pod_networks(there, "") == bare
    newer = json.loads(there.metadata.annotations[POD_NETWORKS])
    newer[0]["invented"] = newer[0]["spans"][0]["later"] = 1
    assert pod_networks(with_pod_networks(bare, json.dumps(newer)))[0].name == "ipvlannet"
    with pytest.raises(ConfigError, match="is not a part of"):
        pod_networks(with_pod_networks(bare, written([PodNetwork(name="x", mode="l2", spans=(
            Span(subnet="10.0.0.0/24", start="10.0.0.9", end="10.0.0.3"),))])))  # fmt: skip
    assert titled("a", "b") == "pod network a of b"


# --- what becomes of it in the kernel -----------------------------------------------------------------------------

DST, PEER = parse_net("10.211.59.0/24"), parse_ip("10.211.55.9")
WANTED = PodRoute(DST, "n9", "ipvlannet", (PEER,), "eth0")
LEGS = {"eth0": Leg(2, nets=(parse_net("10.211.55.0/24"),)), "eth1": Leg(3, up=False)}
TITLE = "route to 10.211.59.0/24 (ipvlannet of n9)"


def selected(one: PodRoute = WANTED, **fields: Any) -> tuple[list[str], str]:
    ground = Ground(**{"legs": LEGS, "neighbours": {PEER: 2}, **fields})
    selection = select([one], ground)
    names = {leg.index: name for name, leg in LEGS.items()}
    text = str(plan(selection.routes, {}, names))
    return text.splitlines(), "".join(selection.problems.values())


def other(protocol: int = 4, via: str = "10.211.55.66", metric: int = 0) -> dict[str, Any]:
    return {"others": {DST: [Route(DST, parse_ip(via), 2, protocol=protocol, metric=metric)]}}


def test_a_plan_is_what_used_to_be_typed() -> None:
    assert selected() == (["ip route replace 10.211.59.0/24 via 10.211.55.9 dev eth0 proto 87"], "")
    direct = PodRoute(DST, "n9", "lan", (PEER,), "eth0", direct=True)
    assert selected(direct) == (["ip route replace 10.211.59.0/24 dev eth0 proto 87 scope link"], "")


def test_a_far_node_has_no_route_but_a_reason() -> None:
    lines, why = selected(neighbours={})
    assert (lines, why.startswith("10.211.55.9 is not on the network of eth0: routers")) == ([], True)
    assert selected(neighbours={PEER: 3})[0] == []  # by another link than the master nothing leaves an l3 pod
    announced = PodRoute(DST, "n9", "ipvlannet", (PEER,), "eth0", announced=True)
    assert selected(announced, neighbours={}) == ([], "")  # BGP has the way


def test_links_that_cannot_carry_it() -> None:
    for master, why in (("eth1", "eth1 is down"), ("eth7", "there is no link eth7 here")):
        assert selected(PodRoute(DST, "n9", "x", (PEER,), master)) == ([], why)
    legs = {**LEGS, "eth2": Leg(4, nets=(DST,))}
    assert selected(legs=legs) == ([], "10.211.59.0/24 is this machine's own network, at eth2")
    assert selected(PodRoute(DST, "n9", "lan", (PEER,), "eth0", direct=True), legs=legs) == ([], "")


def test_routes_of_others() -> None:
    lines, why = selected(**other())
    text = "somebody else has a route there, which is left alone: 10.211.59.0/24 via 10.211.55.66 dev eth0 proto static"
    assert lines == []
    assert why.startswith(text.removesuffix(" proto static"))
    assert why.endswith("proto static")
    assert selected(**other(via="10.211.55.9")) == ([], "")  # it leads the same way
    assert len(selected(**other(metric=100))[0]) == 1
    assert len(selected(**other(protocol=12, metric=1024))[0]) == 1
    announced = PodRoute(DST, "n9", "ipvlannet", (PEER,), "eth0", announced=True)
    assert selected(announced, **other(protocol=12)) == ([], "")


def test_what_the_doctor_says() -> None:
    cluster = SeenCluster(pod_networks={DST: "n9"})

    def lines(unanswered: tuple[Any, ...] = (), **fields: Any) -> list[tuple[str, str]]:
        seen = Seen(machine=Machine(unanswered=unanswered), cluster=SeenCluster(pod_networks={DST: "n9"}, **fields))
        return [(one.level, one.what) for one in judge(seen) if one.check == "pod networks"]

    assert cluster.unrouted == {}
    assert lines() == [("ok", "1 of other nodes have their route")]
    assert lines(unrouted={TITLE: "eth0 is down"}) == [("bad", "eth0 is down")]
    ((level, text),) = lines(pools=(parse_net("10.211.0.0/16"), parse_net("fd00::/8")))
    assert (level, text.endswith("overlaps the IP pool 10.211.0.0/16: both give out these addresses")) == ("warn", True)
    ((level, text),) = lines(unanswered=((parse_ip("10.211.59.3"), "eth0"), (parse_ip("10.1.1.1"), "eth0")))
    assert level == "warn"
    assert text.startswith("eth0 was asked for 10.211.59.3, a pod's address of n9")
