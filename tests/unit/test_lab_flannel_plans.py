"""Labs of flannel's, on paper: subnets, files, what their matrices are held against, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tortie.base.errors import ConfigError
from tortie.flannel.backends import MODULES
from tortie.flannel.config import parse as parse_network
from tortie.flannel.options import parse as parse_flags
from tortie.lab import agents, flannel, flanneld, networks
from tortie.lab.blueprint import document, parse, shape
from tortie.lab.chart import chart
from tortie.lab.cluster import NodeRow, answering_nodes
from tortie.lab.defaults import FLANNEL_BACKENDS, IPV4_BACKENDS
from tortie.lab.flanneld import FlanneldState
from tortie.lab.objects import initial_objects
from tortie.lab.probe import Endpoint
from tortie.lab.reach import foretold
from tortie.lab.sessions import wanted_by
from tortie.lab.state import LabDirectory
from tortie.lab.topology import OUTSIDE, Topology, laid_out
from tortie.model.bgp import BGPConfiguration
from tortie.model.document import convert
from tortie.model.ipam import IPPool
from tortie.model.k8s import K8sNode, Pod

DIRECTORY = LabDirectory("a", Path("/labs"))
POOL6 = "fd00:10:244::/56"


def lab_of(**how: Any) -> Topology:
    return laid_out("a", flannel.blueprint_of(**how))


# --- what there is ------------------------------------------------------------------------------------------------


def test_each_node_has_a_subnet_as_kubernetes_gives_them_out() -> None:
    lab = lab_of(pool6=POOL6, nodes=12)
    found = {node.name: [str(net) for net in flannel.pod_cidrs(lab, node)] for node in lab.nodes}
    assert found["node1"] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    assert found["node12"] == ["10.244.12.0/24", "fd00:10:244:c::/64"]
    objects = list(initial_objects(lab, "0" * 32))
    nodes = {one.name: one for one in objects if isinstance(one, K8sNode)}
    assert nodes["node2"].spec.pod_cidrs == ("10.244.2.0/24", "fd00:10:244:2::/64")
    assert nodes["node2"].spec.pod_cidr == "10.244.2.0/24"
    assert not [one for one in objects if isinstance(one, IPPool)]
    (bgp,) = (one for one in objects if isinstance(one, BGPConfiguration))
    assert bgp.spec.node_to_node_mesh_enabled is False
    assert laid_out("a", shape(document(lab.blueprint))) == lab, "lab.json keeps all of it"


def test_with_policy_there_are_agents_and_without_there_are_none() -> None:
    plain, canal = lab_of(), lab_of(policy=True)
    assert (plain.has_agents, plain.blueprint.plugins_alone) == (False, True)
    assert (canal.has_agents, canal.blueprint.plugins_alone) == (True, False)
    assert len(answering_nodes(plain)) == 3
    assert answering_nodes(canal) == []
    told = agents.program(DIRECTORY, canal, canal.nodes[0]).environment
    nets = canal.blueprint.flannel.nets if canal.blueprint.flannel else ()
    assert told == {"CALICO_NETWORKING_BACKEND": "none", "TORTIE_CLUSTER_CIDR": ",".join(map(str, nets))}


@pytest.mark.parametrize("backend", FLANNEL_BACKENDS)
def test_net_conf_is_flannels(backend: str) -> None:
    assert backend in MODULES
    pool6 = "" if backend in IPV4_BACKENDS else POOL6
    entry = lab_of(backend=backend, pool6=pool6).blueprint.flannel
    assert entry is not None
    config = parse_network(flannel.net_conf(entry), "net-conf.json")
    assert (config.backend_type, config.v6 is not None) == (backend, bool(pool6))


def test_a_daemon_is_told_where_its_files_are() -> None:
    lab = lab_of(policy=True)
    program = flanneld.program(DIRECTORY, lab, lab.nodes[1])
    words = list(program.argv)
    options = parse_flags(words[words.index("tortie.flannel") + 1 :], {})
    assert options.socket == program.socket == DIRECTORY.flanneld_socket("node2")
    assert options.subnet_file == DIRECTORY.subnet_file("node2")
    assert (options.ip_masq, options.kube_subnet_mgr, options.iface) == (True, True, ("eth0",))
    assert options.ip_blackhole_route
    assert program.environment["NODE_NAME"] == "node2"
    assert program.environment["WIREGUARD_KEY_FILE"].startswith(str(DIRECTORY.node("node2")))


def test_the_networks_of_nodes() -> None:
    lab = lab_of(backend="host-gw")
    found = flannel.conflist(DIRECTORY, lab, lab.nodes[0], Path("/var-lib"))
    assert (found["name"], [one["type"] for one in found["plugins"]]) == ("cbr0", ["flannel", "portmap"])
    assert found["plugins"][0]["subnetFile"] == "/labs/a/nodes/node1/subnet.env"
    assert str(networks.networks(lab)["node3"]) == "flannel host-gw, 10.244.3.0/24"


@pytest.mark.parametrize(
    ("how", "mtu"),
    [({}, 1450), ({"pool6": POOL6}, 1430), ({"backend": "host-gw"}, 1500), ({"backend": "wireguard"}, 1420)],
)
def test_canals_pods_have_room_for_the_tunnel(how: Any, mtu: int) -> None:
    lab = lab_of(policy=True, **how)
    (plugin,) = flannel.conflist(DIRECTORY, lab, lab.nodes[0], Path("/var-lib"))["plugins"]
    assert (plugin["type"], plugin["mtu"]) == ("calico", mtu)
    words = [one["subnet"] for ranges in plugin["ipam"]["ranges"] for one in ranges]
    assert words == ["usePodCidr", "usePodCidrIPv6"][: len(words)]
    assert (len(words) == 2) is ("pool6" in how)
    assert json.dumps(plugin).count("/var-lib/networks") == 1


def test_a_file_may_say_racks_and_options() -> None:
    blueprint = parse("{racks: [{name: all, nodes: [{count: 2}]}], flannel: {options: {Port: 4789}}}", "lab.yaml")
    assert blueprint.flannel is not None
    assert json.loads(flannel.net_conf(blueprint.flannel))["Backend"] == {"Type": "vxlan", "Port": 4789}
    assert blueprint.mesh is False
    assert [str(net) for net in blueprint.unknown_outside] == ["10.244.0.0/16"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("flannel: {backend: gre}", 'lab.yaml: flannel.backend: "gre" is no backend of a lab, known: host-gw, ipip'),
        ("flannel: {}, cni: {files: [{name: 1.conf, text: x}]}", "lab.yaml: flannel: and cni exclude each other"),
        ("flannel: {}, pools: [{name: a, cidr: 10.1.0.0/16}]", "lab.yaml: pools: addresses are flannel's to give"),
        ("flannel: {network6: 10.2.0.0/16}", "lab.yaml: flannel.network6: 10.2.0.0/16 is not an IPv6 network"),
        ("flannel: {network: 172.30.0.0/16}", "flannel.network: 172.30.0.0/16 overlaps 172.30.0.0/24 of rack all"),
        ("flannel: {network: nonsense}", "lab.yaml: flannel.network: "),
        ("flannel: {bakend: udp}", "lab.yaml: flannel.bakend"),
    ],
)
def test_a_mistake_is_named_with_its_field(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(f"{{racks: [{{name: all, nodes: [{{count: 2}}]}}], {text}}}", "lab.yaml")
    assert complaint in str(refused.value)


def test_the_tour_is_not_of_flannels_labs() -> None:
    with pytest.raises(ConfigError, match="tortie lab up --cni canal, and has no tour"):
        networks.blueprint_of("canal")


# --- what is expected, and said -----------------------------------------------------------------------------------


def endpoint(name: str, ipv4: str) -> Endpoint:
    return Endpoint(name, "", ipv4, "")


def test_all_reach_all_but_pods_are_not_reached_from_outside() -> None:
    lab = lab_of(nodes=2)
    everyone = [
        *(endpoint(f"default/pod{i}", f"10.244.{i}.2") for i in (1, 2)),
        *(endpoint(f"node{i}", f"172.30.0.1{i}") for i in (1, 2)),
        endpoint(OUTSIDE, "198.51.100.9"),
    ]
    pods = {
        f"default/pod{i}": convert(Pod, {"metadata": {"name": f"pod{i}"}, "spec": _spec(f"node{i}")}) for i in (1, 2)
    }
    said = foretold(lab, everyone, pods, 4)
    assert len(said.expected) == 20
    assert {pair for pair, good in said.expected.items() if not good} == {
        (OUTSIDE, "default/pod1"),
        (OUTSIDE, "default/pod2"),
    }
    assert {why.partition(":")[0] for why in said.why.values()} == {"pods are not reached from outside"}


def _spec(node: str) -> dict[str, Any]:
    return {"nodeName": node, "containers": [{"name": "main", "image": "nginx"}]}


def test_nobody_is_expected_to_speak_bgp() -> None:
    lab = lab_of(policy=True)
    wanted = wanted_by(lab, initial_objects(lab, "0" * 32))
    assert wanted.sessions() == []
    drawn = chart(lab, wanted, ())
    assert drawn.nodes[0].way == "flannel vxlan, 10.244.1.0/24"
    assert drawn.counted == "no BGP, agents enforce policy: flannel tells the nodes the ways to one another's pods"


@pytest.mark.parametrize(
    ("pid", "state", "good"),
    [
        (7, FlanneldState(True, True), True),
        (7, FlanneldState(True, False, why="not ready yet"), False),
        (0, FlanneldState(why="no flanneld there"), False),
    ],
)
def test_a_node_is_as_good_as_its_flanneld(pid: int, state: FlanneldState, good: bool) -> None:
    (host, *_) = lab_of().nodes
    row = NodeRow(host, 0, agents.AgentState(), 0, set(), "", has_agent=False, flannel=state, flannel_pid=pid)
    assert row.good is row.ready is good
    with_agent = NodeRow(host, 0, agents.AgentState(), 0, set(), "", flannel=state, flannel_pid=pid)
    assert not with_agent.ready, "its agent does not run"
