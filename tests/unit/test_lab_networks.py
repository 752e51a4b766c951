"""Labs on CNI plugins alone, on paper: their files, nodes, routes, and what their matrices are held against."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tortie.base.addr import parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.lab import networks
from tortie.lab.blueprint import CniFile, document, shape
from tortie.lab.cluster import answering_nodes
from tortie.lab.defaults import CNI_NETWORKS, OWN_NETWORK
from tortie.lab.matrix import Matrix, Outcome, Result, render, to_document
from tortie.lab.networks import blueprint_of, network_of, pod_nets, ways
from tortie.lab.probe import Endpoint
from tortie.lab.reach import Foretold, foretold
from tortie.lab.topology import OUTSIDE, Topology, laid_out, topology
from tortie.model.document import convert
from tortie.model.k8s import Pod

CASES = Path(__file__).parents[2] / "examples" / "cases"
NODES = {"node1": "master", "node2": "node1", "node3": "node2"}
"""The lab's nodes, and what the cases call them."""
BUILT_IN = [name for name in CNI_NETWORKS if name != OWN_NETWORK]
ROUTED = {"node1": "10.211.56.0/24", "node2": "10.211.57.0/24", "node3": "10.211.59.0/24"}


def lab_of(cni: str, **how: Any) -> Topology:
    return laid_out("a", blueprint_of(cni, **how))


def written(folder: Path, *confs: Mapping[str, Any]) -> list[Path]:
    files = [folder / f"10-net{i}.conf" for i in range(len(confs))]
    for file, conf in zip(files, confs, strict=True):
        file.write_text(json.dumps(conf))
    return files


