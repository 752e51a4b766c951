"""The network's configuration: etcd's key `config`, or net-conf.json.

    text ──parse──► NetworkConfig ──checked──► NetworkConfig
           typed, defaults filled in      etcd: subnets can be cut from the network

Keys are read in any case, as Go reads them. Without `Backend` it is udp, with a `Backend` that has no `Type` there is
none. In Kubernetes the pod CIDRs decide, so that only the network has to be right. Source: flannel's subnet
configuration, whose texts the errors keep.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tortie.base.addr import IP, Net, net_around, parse_ip
from tortie.base.errors import ConfigError, suggest
from tortie.cni.spec import json_type, lookup, read_json

log = logging.getLogger(__name__)

KEYS = (
    "EnableIPv4", "EnableIPv6", "EnableNFTables", "Network", "IPv6Network", "SubnetLen", "SubnetMin", "SubnetMax",
    "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend",
)  # fmt: skip
USUAL_LEN = {4: 24, 6: 64}
"""SubnetLen, where that leaves at least four subnets."""


@dataclass(frozen=True, slots=True)
class Family:
    """One IP version of the network. Subnets are of `subnet_len` bits, from `first` to `last` (network addresses)."""

    network: Net
    subnet_len: int
    first: IP
    last: IP


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """`v4`, `v6`: None where that version is not enabled. `backend_type` is in lower case; `options` is all of
    `Backend`, as it was written, keys that are secret included. `nftables` is what EnableNFTables says; our rules are
    nftables' in any case."""

    v4: Family | None
    v6: Family | None
    backend_type: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    nftables: bool = False

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(family for family in (self.v4, self.v6) if family is not None)


def parse(text: str, where: str) -> NetworkConfig:
    """Raises ConfigError, which begins with `where`, a file or a key."""
    try:
        return _config(_object(text))
    except ConfigError as error:
        raise error.within(where) from None


def checked(config: NetworkConfig) -> NetworkConfig:
    """The same configuration. Raises ConfigError where subnets cannot be cut from the network as it says."""
    if config.v4 is None:
        raise ConfigError("IPv6 alone is not to be had with etcd: leave it true, or use Kubernetes", "EnableIPv4")
    for family in config.families:
        _check(family)
    return config


# What the text says ---------------------------------------------------------------------------------------------------


def _object(text: str) -> dict[str, Any]:
    try:
        found = read_json(text.encode())
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError('is not an object such as {"Network": "10.244.0.0/16"}')
    known = {key.casefold() for key in KEYS}
    for key in found:
        if key.casefold() not in known:
            log.warning("%s: is not a key of flannel's configuration, without effect; %s", key, suggest(key, KEYS))
    return found


def _config(given: Mapping[str, Any]) -> NetworkConfig:
    enabled4, enabled6 = _flag(given, "EnableIPv4", True), _flag(given, "EnableIPv6", False)
    if not (enabled4 or enabled6):
        raise ConfigError("none defined stack: EnableIPv4 and EnableIPv6 are both false")
    options, backend_type = _backend(given)
    return NetworkConfig(
        v4=_family(given, 4) if enabled4 else None,
        v6=_family(given, 6) if enabled6 else None,
        backend_type=backend_type,
        options=options,
        nftables=_flag(given, "EnableNFTables", False),
    )


def _backend(given: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """What is in `Backend`, and its type in lower case. A null counts as one without a type, which no network has."""
    if not any(key.casefold() == "backend" for key in given):
        return {}, "udp"
    options = lookup(given, "Backend", {})
    if not isinstance(options, dict):
        raise ConfigError(f'must be an object such as {{"Type": "vxlan"}}, not {json_type(options)}', "Backend")
    kind = lookup(options, "Type", "")
    if not isinstance(kind, str):
        raise ConfigError(f"must be a string, not {json_type(kind)}", "Backend.Type")
    return options, kind.lower()


def _family(given: Mapping[str, Any], version: int) -> Family:
    prefix = "IPv6" if version == 6 else ""
    network = _network(given, f"{prefix}Network", version)
    length = _number(given, f"{prefix}SubnetLen") or _usual_len(network)
    step = 1 << max(0, network.max_prefixlen - length)
    lowest, highest = int(network.network_address), int(network.broadcast_address)
    return Family(
        network=network,
        subnet_len=length,
        first=_address(given, f"{prefix}SubnetMin", version) or _ip(version, min(lowest + step, highest)),
        last=_address(given, f"{prefix}SubnetMax", version) or _ip(version, max(highest + 1 - step, lowest)),
    )


def _usual_len(network: Net) -> int:
    usual = USUAL_LEN[network.version]
    return usual if network.prefixlen + 2 <= usual else network.prefixlen + 2


def _network(given: Mapping[str, Any], key: str, version: int) -> Net:
    """Host bits are left out."""
    text = _text(given, key)
    if not text:
        raise ConfigError(f"please define a correct {key} parameter in the flannel config")
    try:
        if "/" in text and (found := net_around(text)).version == version:
            return found
    except ConfigError:
        pass
    example = "10.244.0.0/16" if version == 4 else "fd00:10:244::/48"
    raise ConfigError(f'"{text}" is not an IPv{version} network such as {example}', key)


def _address(given: Mapping[str, Any], key: str, version: int) -> IP | None:
    text = _text(given, key)
    if not text:
        return None
    try:
        if (found := parse_ip(text)).version == version:
            return found
    except ConfigError:
        pass
    raise ConfigError(f'"{text}" is not an IPv{version} address', key)


def _text(given: Mapping[str, Any], key: str) -> str:
    found = lookup(given, key, "")
    if not isinstance(found, str):
        raise ConfigError(f"must be a string, not {json_type(found)}", key)
    return found


def _number(given: Mapping[str, Any], key: str) -> int:
    found = lookup(given, key, 0)
    if type(found) is not int or found < 0:
        raise ConfigError(f"{found!r} is not a whole number such as 24", key)
    return found


def _flag(given: Mapping[str, Any], key: str, default: bool) -> bool:
    found = lookup(given, key, default)
    if not isinstance(found, bool):
        raise ConfigError(f"must be true or false, not {json_type(found)}", key)
    return found


def _ip(version: int, number: int) -> IP:
    return IPv4Address(number) if version == 4 else IPv6Address(number)


# Whether it can be done -----------------------------------------------------------------------------------------------


def _check(family: Family) -> None:
    """Raises ConfigError. IPv6's texts have its prefix where flannel's have it."""
    network, prefix = family.network, "IPv6" if family.network.version == 6 else ""
    bits = network.max_prefixlen
    if network.prefixlen > bits - 4:
        which = f"{prefix}Network" if prefix else "network"
        raise ConfigError(f"{which} is too small. Minimum useful network prefix is /{bits - 4}")
    if family.subnet_len > bits - 2:
        raise ConfigError(f"SubnetLen must be less than /{bits - 1}")
    if family.subnet_len < network.prefixlen + 2:
        raise ConfigError("network must be able to accommodate at least four subnets")
    for key, address in ((f"{prefix}SubnetMin", family.first), (f"{prefix}SubnetMax", family.last)):
        if address not in network:
            raise ConfigError(f"{key} is not in the range of the {prefix}Network")
        if int(address) % (1 << bits - family.subnet_len):
            raise ConfigError(f"{key} is not on a SubnetLen boundary: {address}")
    if int(family.first) > int(family.last):
        raise ConfigError(f"{prefix}SubnetMin {family.first} is after {prefix}SubnetMax {family.last}")
