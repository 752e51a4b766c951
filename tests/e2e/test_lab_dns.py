"""Names in a lab: programs of pods find the cluster's services by their names, as they would in any cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from labs import Lab, pod, until
from tortie.lab import network
from tortie.lab.dns import ADDRESSES, NAMESPACE
from tortie.model.k8s import Pod

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")]

RED = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red"}}
KUBERNETES = "kubernetes.default.svc.cluster.local"
SLEEP = ["sleep", "600"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two nodes, the cluster's name servers, and a service without a ClusterIP."""
    lab = Lab(f"d{os.getpid()}")
    try:
        lab.up()
        headless = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "red"},
            "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "sql", "port": 5432}]},
        }  # fmt: skip
        lab.apply(RED, headless, pod("a", node="node1"), *(_db(number) for number in (1, 2)))
        until(lambda: all(lab.phase(name) == "Running" for name in ("a", "db-1", "db-2")))
        until(lambda: all(one.status.phase == "Running" for one in servers(lab)))
        yield lab
    finally:
        lab.tortie("lab", "down", "--name", lab.name)
        assert network.leftovers(lab.directory) == []


def _db(number: int) -> dict[str, Any]:
    made = pod(f"db-{number}", node=f"node{number}", hostname=f"db-{number}", subdomain="db")
    made["metadata"]["labels"] = {"app": "db"}
    return made


def servers(lab: Lab) -> list[Pod]:
    found = json.loads(lab.tortie("get", "pods", "-n", NAMESPACE, "-o", "json"))["items"]
    assert [one["metadata"]["name"] for one in found] == ["coredns-1", "coredns-2"]
    return [lab.of(Pod, one["metadata"]["name"], NAMESPACE) for one in found]


def looked_up(lab: Lab, name: str, at: str = "", where: str = "red/a") -> str:
    """What busybox makes of a name; it fails where there is none."""
    words = ("busybox", "nslookup", name, *((at,) if at else ()))
    return lab.tortie("lab", "exec", where, "--", "sh", "-c", f"{' '.join(words)} 2>&1 || true")


def test_each_server_knows_the_api_servers_name(lab: Lab) -> None:
    for one in servers(lab):
        for ip in one.status.pod_ips:
            until(lambda ip=ip: "Address: 10.96.0.1\n" in looked_up(lab, KUBERNETES, ip.ip))


def test_it_is_asked_at_its_services_address_by_whatever_a_pod_runs(lab: Lab) -> None:
    until(lambda: "Address: 10.96.0.1\n" in looked_up(lab, KUBERNETES))
    script = (
        "import socket; print(socket.gethostbyname('kubernetes.default'), socket.gethostbyname('kube-dns.kube-system'))"
    )
    said = lab.tortie("lab", "exec", "red/a", "--", "python3", "-c", script)
    assert said.split() == ["10.96.0.1", ADDRESSES[4]]


def test_pods_of_a_headless_service_are_found_by_their_hostnames(lab: Lab) -> None:
    ips = sorted(lab.pod(f"db-{number}").status.pod_ip for number in (1, 2))
    at = servers(lab)[0].status.pod_ip
    until(lambda: all(f"Address: {ip}\n" in looked_up(lab, "db.red.svc.cluster.local", at) for ip in ips))
    until(lambda: f"Address: {lab.pod('db-2').status.pod_ip}\n" in looked_up(lab, "db-2.db.red.svc.cluster.local", at))


def test_programs_and_visitors_of_a_pod_find_the_same_resolv_conf(lab: Lab) -> None:
    lab.apply(pod("says", node="node2", command=["sh", "-c", "cat /etc/resolv.conf; sleep 600"]))
    until(lambda: lab.phase("says") == "Running")
    expected = (
        f"nameserver {ADDRESSES[4]}\nsearch red.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    assert lab.tortie("lab", "exec", "red/says", "--", "cat", "/etc/resolv.conf") == expected
    until(lambda: lab.tortie("lab", "logs", "red/says") == expected)
    with open("/etc/resolv.conf") as file:
        assert ADDRESSES[4] not in file.read(), "the machine's own is as it was"
    with open("/proc/self/mountinfo") as file:
        assert lab.name not in "".join(line for line in file if "resolv.conf" in line)


def test_a_pod_says_whom_it_asks(lab: Lab) -> None:
    with open("/etc/resolv.conf") as file:
        machine = file.read()
    config = {"nameservers": ["192.0.2.53"], "searches": ["example.com"], "options": [{"name": "ndots", "value": "2"}]}
    lab.apply(
        pod("default", dnsPolicy="Default"),
        pod("none", dnsPolicy="None", dnsConfig=config),
        pod("host", command=SLEEP, hostNetwork=True),
        pod("both", command=SLEEP, hostNetwork=True, dnsPolicy="ClusterFirstWithHostNet"),
    )
    until(lambda: all(lab.phase(name) == "Running" for name in ("default", "none", "host", "both")))

    def found(name: str) -> str:
        return lab.tortie("lab", "exec", f"red/{name}", "--", "cat", "/etc/resolv.conf")

    assert found("default") == found("host") == machine
    assert found("none") == "nameserver 192.0.2.53\nsearch example.com\noptions ndots:2\n"
    assert found("both").startswith(f"nameserver {ADDRESSES[4]}\n")
    assert "dnsConfig" not in lab.tortie("lab", "status")


def test_a_network_namespace_goes_although_a_program_began_before(lab: Lab) -> None:
    """A program's mounts are its own, and what is unmounted outside does not live on there."""
    lab.apply(pod("stays", node="node1", command=SLEEP), pod("goes", node="node1"))
    until(lambda: lab.phase("stays") == lab.phase("goes") == "Running")
    pid = lab.directory.pod_pid("red", "stays", "main").read_text().split()[0]
    name = next(one for one in os.listdir("/run/netns") if one.endswith("goes") or "goes" in one)
    lab.tortie("delete", "pod", "goes", "-n", "red")
    until(lambda: name not in os.listdir("/run/netns"))
    with open(f"/proc/{pid}/mountinfo") as file:
        assert f"/{name} " not in file.read()


def test_a_server_that_is_killed_is_started_again(lab: Lab) -> None:
    one = servers(lab)[0]
    file = lab.directory.pod_pid(NAMESPACE, one.name, "coredns")
    was = file.read_text().split()[0]
    os.kill(int(was), 9)
    until(lambda: file.read_text().split()[0] != was)
    until(lambda: "Address: 10.96.0.1\n" in looked_up(lab, KUBERNETES, one.status.pod_ip))
