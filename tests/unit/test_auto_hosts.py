"""Host endpoints that controllers make (situation 59)."""

from __future__ import annotations

from typing import Any

import pytest

from ipam_cluster import matches
from tortie.controllers.auto_hosts import (
    CREATED_BY,
    CREATOR,
    AutoHostEndpoints,
    addresses,
    changes,
    endpoint_name,
    wanted,
)
from tortie.model.controllers import AutoHostEndpointConfig, HostEndpointTemplate, KubeControllersConfiguration
from tortie.model.document import parse
from tortie.model.hostendpoint import HostEndpoint, HostEndpointSpec
from tortie.model.meta import Metadata, changed
from tortie.model.node import ClusterInformation, ClusterInformationSpec, Node
from tortie.store.memory import MemoryStore

NODE = """
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: n1, labels: {rack: a}}
spec:
  addresses:
  - {address: 192.0.2.1/24, type: CalicoNodeIP}
  - {address: 10.9.9.9, type: InternalIP}
  - {address: 192.0.2.1, type: InternalIP}
  bgp: {ipv4Address: 192.0.2.1/24, ipv6Address: "2001:db8::1/64", ipv4IPIPTunnelAddr: 10.0.0.1}
  ipv4VXLANTunnelAddr: 10.0.0.2
  ipv6VXLANTunnelAddr: fd00::2
  wireguard: {interfaceIPv4Address: 10.0.0.3, interfaceIPv6Address: fd00::3}
  interfaces:
  - {name: eth0, addresses: [192.0.2.1/24]}
  - {name: eth1, addresses: [172.16.0.1/16, "fd01::1/64"]}
"""
SWITCH = """
apiVersion: projectcalico.org/v3
kind: KubeControllersConfiguration
metadata: {name: default}
spec: {controllers: {node: {hostEndpoint: {autoCreate: Enabled}}}}
"""
IN_ORDER = (
    "192.0.2.1", "2001:db8::1", "10.0.0.1", "10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3", "10.9.9.9", "172.16.0.1",
    "fd01::1",
)  # fmt: skip


def one(text: str) -> Any:
    (found,) = parse(text)
    return found


def auto(**config: Any) -> AutoHostEndpointConfig:
    return AutoHostEndpointConfig(auto_create="Enabled", **config)


def test_59_one_for_every_node() -> None:
    (made,) = wanted([one(NODE)], auto(), matches)
    assert made.name == "n1-auto-hep"
    assert made.labels == {"rack": "a", CREATED_BY: CREATOR}
    assert made.spec == HostEndpointSpec(
        node="n1", interface_name="*", expected_ips=IN_ORDER, profiles=("projectcalico-default-allow",)
    )
    assert list(wanted([one(NODE)], AutoHostEndpointConfig(), matches)) == []
    assert addresses(Node(metadata=Metadata(name="bare")).spec) == ()


def test_templates() -> None:
    lan = HostEndpointTemplate(
        generate_name="lan", interface_cidrs=("172.16.0.0/12",), node_selector="rack == 'a'", labels={"rack": "own"}
    )
    named = HostEndpointTemplate(generate_name="if", interface_pattern="^eth")
    nowhere = HostEndpointTemplate(generate_name="no", interface_cidrs=("203.0.113.0/24",))
    other = HostEndpointTemplate(generate_name="other", interface_pattern=".*", node_selector="rack == 'b'")
    config = auto(create_default_host_endpoint="Disabled", templates=(lan, named, nowhere, other))
    made = {each.name: each for each in wanted([one(NODE)], config, matches)}
    assert sorted(made) == ["n1-if-eth0-auto-hep", "n1-if-eth1-auto-hep", "n1-lan-auto-hep"]
    assert made["n1-lan-auto-hep"].spec.expected_ips == ("172.16.0.1",)
    assert made["n1-lan-auto-hep"].spec.interface_name == ""
    assert made["n1-lan-auto-hep"].labels["rack"] == "own"
    assert made["n1-if-eth1-auto-hep"].spec.interface_name == "eth1"
    assert made["n1-if-eth1-auto-hep"].spec.expected_ips == ("172.16.0.1", "fd01::1")


def test_long_names_are_hashed() -> None:
    name = endpoint_name("n" * 250)
    assert name.endswith("-auto-hep")
    assert len(name) < 60
    assert name == name.lower()
    assert endpoint_name("m" * 250) != name


def test_what_others_made_stays(caplog: pytest.LogCaptureFixture) -> None:
    theirs = HostEndpoint(
        metadata=Metadata(name="n1-auto-hep"), spec=HostEndpointSpec(node="n1", interface_name="eth0")
    )
    assert list(changes(wanted([one(NODE)], auto(), matches), [theirs])) == []
    assert "n1-auto-hep is not ours" in caplog.text


async def test_life() -> None:
    store = MemoryStore()
    controller = AutoHostEndpoints(store, matches)
    node = await store.create(one(NODE))
    assert await controller.run_once() == 0
    assert (await store.list(HostEndpoint)).items == ()
    config = await store.create(one(SWITCH))
    assert await controller.run_once() == 0
    (made,) = (await store.list(HostEndpoint)).items
    assert made.name == "n1-auto-hep"
    assert await controller.run_once() == 0  # nothing to do: not written again
    assert (await store.get(HostEndpoint, made.name)).metadata.resource_version == made.metadata.resource_version
    await store.update(changed(node, labels={"rack": "b"}))
    await controller.run_once()
    assert (await store.get(HostEndpoint, made.name)).labels["rack"] == "b"
    locked = ClusterInformation(metadata=Metadata(name="default"), spec=ClusterInformationSpec(datastore_ready=False))
    await store.create(locked)
    await store.delete(KubeControllersConfiguration, config.name)
    await controller.run_once()
    assert len((await store.list(HostEndpoint)).items) == 1  # locked
    await store.delete(ClusterInformation, "default")
    await controller.run_once()
    assert (await store.list(HostEndpoint)).items == ()  # switched off, what was made goes


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("templates: [{generateName: x}]", "interfaceCIDRs"),
        ('templates: [{generateName: x, interfacePattern: "("}]', "interfacePattern"),
        ("templates: [{generateName: x, interfaceCIDRs: [nonsense]}]", "interfaceCIDRs[0]"),
        ("autoCreate: Maybe", "autoCreate"),
    ],
)
def test_what_is_wrong_is_said(field: str, why: str) -> None:
    from tortie.base.errors import ConfigError
    from tortie.model.document import problems

    text = SWITCH.replace("{autoCreate: Enabled}", "{" + field + "}")
    try:
        said = [str(each) for each in problems(one(text))]
    except (ConfigError, ExceptionGroup) as error:
        said = [str(each) for each in getattr(error, "exceptions", [error])]
    assert any(why in each for each in said), said
