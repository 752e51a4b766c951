"""Services and slices in few words, for tests of what a node's proxy makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.proxy.state import Backend, Entrance, ProxyState
from tortie.model.document import convert
from tortie.model.meta import Resource
from tortie.model.service import SERVICE_NAME, EndpointSlice, Service

HERE, THERE = "n1", "n2"


def service(
    name: str = "web",
    ip: str = "10.96.0.1",
    namespace: str = "red",
    *,
    port: int = 80,
    node_port: int = 0,
    protocol: str = "TCP",
    created: str = "2025-01-01T00:00:00Z",
    ingress: Iterable[str | dict[str, str]] = (),
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Service:
    """One port named `p`, unless `ports` says others."""
    ports = [{"name": "p", "port": port, "nodePort": node_port, "protocol": protocol}]
    addresses = [each if isinstance(each, dict) else {"ip": each} for each in ingress]
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created, "labels": labels or {}}
    body = {
        "metadata": {**metadata, "annotations": annotations or {}},
        "spec": {"clusterIP": ip, "ports": ports, **spec},
        "status": {"loadBalancer": {"ingress": addresses}},
    }
    return convert(Service, body)


def endpoint(ip: str, node: str = "", **said: Any) -> dict[str, Any]:
    """`ready`, `serving` and `terminating` are conditions, `zones` and `nodes` hints."""
    hints = {
        f"for{key.title()}": [{"name": each} for each in said.pop(key)] for key in ("zones", "nodes") if key in said
    }
    found = {"addresses": [ip], "nodeName": node, "conditions": said}
    return {**found, "hints": hints} if hints else found


def slice_(
    *endpoints: dict[str, Any] | str,
    of: str = "web",
    name: str = "",
    namespace: str = "red",
    family: str = "IPv4",
    port: int | None = 8080,
    protocol: str = "TCP",
    labels: dict[str, str] | None = None,
    **body: Any,
) -> EndpointSlice:
    every = [endpoint(each) if isinstance(each, str) else each for each in endpoints]
    metadata = {"name": name or f"{of}-{family.lower()}", "namespace": namespace}
    ports = [{"name": "p", "protocol": protocol, **({"port": port} if port is not None else {})}]
    content = {"addressType": family, "endpoints": every, "ports": ports, **body}
    return convert(EndpointSlice, {"metadata": {**metadata, "labels": {SERVICE_NAME: of, **(labels or {})}}, **content})


def put(inputs: ProxyInputs, *resources: Resource) -> ProxyInputs:
    for one in resources:
        if isinstance(one, Service):
            inputs.set_service(one.namespace, one.name, one)
        else:
            assert isinstance(one, EndpointSlice)
            inputs.set_slice(one.namespace, one.name, one)
    return inputs


def inputs(*resources: Resource, zone: str = "", **options: Any) -> ProxyInputs:
    found = ProxyInputs(HERE, **options)
    found.set_node(HERE, {"topology.kubernetes.io/zone": zone} if zone else {})
    return put(found, *resources)


def state_of(*resources: Resource, zone: str = "", **options: Any) -> ProxyState:
    return inputs(*resources, zone=zone, **options).state()


def texts(backends: tuple[Backend, ...] | None) -> list[str] | None:
    """The last number of each address, which tells endpoints apart."""
    return None if backends is None else [str(backend) for backend in backends]


def entrances(state: ProxyState, name: str = "web", namespace: str = "red") -> dict[str, Entrance]:
    """By kind and frontend."""
    return {f"{one.kind} {one.frontend}": one for one in state.services[namespace, name].entrances}


def only(state: ProxyState, kind: str = "ClusterIP", name: str = "web") -> Entrance:
    found = [one for one in state.services["red", name].entrances if one.kind == kind]
    assert len(found) == 1
    return found[0]
