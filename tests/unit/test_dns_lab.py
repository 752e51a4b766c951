"""Whom the programs of a lab's pod ask for names, and the name server that a lab has."""

from __future__ import annotations

from typing import Any

import pytest

from tortie.lab import dns, topology
from tortie.lab.dns import parse, resolving
from tortie.model.document import read
from tortie.model.k8s import Pod
from tortie.model.service import Service

MACHINE = "# x\ndomain old\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch example.com a\noptions timeout:3 edns0\n"
CLUSTER = "search red.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
IPS = ("10.244.1.5", "fd00::5")


def pod(**spec: Any) -> Pod:
    spec |= {"containers": [{"name": "main"}]}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "red"}, "spec": spec}
    found = read(document)
    assert isinstance(found, Pod)
    return found


ADDED = {"nameservers": ["192.0.2.53", "192.0.2.1"], "searches": ["b"], "options": [{"name": "ndots", "value": "2"}]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, f"nameserver 10.96.0.10\n{CLUSTER}"),
        ({"dnsPolicy": "ClusterFirst"}, f"nameserver 10.96.0.10\n{CLUSTER}"),
        ({"hostNetwork": True}, None),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirst"}, None),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, f"nameserver 10.96.0.10\n{CLUSTER}"),
        ({"dnsPolicy": "Default"}, None),
        (
            {"dnsPolicy": "Default", "dnsConfig": ADDED},
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.53\nsearch example.com a b\n"
            "options timeout:3 edns0 ndots:2\n",
        ),
        ({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.53"]}}, "nameserver 192.0.2.53\n"),
        (
            {"dnsConfig": ADDED},
            "nameserver 10.96.0.10\nnameserver 192.0.2.53\nnameserver 192.0.2.1\n"
            "search red.svc.cluster.local svc.cluster.local cluster.local b\noptions ndots:2\n",
        ),
        (
            {"dnsConfig": {"options": [{"name": "edns0"}, {"name": "ndots", "value": None}]}},
            f"nameserver 10.96.0.10\n{CLUSTER.replace('ndots:5', 'edns0 ndots')}",
        ),
    ],
)
def test_what_a_pod_asks(spec: dict[str, Any], expected: str | None) -> None:
    found, complaint = resolving(pod(**spec), IPS, MACHINE)
    assert (None if found is None else str(found)) == expected
    assert complaint == ""


def test_a_pod_with_ipv6_alone_asks_over_it() -> None:
    found, _ = resolving(pod(), ("fd00::5",), MACHINE)
    assert str(found).startswith("nameserver fd00:10:96::a\n")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (
            {"dnsPolicy": "Cluster"},
            'dnsPolicy "Cluster" is none of ClusterFirst, ClusterFirstWithHostNet, Default, None',
        ),
        ({"dnsPolicy": "None"}, "dnsPolicy None needs dnsConfig.nameservers"),
        ({"dnsConfig": {"servers": []}}, "dnsConfig: Object contains unknown field `servers`"),
        ({"dnsConfig": 5}, "dnsConfig: Expected `object`, got `int`"),
    ],
)
def test_what_cannot_be_honoured_is_said(spec: dict[str, Any], complaint: str) -> None:
    assert resolving(pod(**spec), IPS, MACHINE)[1] == complaint


def test_no_more_than_a_c_library_takes() -> None:
    many = {"nameservers": [f"192.0.2.{n}" for n in range(5)], "searches": [f"s{n}" for n in range(40)]}
    text = str(resolving(pod(dnsPolicy="None", dnsConfig=many), IPS, "")[0])
    assert text.count("nameserver ") == 3
    assert len(parse(text).searches) == 32


def test_the_name_server_of_a_lab() -> None:
    lab = topology.topology("x", 3, "10.244.0.0/16", "fd00:10:244::/56")
    service, *pods = dns.objects(lab)
    assert isinstance(service, Service)
    assert service.title == "Service kube-system/kube-dns"
    assert service.spec.cluster_ips == ("10.96.0.10", "fd00:10:96::a")
    assert [(one.name, one.spec.node_name) for one in pods if isinstance(one, Pod)] == [
        ("coredns-1", "node1"), ("coredns-2", "node2"),
    ]  # fmt: skip
    assert all(one.labels == service.spec.selector for one in pods)
    words = [word for one in pods if isinstance(one, Pod) for word in one.spec.containers[0].command]
    assert words.count("/run/tortie/lab/x/store.db") == 2