def conf(type: str, subnet: str = "10.1.0.0/24", routes: bool = True, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": subnet, **({"routes": [{"dst": "0.0.0.0/0"}]} if routes else {})}
    return {"cniVersion": "1.0.0", "name": "net", "type": type, "ipam": ipam, **more}


# --- what there is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ipvlan-l2", "ipvlan-l3", "macvlan"])
def test_the_nodes_have_the_cases_files_to_the_byte(case: str) -> None:
    lab = lab_of(case)
    assert lab.blueprint.cni is not None
    for node, file in zip(lab.nodes, lab.blueprint.cni.files, strict=True):
        assert file.text == (CASES / case / f"{NODES[node.name]}.conf").read_text()
        assert file.name == f"10-{case.partition('-')[0]}.conf"


@pytest.mark.parametrize("cni", BUILT_IN)
def test_three_nodes_on_the_cases_lan_with_a_pod_on_each_and_no_agent(cni: str) -> None:
    lab = lab_of(cni)
    assert [str(node.ipv4) for node in lab.nodes] == [f"10.211.55.{i}/24" for i in (7, 8, 9)]
    assert {node.gateway for node in lab.nodes} == {"10.211.55.1"}
    assert not lab.has_agents
    pods = [one for one in lab.blueprint.objects if isinstance(one, Pod)]
    assert [(pod.name, pod.spec.node_name) for pod in pods] == [(f"pod{i}", f"node{i}") for i in (1, 2, 3)]
    assert laid_out("a", shape(document(lab.blueprint))) == lab, "lab.json keeps all of it"


def test_other_labs_have_agents_and_no_networks_of_nodes() -> None:
    lab = topology("a")
    assert lab.has_agents
    assert (networks.networks(lab), ways(lab, "node1")) == ({}, {})
    assert answering_nodes(lab) == []


def test_fewer_nodes_have_the_first_files() -> None:
    lab = lab_of("macvlan", nodes=2)
    assert [str(network) for network in networks.networks(lab).values()] == [
        "macvlan bridge, 10.211.55.129 to 10.211.55.139",
        "macvlan bridge, 10.211.55.140 to 10.211.55.149",
    ]


def test_one_file_may_be_for_one_node_or_for_all(tmp_path: Path) -> None:
    assert len(lab_of(OWN_NETWORK, nodes=1, files=[CASES / "ipvlan-l2/single.conf"]).nodes) == 1
    lab = lab_of(OWN_NETWORK, files=written(tmp_path, conf("bridge")))
    assert {str(network) for network in networks.networks(lab).values()} == {"bridge, 10.1.0.1 to 10.1.0.254"}
    assert (len(lab.nodes), pod_nets(lab), ways(lab, "node1")) == (3, {}, {}), (
        "the same network is nowhere in particular"
    )


def test_what_a_list_says() -> None:
    doc = {
        "cniVersion": "1.0.0", "name": "chain",
        "plugins": [
            {"type": "bridge", "isDefaultGateway": True,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }  # fmt: skip
    found = network_of(CniFile(name="10-chain.conflist", text=json.dumps(doc)))
    assert (found.name, found.type, found.default) == ("chain", "bridge", True)
    assert found.types == ("bridge", "portmap", "host-local")
    assert [str(net) for net in found.nets] == ["10.1.0.0/24", "fd00:1::/64"]


@pytest.mark.parametrize(
    ("cni", "how", "complaint"),
    [
        ("macvlna", {}, '--cni: "macvlna" is no network of a lab, did you mean "macvlan"?'),
        ("own", {}, "--cni: own wants your files: --netconf FILE"),
        ("macvlan", {"nodes": 4}, "--nodes: macvlan has files for 3 nodes; give --netconf for others"),
        ("macvlan", {"nodes": 0}, "--nodes: 0 nodes"),
        (
            "own",
            {"files": [CASES / "macvlan/node1.conf"]},
            "node1 and node2 would both give 10.211.55.140 to 10.211.55.149",
        ),
        (
            "own",
            {"nodes": 3, "files": [CASES / "ipvlan-l3/node1.conf"] * 2},
            "2 files for 3 nodes: one for all of them",
        ),
        ("own", {"files": [CASES / "nothing.conf"]}, "--netconf: .*nothing.conf: No such file"),
        ("own", {"files": [CASES.parent / "README.md"]}, "README.md is named neither .conf nor .json nor .conflist"),
        ("own", {"files": [CASES / "feature-control.json"]}, "feature-control.json: name: missing network name"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(cni: str, how: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        blueprint_of(cni, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ipam", "complaint"),
    [
        ({"ranges": 5}, "own.conf: ipam.ranges: must be a list"),
        ({"ranges": [5]}, r"own.conf: ipam.ranges\[0\]: must be a list"),
        ({"subnet": "10.0.0.0/24", "routes": 5}, "own.conf: ipam.routes: must be a list"),
        ({"subnet": "10.0.0.0/32"}, "own.conf: ipam: 10.0.0.0/32 is too small to allocate from"),
    ],
)
def test_files_that_no_address_can_be_read_of(ipam: dict[str, Any], complaint: str) -> None:
    doc = {"cniVersion": "1.0.0", "name": "own", "type": "bridge", "ipam": {"type": "host-local", **ipam}}
    with pytest.raises(ConfigError, match=complaint):
        network_of(CniFile(name="own.conf", text=json.dumps(doc)))


# --- routes -------------------------------------------------------------------------------------------------------


def test_on_the_lan_nobody_needs_a_route() -> None:
    lab = lab_of("macvlan")
    assert pod_nets(lab) == {node.name: () for node in lab.nodes}
    assert [ways(lab, whose) for whose in ("node1", "")] == [{}, {}]


def test_nodes_know_the_networks_of_the_others_and_the_router_all() -> None:
    lab = lab_of("ipvlan-l3")
    every = {parse_net(net): lab.node(node).ipv4.ip for node, net in ROUTED.items()}
    assert ways(lab, "") == every
    assert ways(lab, "node2") == {net: via for net, via in every.items() if via != parse_ip("10.211.55.8")}
    assert ways(lab_of("ipvlan-l3", routes=False), "node2") == {}


def test_where_agents_route_the_lab_tells_the_router_alone(tmp_path: Path) -> None:
    files = written(
        tmp_path, *(conf("ipvlan", net, mode="l3", master="eth0", autoRoutes=True) for net in ROUTED.values())
    )
    lab = lab_of(OWN_NETWORK, files=files)
    assert (lab.has_agents, ways(lab, "node2"), len(ways(lab, ""))) == (True, {}, 3)


# --- what to expect -----------------------------------------------------------------------------------------------


def expected(lab: Topology, *more: str) -> Foretold:
    """Of the lab's pods, and `more` on node1."""
    pods = [one for one in lab.blueprint.objects if isinstance(one, Pod)]
    for name in more:
        spec = {"nodeName": "node1", "containers": [{"name": "c", "image": "i"}]}
        pods.append(convert(Pod, {"metadata": {"name": name, "namespace": "default"}, "spec": spec}))
    named = {f"default/{pod.name}": pod for pod in pods}
    everyone = [Endpoint(name, "", "192.0.2.1") for name in named] + answering_nodes(lab)
    return foretold(lab, [*everyone, Endpoint(OUTSIDE, "", "198.51.100.9")], named, 4)


def closed(found: Foretold) -> set[tuple[str, str]]:
    return {pair for pair, good in found.expected.items() if not good}


def both_ways(pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


OWN_NODES = both_ways((f"default/pod{i}", f"node{i}") for i in (1, 2, 3))
PRIVATE = OWN_NODES | both_ways([("default/pod1", "default/more"), ("default/more", "node1")])


@pytest.mark.parametrize("cni", ["ipvlan-l2", "macvlan"])
def test_only_a_node_and_its_own_pods_do_not_reach_each_other(cni: str) -> None:
    found = expected(lab_of(cni), "more")
    assert closed(found) == OWN_NODES | both_ways([("default/more", "node1")])
    assert len(found.expected) == 8 * 7
    assert {found.why[pair] for pair in closed(found)} == set(found.why.values())
    assert all('"hostAccess": "sibling"' in why for why in found.why.values())


def test_bridges_are_open_to_everybody() -> None:
    found = expected(lab_of("bridge"))
    assert (closed(found), len(found.expected)) == (set(), 7 * 6)


def test_routed_pods_reach_their_node_by_way_of_the_router() -> None:
    found = expected(lab_of("ipvlan-l3"))
    assert closed(found) == set()
    assert {pair for pair, why in found.why.items() if "by way of the router alone" in why} == OWN_NODES


def test_without_routes_routed_pods_reach_nobody_elsewhere() -> None:
    found = expected(lab_of("ipvlan-l3", routes=False))
    pods = both_ways((f"default/pod{i}", f"default/pod{j}") for i, j in ((1, 2), (2, 3), (1, 3)))
    assert closed(found) == OWN_NODES | pods
    assert ("default/pod1", OUTSIDE) not in found.expected


@pytest.mark.parametrize(
    ("more", "shut"),
    [
        ({"hostAccess": "sibling"}, set()),
        ({"mode": "private"}, PRIVATE),
    ],
    ids=["sibling", "private"],
)
def test_what_options_change(more: dict[str, Any], shut: set[tuple[str, str]], tmp_path: Path) -> None:
    originals = [json.loads((CASES / f"macvlan/{name}.conf").read_text()) for name in NODES.values()]
    found = expected(lab_of(OWN_NETWORK, files=written(tmp_path, *(one | more for one in originals))), "more")
    assert closed(found) == shut


def test_of_plugins_that_are_not_known_and_of_routes_of_ones_own_nothing_is_expected(tmp_path: Path) -> None:
    found = expected(lab_of(OWN_NETWORK, files=written(tmp_path, conf("vlan"))))
    assert not [pair for pair in found.expected if "default/pod1" in pair]
    no_default = [conf("bridge", net, routes=False) for net in ROUTED.values()]
    found = expected(lab_of(OWN_NETWORK, files=written(tmp_path, *no_default)))
    assert ("default/pod1", "default/pod2") not in found.expected
    assert found.expected["default/pod1", "node1"]


def test_of_a_lan_that_has_no_gateway_for_the_pods_nothing_is_expected(tmp_path: Path) -> None:
    found = expected(lab_of(OWN_NETWORK, files=written(tmp_path, *(conf("macvlan", net) for net in ROUTED.values()))))
    assert ("default/pod1", "default/pod2") not in found.expected
    assert not found.expected["default/pod1", "node1"]


def test_reasons_are_told_once_and_only_for_what_is_so() -> None:
    found = Foretold({("a", "b"): False, ("b", "a"): False}, {("a", "b"): "a wall", ("b", "a"): "a wall"})
    shut, through = Result(Outcome.TIMEOUT), Result(Outcome.CONNECTED)
    assert found.notes(Matrix("t", ("a", "b"), {("a", "b"): shut, ("b", "a"): shut})) == ("a wall",)
    assert found.notes(Matrix("t", ("a", "b"), {("a", "b"): through, ("b", "a"): through})) == ()


def test_the_table_says_who_disagrees_and_why_not() -> None:
    names = ("default/pod1", "node1", "outside")
    good, shut = Result(Outcome.CONNECTED), Result(Outcome.TIMEOUT)
    results = {(a, b): good for a in names for b in names if a != b} | {("node1", "outside"): shut}
    matrix = Matrix("t", names, results, judge="network", notes=("a reason",))
    console = Console(file=StringIO(), width=100)
    console.print(render(matrix, {("node1", "outside"): True, ("outside", "node1"): False}, 100))
    console.print(render(matrix, {("node1", "outside"): False}, 100))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "! packets and configuration disagree" in said
    assert "node1 to outside: such a network has a way, the packets say timeout" in said
    assert "outside to node1: such a network has no way, the packets say connected" in said
    assert "packets and configuration agree on all 1 pairs compared" in said
    assert said.count("├") == 2, "one line between pods and all others, in each table"
    assert said.count("a reason") == 2
    assert to_document(matrix)["notes"] == ["a reason"]
