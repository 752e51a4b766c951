"""Where fan-out servers are: `HOST:PORT`, `[fd00::1]:5473`, `unix:/run/tortie/fanout.sock`; several with commas.

Kubernetes tells where the pods of a Service are by its EndpointSlices.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from tortie.base.errors import ConfigError
from tortie.model.service import EndpointSlice
from tortie.store.fanout.wire import PORT

PORT_NAME = "calico-typha"
"""Of the port in Typha's Service."""


@dataclass(frozen=True, slots=True)
class Address:
    """`path` of a Unix socket, or `host` and `port`; an empty host is every address of this machine."""

    host: str = ""
    port: int = PORT
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str, where: str = "") -> Address:
    """One of them; without a port it is 5473. Raises ConfigError that begins with `where`.

    >>> str(address("[fd00::1]:99")), str(address(":5473")), str(address("fd00::1"))
    ('[fd00::1]:99', ':5473', '[fd00::1]:5473')
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError(f'"{text}" is no Unix socket: write unix:/run/tortie/fanout.sock', where)
        return Address(path=path)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest.startswith(":") else str(PORT)
        if not bracket or (rest and not rest.startswith(":")) or not _is_ip(host):
            raise ConfigError(f'"{text}" is no address: write [fd00::1]:{PORT}', where)
    elif text.count(":") > 1 and _is_ip(text):
        host, port = text, str(PORT)
    else:
        host, colon, port = text.rpartition(":")
        host, port = (host, port) if colon else (text, str(PORT))
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536) or any(c in host for c in " /@:") * (
        not _is_ip(host)
    ):
        raise ConfigError(f'"{text}" is no address: write HOST:PORT, or unix:PATH', where)
    return Address(host, int(port))


def addresses(text: str, where: str = "") -> tuple[Address, ...]:
    """Those of a list with commas, each to be connected to. Raises ConfigError."""
    found = tuple(address(one, where) for one in text.split(",") if one.strip())
    for one in found:
        if not one.path and not one.host:
            raise ConfigError(f'"{text}" names no machine: write HOST:PORT, or unix:PATH', where)
    return found


def of_service(slices: Iterable[EndpointSlice], service: str) -> tuple[Address, ...]:
    """Of the pods behind a Service that are ready, in a fixed order."""
    found = set()
    for each in slices:
        if each.service != service or each.address_type == "FQDN":
            continue
        named = [port.port for port in each.ports if port.name == PORT_NAME and port.port]
        ports = named or [port.port for port in each.ports if port.port and port.protocol == "TCP"][:1]
        for endpoint in each.endpoints:
            if endpoint.conditions.ready is False or endpoint.conditions.terminating:
                continue
            found |= {Address(ip, port) for ip in endpoint.addresses for port in ports}
    return tuple(sorted(found, key=str))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
