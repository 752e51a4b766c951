"""HostEndpoint: a host's own interfaces as something that policy speaks about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from msgspec import Meta, field

from tortie.base.addr import IP, parse_ip
from tortie.model.meta import Kind, Problem, Resource, Value, ip_problem
from tortie.model.policy import protocol_number
from tortie.model.workload import INTERFACE_NAME, INTERFACE_PREFIX

EVERY_INTERFACE = "*"
"""The interface name of a host endpoint for all that have none of their own."""


class EndpointPort(Value, frozen=True, kw_only=True):
    """A port with a name, by which rules of policy may know it."""

    name: str
    protocol: int | str
    port: Annotated[int, Meta(ge=1, le=65535)]

    def problems(self) -> Iterator[Problem]:
        if not self.name:
            yield "name", "is required"
        if protocol_number(self.protocol) is None:
            yield "protocol", f'"{self.protocol}" is not a protocol'


class HostEndpointSpec(Value, frozen=True, kw_only=True):
    """`interface_name` is a name, or `*`: every interface of the host that no other host endpoint is about. Without one
    it is the interface that has one of `expected_ips`."""

    node: str = ""
    interface_name: str = ""
    expected_ips: tuple[str, ...] = field(name="expectedIPs", default=())
    profiles: tuple[str, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    @property
    def ips(self) -> tuple[IP, ...]:
        return tuple(map(parse_ip, self.expected_ips))

    def problems(self) -> Iterator[Problem]:
        if not self.node:
            yield "node", "is required: the name of the node whose interface this is"
        elif len(self.node) > 253:
            yield "node", "is longer than 253 characters"
        if not self.interface_name and not self.expected_ips:
            yield "interfaceName", 'is required where there are no expectedIPs: a name, or "*" for every interface'
        yield from _interface_problem(self.interface_name)
        for i, ip in enumerate(self.expected_ips):
            yield from ip_problem(f"expectedIPs[{i}]", ip)


def _interface_problem(name: str) -> Iterator[Problem]:
    if name in ("", EVERY_INTERFACE):
        return
    if not INTERFACE_NAME.match(name):
        yield "interfaceName", f'"{name}" must be "*", or at most 15 letters, digits, "-", "_" and "."'
    elif name.startswith(INTERFACE_PREFIX):
        yield "interfaceName", f'"{name}" is the interface of a pod, which is a WorkloadEndpoint'


class HostEndpoint(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="HostEndpoint",
        plural="hostendpoints",
        aliases=("hostendpoint", "hep", "heps"),
    )
    spec: HostEndpointSpec = HostEndpointSpec()
