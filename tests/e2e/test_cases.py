"""Configurations that users have in hand run unchanged: fixed addresses, addresses outside IPAM, floating IPs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs import Lab, until
from tortie.model.document import parse
from tortie.model.workload import WorkloadEndpoint

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

CASES = Path(__file__).parents[2] / "examples" / "cases" / "calico"
POD = "default/pod5"
GET = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 80), 3)
connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
print(connection.makefile().read().splitlines()[-1])
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    one = Lab(f"cases{os.getpid()}")
    switch = str(CASES.parent / "feature-control.json")
    one.tortie("lab", "up", "--name", one.name, "--nodes", "2", "--netconf", switch)
    yield one
    one.tortie("lab", "down", "--name", one.name)


def start(lab: Lab, case: str) -> str:
    """Starts the pod of a case; the node it runs on."""
    lab.tortie("apply", "-f", str(CASES / case))
    until(lambda: status(lab)["phase"] == "Running")
    return str(json.loads(lab.tortie("get", "pod", "pod5", "-o", "json"))["spec"]["nodeName"])


def status(lab: Lab) -> dict[str, str]:
    document = json.loads(lab.tortie("get", "pod", "pod5", "-o", "json"))
    return {"phase": "", **document.get("status", {})}


def stop(lab: Lab) -> None:
    lab.tortie("delete", "pod", "pod5")
    until(lambda: "pod5" not in lab.tortie("get", "wep", "-A"))


def handles(lab: Lab) -> set[str]:
    """Of pods. The name servers have theirs."""
    document = json.loads(lab.tortie("get", "handles", "-o", "json"))
    return {one["metadata"]["name"] for one in document["items"] if "tortie-ready" not in one["metadata"]["name"]}


def get(lab: Lab, place: str, address: str) -> str:
    """What answers at an address when it is asked from a place of the lab."""
    return lab.tortie("lab", "exec", place, "--", "python3", "-c", GET, address)


def test_a_pod_has_the_address_that_it_asks_for_and_ipam_knows(lab: Lab) -> None:
    start(lab, "pod-ipaddrs.yaml")
    assert status(lab)["podIP"] == "10.244.153.250"
    assert "10.244.153.250" in lab.tortie("ipam", "show", "--ip=10.244.153.250")
    assert "is in use" in lab.tortie("ipam", "show", "--ip=10.244.153.250")
    stop(lab)
    assert "is not assigned" in lab.tortie("ipam", "show", "--ip=10.244.153.250")


def test_an_address_outside_ipam_is_reached_from_the_pods_own_node(lab: Lab) -> None:
    before = handles(lab)
    node = start(lab, "pod-ipaddrsnoipam.yaml")
    assert status(lab)["podIP"] == "80.90.100.200"
    assert f"{POD} on {node}" in get(lab, f"node:{node}", "80.90.100.200")
    assert handles(lab) == before
    stop(lab)


def test_a_floating_ip_leads_to_its_pod_even_from_the_pod_itself(lab: Lab) -> None:
    node = start(lab, "pod-floatingips.yaml")
    assert f"{POD} on {node}" in get(lab, f"node:{node}", "172.18.22.113")
    assert f"{POD} on {node} saw 172.18.22.113" in get(lab, POD, "172.18.22.113")
    wanted = parse((CASES / "workloadendpoint-floatingip.yaml").read_text())[0]
    have = parse(lab.tortie("get", "wep", f"{node}-k8s-pod5-eth0", "-o", "yaml"))[0]
    assert isinstance(wanted, WorkloadEndpoint)
    assert isinstance(have, WorkloadEndpoint)
    assert have.labels == wanted.labels
    same = ("endpoint", "interface_name", "orchestrator", "pod", "ports", "profiles", "service_account_name")
    assert [getattr(have.spec, name) for name in same] == [getattr(wanted.spec, name) for name in same]
    assert [nat.external_ip for nat in have.spec.ip_nats] == ["172.18.22.113"]
    assert f"{have.spec.ip_nats[0].internal_ip}/32" in have.spec.ip_networks


def test_other_nodes_reach_a_floating_ip_that_is_in_a_pool(lab: Lab) -> None:
    """BGP announces what is inside a pool; the pool is for nobody's pods."""
    pool = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": "floating"},
        "spec": {"cidr": "172.18.22.0/24", "assignmentMode": "Manual"},
    }
    lab.apply(pool)
    node = json.loads(lab.tortie("get", "pod", "pod5", "-o", "json"))["spec"]["nodeName"]
    other = "node2" if node == "node1" else "node1"
    until(lambda: "172.18.22.113" in lab.tortie("lab", "exec", f"node:{other}", "--", "ip", "route"))
    assert f"{POD} on {node}" in get(lab, f"node:{other}", "172.18.22.113")


@pytest.mark.parametrize("through", ["the pod's node", "the other node"])
def test_the_outside_reaches_a_floating_ip_by_any_node(lab: Lab, through: str) -> None:
    """The gateway is told by hand, as a router of the site would be; the pod sees who asks."""
    node = json.loads(lab.tortie("get", "pod", "pod5", "-o", "json"))["spec"]["nodeName"]
    topology = lab.directory.read()
    (via,) = (host for host in topology.nodes if (host.name == node) == (through == "the pod's node"))
    route = ["ip", "-n", topology.fabric, "route", "replace", "172.18.22.113/32", "via", str(via.ipv4.ip)]
    subprocess.run(route, check=True, timeout=10)
    assert f"{POD} on {node} saw {topology.outside.ipv4.ip}" in get(lab, "outside", "172.18.22.113")


def test_a_pod_goes_with_its_floating_ip(lab: Lab) -> None:
    node = json.loads(lab.tortie("get", "pod", "pod5", "-o", "json"))["spec"]["nodeName"]
    stop(lab)
    until(lambda: "172.18.22.113" not in lab.tortie("lab", "exec", f"node:{node}", "--", "ip", "route"))
    assert "172.18.22.113" not in lab.tortie(
        "lab", "exec", f"node:{node}", "--", "nft", "list", "table", "inet", "tortie"
    )


def test_without_the_switch_a_pod_says_what_is_missing() -> None:
    one = Lab(f"plain{os.getpid()}")
    one.tortie("lab", "up", "--name", one.name, "--nodes", "1")
    try:
        one.tortie("apply", "-f", str(CASES / "pod-ipaddrsnoipam.yaml"))
        until(lambda: "requested feature is not enabled: ip_addrs_no_ipam" in status(one).get("message", ""))
    finally:
        one.tortie("lab", "down", "--name", one.name)
