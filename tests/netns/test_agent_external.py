"""Pods that an external dataplane connects: the agent assigns, asks it over gRPC, and keeps the endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from agent_node import Node, Sandbox, conflist, endpoints, held, nothing_left, pod
from conftest import Ns
from machines import Container, plain_conflist

from tortie.cni.spec import CniError
from tortie.model.k8s import Pod
from tortie.model.policy import Profile
from tortie.model.store import Store
from tortie.testing.grpc_dataplane import GrpcDataplane

pytestmark = pytest.mark.root


@pytest.fixture
def dataplane(node: Node, tmp_path: Path) -> Iterator[GrpcDataplane]:
    with GrpcDataplane(tmp_path / "vpp.sock", node.ns.path) as server:
        yield server


@pytest.fixture
async def sandbox(
    node: Node, store: Store, dataplane: GrpcDataplane, make_ns: Callable[..., Ns]
) -> AsyncIterator[Sandbox]:
    await store.create(pod("a", labels={"app": "web"}))
    options = {"type": "grpc", "socket": dataplane.target, "extra": "kept", "number": 7}
    yield Sandbox(node, "a", make_ns("a"), conflist=conflist(dataplane_options=options))
    await store.delete(Pod, "a", "red")
    await nothing_left(node, store)


async def test_it_is_told_what_the_pod_is_and_its_answer_is_kept(
    sandbox: Sandbox, dataplane: GrpcDataplane, store: Store, node: Node
) -> None:
    dataplane.container_mac = "02:00:00:00:00:07"
    result = await sandbox.add()
    (request,) = dataplane.adds
    assert request.netns == sandbox.path(None)
    assert request.desired_host_interface_name == sandbox.host_ifname
    assert request.dataplane_options == {"type": "grpc", "socket": dataplane.target, "extra": "kept"}
    assert [each.address for each in request.container_ips] == [each["address"] for each in result["ips"]]
    assert all(each.address.partition("/")[2] in ("26", "122") for each in request.container_ips)
    assert (request.workload.namespace, request.workload.pod, request.workload.node) == ("red", "a", node.name)
    assert request.workload.labels["app"] == "web"
    endpoint = (await endpoints(store))["a"]
    assert (endpoint.spec.interface_name, endpoint.spec.mac) == (sandbox.host_ifname, "02:00:00:00:00:07")
    assert {net.partition("/")[2] for net in endpoint.spec.ip_networks} == {"32", "128"}
    await sandbox.check()
    await sandbox.delete()
    assert [request.netns for request in dataplane.dels] == [sandbox.path(None)]


async def test_container_that_is_no_pod_is_handed_over_too(
    node: Node, dataplane: GrpcDataplane, store: Store, make_ns: Callable[..., Ns]
) -> None:
    options = {"type": "grpc", "socket": dataplane.target}
    one = Container(node, ns=make_ns("plain"), conflist=plain_conflist(dataplane_options=options))
    first = await one.add()
    (request,) = dataplane.adds
    assert (request.desired_host_interface_name, request.workload.orchestrator) == (one.host_ifname, "cni")
    assert (request.workload.pod, request.workload.annotations) == ("", {})
    assert request.container_routes == ("0.0.0.0/0", "::/0")
    assert (await one.endpoint(store)).spec.interface_name == one.host_ifname
    again = await one.add()
    assert [interface["name"] for interface in again["interfaces"]] == [
        interface["name"] for interface in first["interfaces"]
    ]
    assert len(dataplane.adds) == 1
    await one.check()
    await one.delete()
    assert len(dataplane.dels) == 1
    await store.delete(Profile, "plainnet")
    await nothing_left(node, store)


async def test_what_it_refuses_fails_the_call_and_leaves_nothing(
    sandbox: Sandbox, dataplane: GrpcDataplane, store: Store
) -> None:
    dataplane.refuse = "no more buffers"
    with pytest.raises(CniError, match="grpc dataplane error: no more buffers"):
        await sandbox.add()
    assert await held(store) == {}
    assert await endpoints(store) == {}
    dataplane.refuse = None


async def test_an_address_that_is_none_undoes_what_it_did(
    sandbox: Sandbox, dataplane: GrpcDataplane, store: Store
) -> None:
    dataplane.container_mac = "not a MAC"
    with pytest.raises(CniError, match="invalid MAC address"):
        await sandbox.add()
    assert len(dataplane.dels) == 1
    assert await held(store) == {}


async def test_a_type_that_nobody_knows_is_refused_before_anything_is_assigned(
    node: Node, store: Store, make_ns: Callable[..., Ns]
) -> None:
    await store.create(pod("b"))
    options = {"type": "invalid-dataplane-type"}
    one = Sandbox(node, "b", make_ns("b"), conflist=conflist(dataplane_options=options))
    with pytest.raises(CniError, match='invalid dataplane type "invalid-dataplane-type"'):
        await one.add()
    await store.delete(Pod, "b", "red")
    await nothing_left(node, store)
