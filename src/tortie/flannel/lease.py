"""A lease: the subnet of a node, and how it is reached. Its forms in etcd: key and value, as flannel writes them.

10.5.52.0-24                  {"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{...}}
10.5.52.0-24&fc00:5::-64

Written are flannel's bytes. Read is more: members in any case and any order, those that are not known (another
version's, which are gone when the value is written again), and a reservation made by hand: {"PublicIP":"192.0.2.7"}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from tortie.base.addr import parse_ip
from tortie.base.errors import ConfigError
from tortie.cni.spec import compact_json, json_type, lookup, read_json

_KEY = re.compile(r"([0-9]+(?:\.[0-9]+){3})-([0-9]+)(?:&([0-9a-fA-F:.]+)-([0-9]+))?$")
_NOBODY = IPv4Address(0)
"""What flannel writes where there is no IPv4 address."""


@dataclass(frozen=True, slots=True)
class Attrs:
    """How a node is reached. `data`, `data6`: what the backend has to say, as compact JSON text; None for nothing."""

    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    backend_type: str = ""
    data: str | None = None
    data6: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """`subnet`, `subnet6` are networks. `expires` is in seconds since 1970, None for never: a reservation, or a Node's.
    `node` is the node's name where it is known."""

    subnet: IPv4Network | None
    subnet6: IPv6Network | None
    attrs: Attrs
    expires: float | None = field(default=None, compare=False)
    node: str = ""


def key_of(subnet: IPv4Network | None, subnet6: IPv6Network | None = None) -> str:
    """What a lease is called in etcd.

    >>> key_of(IPv4Network("10.5.52.0/24"), IPv6Network("fc00:5::/64"))
    '10.5.52.0-24&fc00:5::-64'
    """
    parts = [f"{net.network_address}-{net.prefixlen}" for net in (subnet, subnet6) if net is not None]
    return "&".join(parts)


def subnets(text: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """Of which subnets a key is: (None, None) when it is no lease's. Only its end counts, as it does for flannel.
    0.0.0.0-0 is what flannel writes of a network that has only IPv6.

    >>> subnets("10.5.52.0-24")
    (IPv4Network('10.5.52.0/24'), None)
    """
    found = _KEY.search(text)
    if found is None:
        return None, None
    address, length, address6, length6 = found.groups()
    try:
        subnet = IPv4Network(f"{address}/{int(length)}", strict=False)
        subnet6 = IPv6Network(f"{address6}/{int(length6)}", strict=False) if address6 else None
    except ValueError:
        return None, None
    return (subnet if subnet.prefixlen else None), subnet6


def value(attrs: Attrs) -> str:
    """What is stored of a lease."""
    document: dict[str, Any] = {
        "PublicIP": str(attrs.public_ip or _NOBODY),
        "PublicIPv6": None if attrs.public_ipv6 is None else str(attrs.public_ipv6),
    }
    if attrs.backend_type:
        document["BackendType"] = attrs.backend_type
    for name, data in (("BackendData", attrs.data), ("BackendV6Data", attrs.data6)):
        if data is not None:
            document[name] = read_json(data.encode())
    return compact_json(document)


def read_value(text: str) -> Attrs:
    """Raises ConfigError for what nobody could route to."""
    try:
        given = read_json(text.encode())
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ConfigError(f'must be an object such as {{"PublicIP": "192.0.2.7"}}, not {json_type(given)}')
    public_ip, public_ipv6 = _address(given, "PublicIP"), _address(given, "PublicIPv6")
    return Attrs(
        public_ip=public_ip if isinstance(public_ip, IPv4Address) and public_ip != _NOBODY else None,
        public_ipv6=public_ipv6 if isinstance(public_ipv6, IPv6Address) else None,
        backend_type=_text(given, "BackendType"),
        data=_data(given, "BackendData"),
        data6=_data(given, "BackendV6Data"),
    )


def _address(given: Mapping[str, Any], name: str) -> IPv4Address | IPv6Address | None:
    """None for none. Raises ConfigError for an address of the other version, too."""
    text = _text(given, name)
    if not text:
        return None
    try:
        found = parse_ip(text)
    except ConfigError as error:
        raise error.within(name) from None
    wanted = 6 if name.endswith("v6") else 4
    if found.version != wanted:
        raise ConfigError(f'"{text}" is not an IPv{wanted} address', name)
    return found


def _text(given: Mapping[str, Any], name: str) -> str:
    found = lookup(given, name, "")
    if not isinstance(found, str):
        raise ConfigError(f"must be a string, not {json_type(found)}", name)
    return found


def _data(given: Mapping[str, Any], name: str) -> str | None:
    found = lookup(given, name)
    return None if found is None else compact_json(found)
