"""`tortie ipam migrate-host-local`: the addresses that host-local has given to a node's pods become IPAM's."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from test_ipam_commands import Shell, now, pool

from ipam_cluster import matches
from tortie.base.addr import parse_ip
from tortie.cli.host_local import Places, migrate
from tortie.ipam.assign import Ipam
from tortie.ipam.hostlocal import moves
from tortie.model.k8s import Container, K8sNode, K8sNodeSpec, Pod, PodSpec, PodStatus
from tortie.model.meta import Metadata
from tortie.model.node import ClusterInformation, Node
from tortie.model.store import Store


@pytest.fixture
def tortie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    shell = Shell(tmp_path, capsys)
    shell.put(Node(metadata=Metadata(name="node1")), pool("10.65.0.0/16"))
    return shell


def local_pod(name: str, ip: str, node: str = "node1") -> Pod:
    spec = PodSpec(containers=(Container(name="c"),), node_name=node)
    return Pod(metadata=Metadata(name=name, namespace="red"), spec=spec, status=PodStatus(phase="Running", pod_ip=ip))


@pytest.fixture
def machine(tortie: Shell, tmp_path: Path) -> Path:
    """A node whose pods have their addresses from host-local."""
    data, binaries = tmp_path / "networks/k8s-pod-network", tmp_path / "bin"
    for directory in (data, binaries):
        directory.mkdir(parents=True)
    for plugin in ("calico", "calico-ipam", "host-local"):
        (binaries / plugin).write_text("")
    tortie.put(K8sNode(metadata=Metadata(name="node1"), spec=K8sNodeSpec(pod_cidr="10.65.7.0/24")))
    tortie.put(local_pod("web", "10.65.7.5"), local_pod("db", "10.65.7.6"), local_pod("far", "10.65.7.8", "node2"))
    return data


def migrated(tortie: Shell, machine: Path, *, status: int = 0) -> list[str]:
    options = ("--node", "node1", "--data-dir", str(machine), "--bin-dir", str(machine.parents[1] / "bin"))
    return tortie("ipam", "migrate-host-local", *options, status=status).splitlines()


def migrated_at_once(tortie: Shell, machine: Path) -> list[str]:
    """The same without waiting for plugins that are running."""
    said: list[str] = []
    places = Places(machine, machine.parents[1] / "bin")
    tortie.ask(lambda store: migrate(store, "node1", places, said.append, settle=0.0))
    return said


def noted(tortie: Shell, ip: str) -> tuple[str | None, dict[str, str]]:
    async def ask(store: Store) -> tuple[str | None, dict[str, str]]:
        held = await Ipam(store, "node1", now, matches).attributes_of(parse_ip(ip))
        return held.handle_id, held.secondary

    return tortie.ask(ask)


def test_addresses_of_host_local_are_taken_over(tortie: Shell, machine: Path) -> None:
    (machine / "10.65.7.5").write_text("abc\r\neth0")
    (machine / "10.65.7.6").write_text("def")
    (machine / "10.65.7.7").write_text("nobody")
    (machine / "10.65.7.8").write_text("elsewhere")
    (machine / "last_reserved_ip.0").write_text("10.65.7.8")
    (machine / "lock").write_text("")
    assert migrated(tortie, machine) == [
        "assign 10.65.7.1 to the IPIP tunnel of node1",
        "assign 10.65.7.5 to red/web",
        "assign 10.65.7.6 to red/db",
        "delete 10.65.7.7: no pod of this node has the address",
        "delete 10.65.7.8: no pod of this node has the address",
        "delete last_reserved_ip.0: it says which address was given last",
        "Migrated. Install the plugins again: tortie cni install.",
    ]
    assert noted(tortie, "10.65.7.1")[0] == "ipip-tunnel-addr-node1"
    noted_web = {"node": "node1", "pod": "web", "namespace": "red"}
    assert noted(tortie, "10.65.7.5") == ("k8s-pod-network.abc", noted_web)
    assert noted(tortie, "10.65.7.6")[0] == "k8s-pod-network.def"
    assert not machine.exists()
    assert [each.name for each in (machine.parents[1] / "bin").iterdir()] == ["calico-ipam"]
    node = tortie.ask(lambda store: store.get(Node, "node1"))
    assert node.spec.bgp is not None
    assert node.spec.bgp.ipv4_ipip_tunnel_addr == "10.65.7.1"
    information = tortie.ask(lambda store: store.get(ClusterInformation, "default"))
    assert information.spec.datastore_ready
    assert migrated(tortie, machine) == [f"There is nothing to migrate: {machine} does not exist."]


def test_what_was_taken_over_already_is_not_taken_twice(tortie: Shell, machine: Path) -> None:
    (machine / "10.65.7.5").write_text("abc")
    tortie.assign("10.65.7.5", handle="k8s-pod-network.abc")
    tortie.assign("10.65.7.1", handle="ipip-tunnel-addr-node1")
    assert migrated_at_once(tortie, machine)[-1].startswith("Migrated.")
    assert tortie.held("k8s-pod-network.abc") == ["10.65.7.5"]


def test_empty_directory_of_host_local_goes(tortie: Shell, machine: Path) -> None:
    assert migrated(tortie, machine)[-1] == f"{machine} was empty."
    assert not machine.exists()
    assert (machine.parents[1] / "bin/calico").exists()


def test_node_without_cidr_for_its_pods(tortie: Shell, machine: Path) -> None:
    node = tortie.ask(lambda store: store.get(K8sNode, "node1"))
    tortie.ask(lambda store: store.update(replace(node, spec=K8sNodeSpec(pod_cidrs=("fd00::/64",)))))
    migrated(tortie, machine, status=2)
    assert tortie.err == "tortie: Node node1: spec.podCIDR: has no IPv4 CIDR for its pods\n"
    assert machine.exists()


def test_files_that_name_no_container_or_no_address() -> None:
    pods = {parse_ip("10.0.0.1"): local_pod("a", "10.0.0.1")}
    files = {"10.0.0.1": "\n", "readme": "hello", "lock": ""}
    assert [str(move) for move in moves(files, pods)] == [
        "delete 10.0.0.1: it names no container",
        "delete readme: no pod of this node has the address",
    ]
