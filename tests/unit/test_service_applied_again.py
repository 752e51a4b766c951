"""A Service that is written again keeps what it was given and does not ask for otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tortie.calc.defaults import defaulted
from tortie.model.meta import Metadata
from tortie.model.service import Service, ServicePort, ServiceSpec

PORT = ServicePort(port=80)
GIVEN = ServiceSpec(
    type="NodePort",
    cluster_ip="10.96.0.9",
    cluster_ips=("10.96.0.9", "fd00::9"),
    ip_families=("IPv4", "IPv6"),
    ip_family_policy="PreferDualStack",
    ports=(replace(PORT, node_port=30080), ServicePort(name="udp", port=80, protocol="UDP", node_port=30081)),
)


def again(old: ServiceSpec, **fields: Any) -> ServiceSpec:
    name = Metadata(name="web", namespace="red")
    return defaulted(Service(metadata=name, spec=ServiceSpec(**fields)), Service(metadata=name, spec=old)).spec


def test_addresses_and_node_ports_stay() -> None:
    new = again(GIVEN, type="NodePort", ports=(ServicePort(port=80, target_port=8080), ServicePort(name="x", port=81)))
    assert (new.cluster_ip, new.cluster_ips) == (GIVEN.cluster_ip, GIVEN.cluster_ips)
    assert (new.ip_families, new.ip_family_policy) == (("IPv4", "IPv6"), "PreferDualStack")
    assert [port.node_port for port in new.ports] == [30080, 0]
    assert new.ports[0].target_port == 8080


def test_address_that_is_written_keeps_its_fellow() -> None:
    new = again(GIVEN, cluster_ip="10.96.0.9", ports=(PORT,))
    assert (new.cluster_ip, new.cluster_ips) == (GIVEN.cluster_ip, GIVEN.cluster_ips)
    assert (new.ip_families, new.ip_family_policy) == (("IPv4", "IPv6"), "PreferDualStack")


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"cluster_ip": "10.96.0.10"}, ("10.96.0.10", ())),
        ({"cluster_ip": "None"}, ("None", ())),
        ({"cluster_ip": "10.96.0.10", "cluster_ips": ("10.96.0.10",)}, ("10.96.0.10", ("10.96.0.10",))),
        ({"type": "ExternalName", "external_name": "x.example"}, ("", ())),
    ],
)
def test_what_is_asked_for_counts(fields: dict[str, Any], want: tuple[str, tuple[str, ...]]) -> None:
    new = again(GIVEN, **fields)
    assert (new.cluster_ip, new.cluster_ips) == want


def test_node_ports_go_with_the_type() -> None:
    assert [port.node_port for port in again(GIVEN, ports=(PORT,)).ports] == [0]


def test_port_of_health_checks() -> None:
    local = {"type": "LoadBalancer", "external_traffic_policy": "Local"}
    old = replace(GIVEN, health_check_node_port=30500, **local)
    assert again(old, **local).health_check_node_port == 30500
    assert again(old, type="LoadBalancer").health_check_node_port == 0


def test_new_one_is_as_it_is_written() -> None:
    written = Service(metadata=Metadata(name="web", namespace="red"), spec=ServiceSpec(ports=(PORT,)))
    assert defaulted(written, None).spec == written.spec
