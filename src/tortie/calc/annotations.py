"""What a pod asks of its network by annotation, read and checked. Source: Calico's CNI plugin and pod conversion.

Every bad value is a ConfigError that names the annotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from tortie.base.addr import IP, net_around, parse_ip
from tortie.base.errors import ConfigError
from tortie.model.workload import IPNAT

T = TypeVar("T")

PREFIX = "cni.projectcalico.org/"
IP_ADDRS = PREFIX + "ipAddrs"
IP_ADDRS_NO_IPAM = PREFIX + "ipAddrsNoIpam"
FLOATING_IPS = PREFIX + "floatingIPs"
HW_ADDR = PREFIX + "hwAddr"
ALLOWED_SOURCE_PREFIXES = PREFIX + "allowedSourcePrefixes"
IPV4_POOLS = PREFIX + "ipv4pools"
IPV6_POOLS = PREFIX + "ipv6pools"
IP_FAMILIES = PREFIX + "ipFamilies"

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}\Z")


def addresses(annotations: Mapping[str, str], name: str) -> tuple[IP, ...]:
    """`ipAddrs` or `ipAddrsNoIpam`: at most one address of each family, at least one. None asked for: ()."""
    text = annotations.get(name)
    if not text:
        return ()
    listed = _json(name, text, list[str], "a JSON list of addresses")
    if not listed:
        raise ConfigError("the list is empty: give an address, or leave the annotation out", _where(name))
    found = tuple(_address(name, one) for one in listed)
    for version in (4, 6):
        if sum(ip.version == version for ip in found) > 1:
            raise ConfigError(f"more than one IPv{version} address: a pod has one of each family", _where(name))
    return found


def mac(annotations: Mapping[str, str]) -> str:
    """`hwAddr`, with colons and in lower case; "" when none is asked for."""
    text = annotations.get(HW_ADDR, "")
    if text and not _MAC.match(text):
        raise ConfigError(f'"{text}" is not a MAC address such as 02:00:5e:10:00:01', _where(HW_ADDR))
    return text.replace("-", ":").lower()


def source_prefixes(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """`allowedSourcePrefixes`, normalised."""
    text = annotations.get(ALLOWED_SOURCE_PREFIXES)
    if not text:
        return ()
    listed = _json(ALLOWED_SOURCE_PREFIXES, text, list[str], "a JSON list of CIDRs")
    try:
        return tuple(str(net_around(cidr)) for cidr in listed)
    except ConfigError as error:
        raise error.within(_where(ALLOWED_SOURCE_PREFIXES)) from None


def floating_ips(annotations: Mapping[str, str]) -> tuple[IP, ...]:
    """`floatingIPs`: external addresses that are to lead to the pod."""
    text = annotations.get(FLOATING_IPS)
    if not text:
        return ()
    listed = _json(FLOATING_IPS, text, list[str], "a JSON list of addresses")
    return tuple(_address(FLOATING_IPS, one) for one in listed)


def nats(annotations: Mapping[str, str], ips: tuple[IP, ...]) -> tuple[IPNAT, ...]:
    """The floating IPs mapped to the pod's address of their family. Raises ConfigError when the pod has none."""
    found = []
    for external in floating_ips(annotations):
        internal = next((ip for ip in ips if ip.version == external.version), None)
        if internal is None:
            text = f"{external} is IPv{external.version}, and the pod has no IPv{external.version} address"
            raise ConfigError(text, _where(FLOATING_IPS))
        found.append(IPNAT(internal_ip=str(internal), external_ip=str(external)))
    return tuple(found)


def pools(pod: Mapping[str, str], namespace: Mapping[str, str], version: int) -> tuple[str, ...] | None:
    """Pool names or CIDRs that the pod, or else its namespace, asks for; None when neither does."""
    name = IPV4_POOLS if version == 4 else IPV6_POOLS
    text = pod.get(name) or namespace.get(name)
    return tuple(_json(name, text, list[str], "a JSON list of pools")) if text else None


def families(pod: Mapping[str, str], namespace: Mapping[str, str]) -> tuple[bool, bool] | None:
    """Whether IPv4 and IPv6 are asked for; None when nothing is said."""
    text = pod.get(IP_FAMILIES) or namespace.get(IP_FAMILIES)
    if not text:
        return None
    listed = _json(IP_FAMILIES, text, list[str], 'a JSON list such as ["IPv4", "IPv6"]')
    unknown = [one for one in listed if one.lower() not in ("ipv4", "ipv6")]
    if unknown or not listed:
        raise ConfigError(f'"{unknown[0] if unknown else text}" is neither IPv4 nor IPv6', _where(IP_FAMILIES))
    lowered = {one.lower() for one in listed}
    return "ipv4" in lowered, "ipv6" in lowered


def _where(name: str) -> str:
    return f"annotation {name}"


def _json(name: str, text: str, kind: type[T], wanted: str) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise ConfigError(f"{text!r} is not {wanted}", _where(name)) from None


def _address(name: str, text: str) -> IP:
    try:
        return parse_ip(text)
    except ConfigError as error:
        raise error.within(_where(name)) from None
