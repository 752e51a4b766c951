"""Situations 46 to 56 of the command line: what is typed, and what calicoctl's users expect to read.

Each is run under calicoctl's name, and what differs under ours is said beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from calicoctl_shell import Calicoctl, document
from tortie.calc.versions import CALICO_VERSION
from tortie.model.ipam import IPPool
from tortie.model.node import ClusterInformation
from tortie.model.store import Store
from tortie.model.workload import endpoint_name, interface_name

POOL = document("IPPool", "p", "cidr: 192.168.0.0/16, blockSize: 26, natOutgoing: true")
NODES = (
    document("Node", "n1", "bgp: {ipv4Address: 10.0.0.1/24}"),
    document("Node", "n2", "bgp: {ipv4Address: 10.0.0.2/24, asNumber: 65001}"),
)


@pytest.fixture
def calicoctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Calicoctl:
    return Calicoctl(tmp_path, capsys)


def s46_names_of_a_pods_endpoint(calicoctl: Calicoctl) -> None:
    assert endpoint_name("node-1", "k8s", "my-pod", "eth0") == "node--1-k8s-my--pod-eth0"
    digest = hashlib.sha1(b"kube-system.my-pod").hexdigest()[:11]
    assert interface_name("kube-system", "my-pod") == f"cali{digest}"
    spec = f"orchestrator: k8s, node: node-1, pod: my-pod, endpoint: eth0, interfaceName: cali{digest}, "
    spec += "ipNetworks: [192.168.1.5/32]"
    calicoctl.apply(document("WorkloadEndpoint", "node--1-k8s-my--pod-eth0", spec, "kube-system"))
    heading, row = calicoctl("get", "wep", "-n", "kube-system").split("\n")[:2]
    assert heading.split() == ["NAMESPACE", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE"]
    assert row.split() == ["kube-system", "my-pod", "node-1", "192.168.1.5/32", f"cali{digest}"]


def s47_a_pools_block_size_does_not_change(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    calicoctl.apply(POOL.replace("26", "28"), status=1)
    assert calicoctl.err.startswith("failed to apply 'IPPool' resource: [")
    assert "spec.blockSize: cannot change from 26 to 28" in calicoctl.err
    assert calicoctl.ask(lambda store: store.get(IPPool, "p")).spec.block_size == 26
    calicoctl.tortie("apply", "-f", calicoctl.file(POOL.replace("26", "28")), status=2)


def s48_an_outdated_document(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    old = calicoctl("get", "ippool", "p", "-o", "yaml")
    assert calicoctl.apply(old.replace("natOutgoing: true", "natOutgoing: false")).startswith("Successfully applied 1")
    latest = calicoctl.ask(lambda store: store.get(IPPool, "p")).metadata.resource_version
    calicoctl.apply(old, status=1)
    assert f"is out of date (latest: {latest})" in calicoctl.err


def s49_nodes_with_the_clusters_as_number(calicoctl: Calicoctl) -> None:
    calicoctl.apply(*NODES)
    assert calicoctl("get", "nodes", "-o", "wide") == (
        "NAME   ASN       IPV4          IPV6   \n"
        "n1     (64512)   10.0.0.1/24          \n"
        "n2     65001     10.0.0.2/24          \n"
        "\n"
    )


def s50_a_global_peer(calicoctl: Calicoctl) -> None:
    calicoctl.apply(document("BGPPeer", "tor", "peerIP: 10.0.0.9, asNumber: 64999"))
    assert calicoctl("get", "bgppeers").split("\n")[1].split() == ["tor", "10.0.0.9", "(global)", "64999"]


def s51_create_what_is_there(calicoctl: Calicoctl) -> None:
    one = calicoctl.file(POOL)
    assert calicoctl("create", "-f", one) == "Successfully created 1 'IPPool' resource(s)\n"
    said = "failed to create 'IPPool' resource: [resource already exists: IPPool(p)]\n"
    assert calicoctl("create", "-f", one, status=1) == ""
    assert calicoctl.err == said
    calicoctl.tortie("create", "-f", one, status=1)
    assert calicoctl.err == f"tortie: {said}"
    assert calicoctl("create", "-f", one, "--skip-exists") == "Successfully created 1 'IPPool' resource(s)\n"


def s52_every_patch_is_a_strategic_merge(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    said = calicoctl("patch", "ippool", "p", "-p", '{"spec":{"natOutgoing":false}}', "-t", "json")
    assert said == "Successfully patched 1 'IPPool' resource\n"
    assert not calicoctl.ask(lambda store: store.get(IPPool, "p")).spec.nat_outgoing


def s53_a_label_that_is_there(calicoctl: Calicoctl) -> None:
    calicoctl.apply(*NODES)
    assert calicoctl("label", "nodes", "n1", "rack=a") == "Successfully set label rack on Node n1\n"
    calicoctl("label", "nodes", "n1", "rack=b", status=1)
    assert "--overwrite" in calicoctl.err
    said = calicoctl("label", "nodes", "n1", "rack=b", "--overwrite")
    assert said == "Successfully updated label rack on Node n1\n"
    assert calicoctl("label", "nodes", "n1", "rack", "--remove") == "Successfully removed label rack from Node n1\n"


def s54_an_address_that_nobody_has(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    assert calicoctl("ipam", "show", "--ip=192.168.1.9") == "192.168.1.9 is not assigned\n"


def s55_a_pool_in_three(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)
    calicoctl("datastore", "migrate", "lock")
    calicoctl("ipam", "split", "3", "--name=p", status=1)
    assert "power of two" in calicoctl.err


def s56_a_cluster_of_another_version(calicoctl: Calicoctl) -> None:
    calicoctl.apply(POOL)

    async def older(store: Store) -> None:
        there = await store.get(ClusterInformation, "default")
        await store.update(replace(there, spec=replace(there.spec, calico_version="v3.1.0")))

    calicoctl.ask(older)
    assert calicoctl("get", "ippools", status=1) == ""
    for said in ("version mismatch", CALICO_VERSION, "v3.1.0", "Use --allow-version-mismatch to override"):
        assert said in calicoctl.err
    assert calicoctl("get", "ippools", "--allow-version-mismatch").startswith("NAME ")
    assert calicoctl("--allow-version-mismatch", "get", "ippools").startswith("NAME ")
    assert "Cluster Version:   v3.1.0\n" in calicoctl("version")
    calicoctl("get", "ippools", status=1)


SITUATIONS: dict[int, Callable[[Calicoctl], None]] = {
    int(name[1:3]): check for name, check in sorted(globals().items()) if name[:1] == "s" and name[1:3].isdecimal()
}


@pytest.mark.parametrize("number", range(46, 57))
def test_situation(number: int, calicoctl: Calicoctl) -> None:
    SITUATIONS[number](calicoctl)
