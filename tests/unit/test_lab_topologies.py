"""Topology files: what they make, what is wrong with them in one line, what routers are told, and the maps."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from rich.console import Console

from tortie.base.errors import ConfigError
from tortie.kernel.bird import Bird
from tortie.lab import blueprint, map_text
from tortie.lab.blueprint import Blueprint, built_in, load, parse
from tortie.lab.chart import Chart, Pair, chart
from tortie.lab.link import Trouble, milliseconds, percent
from tortie.lab.map_layout import Box, crowded, layout
from tortie.lab.map_svg import render
from tortie.lab.objects import initial_objects
from tortie.lab.routers import configuration, neighbours
from tortie.lab.sessions import Session, Wanted, wanted_by
from tortie.lab.topology import Topology, lab_of_namespace, laid_out, resized, topology
from tortie.lab.underlay import networks, ways
from tortie.model.bgp import BGPPeer, BGPPeerSpec
from tortie.model.document import convert
from tortie.model.ipam import BlockAffinity
from tortie.model.meta import Metadata

ROOT = Path(__file__).parents[2]


def lab_of(name: str) -> Topology:
    return laid_out("a", load(name))


def wanted_of(lab: Topology, *more: BGPPeer) -> Wanted:
    return wanted_by(lab, [*initial_objects(lab, "0" * 32), *more])


def chart_of(lab: Topology, up: bool | None = None) -> Chart:
    wanted = wanted_of(lab)
    sessions = [Session(one.ends, one.version, one.internal, up, one.client) for one in wanted.sessions()]
    return chart(lab, wanted, sessions, None if up is None else {node.name: up for node in lab.nodes})


def sessions_of(name: str) -> set[tuple[str, str, str]]:
    """Ends and kind of every IPv4 session, and that every one is there in IPv6 too."""
    found = wanted_of(lab_of(name)).sessions()
    four, six = ({(*one.ends, kind(one)) for one in found if one.version == version} for version in (4, 6))
    assert four == six
    return four


def kind(session: Session) -> str:
    return f"reflects to {session.client}" if session.client else "iBGP" if session.internal else "eBGP"


# --- the built-in ones ----------------------------------------------------------------------------------------------


def test_the_built_in_topologies_are_those_the_command_names() -> None:
    assert built_in() == ["cross-subnet", "mesh", "rr", "two-racks"]


def test_mesh_is_what_there_is_without_a_topology() -> None:
    assert lab_of("mesh") == topology("a")


def test_reflectors_have_a_session_with_everybody_and_clients_with_reflectors_only() -> None:
    assert sessions_of("rr") == {
        ("node1", "node2", "iBGP"),
        ("node1", "node3", "reflects to node3"),
        ("node1", "node4", "reflects to node4"),
        ("node2", "node3", "reflects to node3"),
        ("node2", "node4", "reflects to node4"),
    }


def test_two_racks_have_reflectors_inside_and_routers_between() -> None:
    assert sessions_of("two-racks") == {
        ("node1", "node2", "reflects to node2"),
        ("node3", "node4", "reflects to node4"),
        *((node, tor, "eBGP") for node, tor in (("node1", "tor-a"), ("node2", "tor-a"))),
        *((node, tor, "eBGP") for node, tor in (("node3", "tor-b"), ("node4", "tor-b"))),
        ("spine", "tor-a", "eBGP"),
        ("spine", "tor-b", "eBGP"),
    }


def test_across_plain_routers_there_is_a_mesh_and_no_router_speaks_bgp() -> None:
    assert len(sessions_of("cross-subnet")) == 6
    lab = lab_of("cross-subnet")
    assert not [one for router in lab.routers for one in neighbours(lab, router)]


@pytest.mark.parametrize("name", ["cross-subnet", "mesh", "rr", "two-racks"])
def test_every_router_finds_every_network_in_the_fewest_steps(name: str) -> None:
    lab = lab_of(name)
    every = {net for router in lab.routers for net in networks(lab, router)}
    for router in lab.routers:
        routes = {way.to: way for way in ways(lab, router)}
        assert routes.keys() == every - set(networks(lab, router))
        for net, way in routes.items():
            port = next(port for port in router.ports if port.to == way.interface)
            assert str(way.via) in port.via
            assert way.via.version == net.version


@pytest.mark.parametrize("name", ["cross-subnet", "mesh", "rr", "two-racks"])
def test_addresses_are_distinct_and_on_their_links(name: str) -> None:
    lab = lab_of(name)
    own = [ip_interface(address) for router in lab.routers for address in router.addresses]
    hosts = [host.ipv4 for host in lab.hosts] + [host.ipv6 for host in lab.hosts]
    every = [one.ip for one in (*own, *hosts)]
    assert len(set(every)) == len(every)
    for host in lab.nodes:
        assert {host.gateway, host.gateway6} <= {str(ip_interface(one).ip) for one in lab.router_of(host).bridge}
    assert all(lab_of_namespace(netns) == "a" for netns in lab.namespaces)
    assert len(set(lab.namespaces)) == len(lab.namespaces)


def test_what_the_examples_show_are_the_built_in_ones() -> None:
    for name in built_in():
        shown = (ROOT / f"examples/topologies/{name}.yaml").read_text()
        assert shown == (blueprint.BUILT_IN / f"{name}.yaml").read_text()


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((ROOT / "examples/topologies").glob("*.yaml")) if not file.stem.endswith("pods")],
    ids=lambda file: file.stem,
)
def test_every_example_can_be_laid_out(file: Path) -> None:
    lab = laid_out("a", load(str(file)))
    assert bool(wanted_of(lab).sessions()) is (lab.blueprint.flannel is None), "flannel's nodes speak no BGP"


# --- objects --------------------------------------------------------------------------------------------------------


def test_a_lab_that_was_written_down_is_read_as_it_was() -> None:
    for name in built_in():
        whole = load(name)
        assert blueprint.shape(blueprint.document(whole)) == whole


def test_a_peer_that_is_nobody_is_expected_and_never_up() -> None:
    lab = topology("a", 2)
    stranger = BGPPeer(metadata=Metadata(name="x"), spec=BGPPeerSpec(peer_ip="198.51.100.77", as_number=65000))
    wanted = wanted_of(lab, stranger)
    assert "Global_198_51_100_77" in wanted.of_node("node1")
    up = {node: set(wanted.of_node(node)) - {"Global_198_51_100_77"} for node in ("node1", "node2")}
    down = [one for one in wanted.sessions(up, {}) if not one.up]
    assert [one.ends for one in down] == [("198.51.100.77", "node1"), ("198.51.100.77", "node2")]


def test_a_session_is_up_when_all_its_ends_say_so() -> None:
    lab = lab_of("two-racks")
    wanted = wanted_of(lab)
    nodes: Mapping[str, Any] = {node.name: wanted.of_node(node.name) for node in lab.nodes}
    routers = {router.name: {one.ip for one in wanted.of_router(router.name)} for router in lab.routers}
    assert all(one.up for one in wanted.sessions(nodes, routers))
    routers["tor-a"].discard(ip_address("172.30.1.12"))
    down = [one for one in wanted.sessions(nodes, routers) if not one.up]
    assert [str(one) for one in down] == ["node2 to tor-a over IPv4"]


def test_a_router_waits_for_nobody_who_does_not_dial_it() -> None:
    text = (blueprint.BUILT_IN / "two-racks.yaml").read_text()
    quiet = laid_out("a", parse(text.partition("manifests:")[0], "x"))
    wanted = wanted_of(quiet)
    assert [one.name for one in wanted.of_router("tor-a")] == ["spine", "spine"]
    assert len([one for one in neighbours(quiet, quiet.router("tor-a")) if one.node]) == 4


def test_the_only_rack_can_have_another_size() -> None:
    assert [node.cluster_id for node in laid_out("a", resized(load("rr"), 5)).nodes] == ["244.0.0.1"] * 2 + [""] * 3
    with pytest.raises(ConfigError, match="--nodes: 2 nodes: this topology has at least 3"):
        resized(load("rr"), 2)
    with pytest.raises(ConfigError, match="--nodes: a topology of several racks says itself"):
        resized(load("two-racks"), 5)


# --- mistakes -------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "routers": [{"name": "r1", "as": 65001}, {"name": "r2"}],
    "links": [{"between": ["r1", "r2"]}],
    "racks": [
        {"name": "a", "router": "r1", "nodes": [{"count": 2}]},
        {"name": "b", "router": "r2", "nodes": [{"labels": {"x": "y"}}]},
    ],
    "pools": [{"name": "p", "cidr": "10.244.0.0/16", "vxlanMode": "Always"}],
}


def said(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump({**GOOD, **changes}), "t.yaml")
    return str(caught.value)


def rack(**more: Any) -> list[dict[str, Any]]:
    first, second = GOOD["racks"]
    return [{**first, **more}, second]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rack": []}, 't.yaml: rack: is not a known field, did you mean "racks"?'),
        ({"racks": []}, "t.yaml: racks: is required: a lab has at least one"),
        ({"racks": rack(nodes=[])[:1]}, "t.yaml: racks: 0 nodes: a lab has from 1 to 240"),
        ({"racks": rack(nodes=[{"count": 0}])}, "t.yaml: racks[0].nodes[0].count: 0 is not from 1 to 240"),
        ({"racks": rack(nodes=[{"lables": {}}])}, 'nodes[0].lables: is not a known field, did you mean "labels"?'),
        ({"racks": rack(router="r9")}, 't.yaml: racks[0].router: "r9" is no router, known: r1, r2'),
        ({"racks": rack(router="r2")}, "t.yaml: racks[1].router: r2 is the router of rack a already"),
        ({"racks": rack(router="")}, "t.yaml: racks[0].router: is required where there are several racks"),
        ({"racks": rack(name="b")}, 't.yaml: racks[1].name: "b" is there twice'),
        ({"racks": rack(subnet="172.30.1.0/24")}, "racks[1].subnet: 172.30.1.0/24 overlaps 172.30.1.0/24 of rack a"),
        ({"racks": rack(subnet="10.1.2.3/24")}, 'racks[0].subnet: "10.1.2.3/24" has host bits set'),
        ({"racks": rack(subnet="10.9.0.0/29")}, "subnet: 10.9.0.0/29 has no room for addresses up to number 13"),
        ({"racks": rack(subnet6="10.9.0.0/24")}, "racks[0].subnet6: 10.9.0.0/24 is not an IPv6 network"),
        ({"racks": rack(**{"as": "x"})}, 't.yaml: racks[0].as: "x" is not an AS number'),
        ({"routers": [{"name": "r1"}, {"name": "node2"}]}, 't.yaml: routers[1].name: "node2" is no name'),
        ({"routers": [{"name": "r1"}, {"name": "r2", "daemon": "frr"}]}, "routers[1].as: is required: frr speaks BGP"),
        ({"routers": [{"name": "r1", "daemon": "quagga"}]}, 'routers[0].daemon: "quagga" is not one of bird, frr'),
        ({"links": []}, "t.yaml: links: there is no way from r1 to r2"),
        ({"links": [{"between": ["r1"]}]}, "t.yaml: links[0].between: must name two routers"),
        ({"links": [{"between": ["r1", "r2"]}, {"between": ["r2", "r1"]}]}, "links[1].between: r2 and r1 have a link"),
        ({"links": [{"between": ["r1", "r2"], "mtu": 99}]}, "t.yaml: links[0].mtu: 99 is not from 1280 to 9000"),
        ({"outside": "r7"}, 't.yaml: outside: "r7" is no router'),
        ({"pools": [{"cidr": "10.0.0.0/8"}]}, "t.yaml: pools[0].name: is required"),
        ({"pools": [{"name": "p", "cidr": "10.0.0.0/8", "vxlanMod": "x"}]}, "pools[0].vxlanMod: is not a known"),
        ({"pools": [{"name": "p", "cidr": "fd00::/64", "ipipMode": "Always"}]}, "pools[0].ipipMode: IPIP carries"),
        ({"pools": [{"name": "p", "cidr": "172.31.0.0/24"}]}, "cidr: 172.31.0.0/24 overlaps 172.31.0.0/16 of the lab"),
        ({"pools": [{"name": "p", "cidr": "10.100.0.0/16"}]}, "10.100.0.0/16 overlaps 10.96.0.0/12 of services"),
        ({"manifests": [{"kind": "BGPPeer"}]}, "t.yaml: manifests[0]: BGPPeer: apiVersion: is required"),
        ({"manifests": ["nowhere.yaml"]}, "t.yaml: manifests[0]: nowhere.yaml: No such file or directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_with_file_and_field(changes: dict[str, Any], complaint: str) -> None:
    line = said(**changes)
    assert complaint in line
    assert "\n" not in line


def test_what_is_no_topology_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"rings: is neither a file .* cross-subnet, mesh, rr, two-racks$"):
        load("rings")
    with pytest.raises(ConfigError, match=r"x: is not one mapping"):
        parse("- a\n", "x")


def test_manifests_are_read_from_files_beside_the_topology(tmp_path: Path) -> None:
    (tmp_path / "red.yaml").write_text("{apiVersion: v1, kind: Namespace, metadata: {name: red}}\n")
    file = tmp_path / "t.yaml"
    file.write_text("racks: [{name: a, nodes: [{}]}]\nmanifests: [red.yaml]\n")
    assert [one.title for one in load(str(file)).objects] == ["Namespace red"]


# --- what routers are told ------------------------------------------------------------------------------------------


def test_bird_takes_the_configuration_of_every_router(tmp_path: Path) -> None:
    lab = lab_of("two-racks")
    bird = Bird(tmp_path / "bird.conf", tmp_path / "bird.ctl", log=tmp_path / "log")
    for router in lab.routers:
        bird.check(configuration(lab, router))
    tor = configuration(lab, lab.router("tor-a"))
    session = re.search(r"protocol bgp node2_4 \{(.*?)\n\}", tor, re.DOTALL)
    assert session is not None
    assert "local 172.30.1.1 as 65001;" in session[1]
    assert "neighbor 172.30.1.12 as 65101;" in session[1]
    assert "passive on;" in session[1]
    assert "rr client" not in tor


def test_nodes_in_the_routers_own_as_are_its_clients_whatever_daemon_it_is() -> None:
    same = {**GOOD, "racks": rack(**{"as": 65001})}
    for daemon, words in (("bird", "rr client;"), ("frr", "neighbor 172.30.0.11 route-reflector-client")):
        routers = [{"name": "r1", "as": 65001, "daemon": daemon}, {"name": "r2"}]
        lab = laid_out("a", parse(yaml.safe_dump({**same, "routers": routers}), "x"))
        assert words in configuration(lab, lab.router("r1"))


# --- troubled links -------------------------------------------------------------------------------------------------


def test_troubles_as_people_write_them() -> None:
    assert (percent("5%"), percent("0.5"), percent(""), milliseconds("20ms"), milliseconds("1.5s")) == (
        5.0, 0.5, None, 20.0, 1500.0,
    )  # fmt: skip
    assert Trouble(5, 20).words == ["delay", "20ms", "loss", "5%"]
    assert Trouble(0, 0).words == []
    for wrong in ("101%", "five", "-1"):
        with pytest.raises(ConfigError, match=r"--loss: .* is not a share such as 5%"):
            percent(wrong)
    with pytest.raises(ConfigError, match='--delay: "20" is not a time such as 20ms'):
        milliseconds("20")


# --- maps -----------------------------------------------------------------------------------------------------------


def pictures() -> ModuleType:
    path = ROOT / "docs/pictures/topologies.py"
    spec = importlib.util.spec_from_file_location("topology_pictures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pictures_of_the_book_are_those_of_the_topologies() -> None:
    for path, text in pictures().pictures().items():
        assert path.read_text() == text, f"{path.name} is stale: run docs/pictures/topologies.py"


def many(nodes: int) -> Blueprint:
    return topology("a", nodes).blueprint


@pytest.mark.parametrize("name", ["cross-subnet", "mesh", "rr", "two-racks", "12 nodes", "50 nodes"])
@pytest.mark.parametrize("up", [None, True, False], ids=["asked for", "up", "down"])
def test_a_map_has_everybody_and_nothing_overlaps(name: str, up: bool | None) -> None:
    lab = laid_out("a", many(int(name.split()[0])) if " " in name else load(name))
    drawn = chart_of(lab, up)
    made = layout(drawn)
    assert set(made.boxes) == {*(node.name for node in lab.nodes), *(one.name for one in lab.routers), "outside"}
    assert list(crowded(made)) == []
    for box in made.boxes.values():
        assert all(line.width <= box.width for line in box.lines)
        assert (box.x >= 0, box.y >= 0, box.right <= made.width, box.bottom <= made.foot) == (True,) * 4
    assert all(_within(made.boxes[node.name], made.racks) for node in lab.nodes)
    picture = ElementTree.fromstring(render(drawn))
    written = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {node.name for node in lab.nodes} <= written
    assert len(made.wires) >= len(drawn.pairs) or len(lab.nodes) > 12


def _within(box: Box, racks: list[Box]) -> bool:
    return any(
        rack.x <= box.x and box.right <= rack.right and rack.y <= box.y and box.bottom <= rack.bottom for rack in racks
    )


def test_what_is_down_is_red_and_named() -> None:
    lab = lab_of("two-racks")
    wanted = wanted_of(lab)
    nodes: Mapping[str, Any] = {node.name: wanted.of_node(node.name) for node in lab.nodes}
    routers = {router.name: {one.ip for one in wanted.of_router(router.name)} for router in lab.routers}
    routers["tor-a"].discard(ip_address("172.30.1.12"))
    drawn = chart(lab, wanted, wanted.sessions(nodes, routers), {node.name: node.name != "node4" for node in lab.nodes})
    picture = render(drawn)
    assert picture.count('stroke="#dc2626" stroke-width="2"') == 1
    assert "down: node2 and tor-a over IPv4" in picture
    text = _printed(drawn)
    assert "16 BGP sessions, 15 up" in text
    assert re.search(r"node2 with tor-a, eBGP +down over IPv4", text)
    assert re.search(r"node1 reflects to node2, iBGP +up", text)


def _printed(drawn: Chart) -> str:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(map_text.render(drawn))
    return captured.get()


def test_a_mesh_that_is_up_is_one_line_and_a_large_rack_too() -> None:
    text = _printed(chart_of(topology("a", 50), True))
    assert "full mesh of node1 to node50" in text
    assert "2450 BGP sessions, 2450 up" in text
    assert "50 nodes, AS 64512" in text
    assert text.count("\n") < 12
    text = _printed(chart_of(laid_out("a", resized(load("rr"), 50)), True))
    assert "50 nodes, AS 64512, of which node1 and node2 reflect routes" in text


def test_a_peer_that_is_nobody_has_a_box_of_its_own() -> None:
    lab = topology("a", 3)
    stranger = BGPPeer(metadata=Metadata(name="x"), spec=BGPPeerSpec(peer_ip="198.51.100.77", as_number=65000))
    wanted = wanted_of(lab, stranger)
    drawn = chart(lab, wanted, wanted.sessions())
    assert drawn.elsewhere == ["198.51.100.77"]
    made = layout(drawn)
    assert made.boxes["198.51.100.77"].kind == "elsewhere"
    assert list(crowded(made)) == []
    assert "node2, eBGP" in _printed(drawn)


def test_blocks_of_a_pool_that_is_not_exported_are_not_said_to_be_announced() -> None:
    lab = lab_of("two-racks")
    wanted = wanted_of(lab)
    affinities = [
        _affinity("node1", "10.244.1.0/26"),
        _affinity("node1", "10.245.1.0/26"),
        _affinity("node2", "fd00:10:245::40/122"),
    ]
    drawn = chart(lab, wanted, wanted.sessions(), None, affinities)
    assert [(spot.blocks, spot.kept) for spot in drawn.nodes[:2]] == [
        (("10.244.1.0/26",), ("10.245.1.0/26",)),
        ((), ("fd00:10:245::40/122",)),
    ]
    text = _printed(drawn)
    assert "announces 10.244.1.0/26" in text
    assert "keeps to itself 10.245.1.0/26" in text
    assert "disableBGPExport" in render(drawn)


def _affinity(node: str, cidr: str) -> BlockAffinity:
    name = re.sub(r"[.:/]+", "-", cidr)
    spec = {"cidr": cidr, "node": node, "state": "confirmed", "deleted": False, "type": "host"}
    return convert(BlockAffinity, {"metadata": {"name": name}, "spec": spec})


def test_a_reflector_points_at_its_clients() -> None:
    pair = Pair(("node1", "node3"), (4, 6), True, "node3", True)
    assert pair.other == "node1"
    made = layout(chart_of(lab_of("rr")))
    arrows = [wire for wire in made.wires if wire.pair and wire.pair.client]
    for wire in arrows:
        assert wire.pair is not None
        client = made.boxes[wire.pair.client]
        assert client.x <= wire.x2 <= client.right


def test_pods_networks_are_in_nobodys_way() -> None:
    lab = lab_of("two-racks")
    pools = [ip_network(pool.spec.cidr) for pool in lab.blueprint.ippools]
    underlay = [net for router in lab.routers for net in networks(lab, router)]
    assert not [1 for pool in pools for net in underlay if pool.version == net.version and pool.overlaps(net)]
