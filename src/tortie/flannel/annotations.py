"""A Node of Kubernetes as flannel uses it: its subnet is the pod CIDR, and annotations say how it is reached.

    spec.podCIDRs                                     ──► Lease.subnet, subnet6
    flannel.alpha.coreos.com/kube-subnet-manager true      (without it a Node is none of flannel's)
                             public-ip, public-ipv6   ◄──► Attrs
                             backend-type, backend-data, backend-v6-data
                             node-public-ip[v6], public-ip[v6]-overwrite ──► Overrides

Names and texts are flannel's, which reads what we write here and writes what we read. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeVar

from tortie.base.addr import net_around, parse_ip, within
from tortie.base.errors import ConfigError
from tortie.cni.gojson import compact_json, read_json
from tortie.flannel.config import NetworkConfig
from tortie.flannel.lease import Attrs, Lease
from tortie.flannel.manager import Overrides
from tortie.model.k8s import K8sNode

A = TypeVar("A", IPv4Address, IPv6Address)

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
NOTHING = "null"
"""What is written for a backend that has nothing to say."""
VXLAN = "vxlan"
"""The backend without whose data nobody could be reached: of a version that it has none for, nothing is written."""
DUAL = frozenset({VXLAN, "host-gw", "wireguard", "extension"})
"""The backends of which flannel has IPv6 in annotations; others have the pod CIDR of it, and no way there."""
NAT_OF_VIRTUALBOX = IPv4Address("10.0.2.15")
"""The address that VirtualBox's NAT gives to every machine."""
_FORM = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")


@dataclass(frozen=True, slots=True)
class Names:
    """Of the annotations. `prefix` is all that they begin with: `flannel.alpha.coreos.com/`."""

    prefix: str

    @classmethod
    def of(cls, text: str = DEFAULT_PREFIX) -> Names:
        """Of -kube-annotation-prefix, to which is added what is missing of `/` and `-`. Raises ConfigError."""
        if text.count("/") > 1:
            raise ConfigError(f'"{text}": prefix can contain at most single slash', "kube-annotation-prefix")
        prefix = text if "/" in text else f"{text}/"
        prefix = prefix if prefix.endswith(("/", "-")) else f"{prefix}-"
        if not _FORM.fullmatch(prefix):
            why = "prefix must be in a format: fqdn/[0-9a-z-_]*"
            raise ConfigError(f'"{text}": {why}, such as {DEFAULT_PREFIX}', "kube-annotation-prefix")
        return cls(prefix)

    @property
    def managed(self) -> str:
        return f"{self.prefix}kube-subnet-manager"

    @property
    def type(self) -> str:
        return f"{self.prefix}backend-type"

    def data(self, version: int) -> str:
        return f"{self.prefix}{'backend-v6-data' if version == 6 else 'backend-data'}"

    def public_ip(self, version: int) -> str:
        return f"{self.prefix}{_ip(version)}"

    def overwrite(self, version: int) -> str:
        return f"{self.prefix}{_ip(version)}-overwrite"

    def flag(self, version: int) -> str:
        return f"{self.prefix}node-{_ip(version)}"


def _ip(version: int) -> str:
    return "public-ipv6" if version == 6 else "public-ip"


# --- what is read -------------------------------------------------------------------------------------------------


def overrides(node: K8sNode, names: Names) -> Overrides:
    """What operators have written on the Node. Raises ConfigError naming the annotation."""
    said = node.metadata.annotations
    return Overrides(
        public_ip=_address(node, said, names.flag(4), IPv4Address),
        public_ipv6=_address(node, said, names.flag(6), IPv6Address),
        published_ip=_address(node, said, names.overwrite(4), IPv4Address),
        published_ipv6=_address(node, said, names.overwrite(6), IPv6Address),
    )


def remembered(node: K8sNode, names: Names) -> Attrs | None:
    """What was published of the Node, as far as it can be read; None for nothing."""
    said = node.metadata.annotations
    if names.type not in said:
        return None
    found = Attrs(backend_type=said[names.type])
    for version in (4, 6):
        try:
            found = _with_family(found, node, names, version)
        except ConfigError:
            continue
    return found


def is_managed(node: K8sNode, names: Names) -> bool:
    return node.metadata.annotations.get(names.managed) == "true"


def subnets(node: K8sNode, config: NetworkConfig) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The pod CIDRs of the versions that are enabled. Raises ConfigError where there is none, and for one that is not
    inside the network."""
    cidrs = node.pod_cidrs
    nets = [net_around(text) for text in cidrs]
    fours = [net for net in nets if isinstance(net, IPv4Network)]
    sixes = [net for net in nets if isinstance(net, IPv6Network)]
    if len(fours) > 1 or len(sixes) > 1:
        raise ConfigError(f'node "{node.name}" pod cidrs should be IPv4/IPv6 only or dualstack')
    four = fours[0] if fours and config.v4 else None
    six = sixes[0] if sixes and config.v6 else None
    for net, family, which in ((four, config.v4, "PodCIDR"), (six, config.v6, "IPv6 PodCIDR")):
        if net is not None and family is not None and not within(net, family.network):
            raise ConfigError(
                f'subnet "{family.network}" specified in the flannel net config doesn\'t contain "{net}" {which} of '
                f'the "{node.name}" node'
            )
    if four is None and six is None:
        raise ConfigError(f'node "{node.name}" pod cidr not assigned')
    return four, six


def lease_of(node: K8sNode, config: NetworkConfig, names: Names) -> tuple[Lease | None, tuple[str, ...]]:
    """Of another Node, None where it is none of flannel's or cannot be reached; and what is wrong with it. Of two
    versions each counts on its own: its CIDR and its address are there, or it is left out."""
    if not is_managed(node, names):
        return None, ()
    try:
        four, six = subnets(node, config)
    except ConfigError as error:
        return None, (str(error),)
    attrs, problems = Attrs(backend_type=node.metadata.annotations.get(names.type, "")), []
    for version, subnet in ((4, four), (6, six)):
        if subnet is None:
            continue
        why = f'node "{node.name}": has no annotation {names.public_ip(version)}'
        try:
            attrs = _with_family(attrs, node, names, version)
        except ConfigError as error:
            why = str(error)
        told = version == 4 or attrs.backend_type in DUAL
        if told and (attrs.public_ipv6 if version == 6 else attrs.public_ip) is None:
            problems.append(f"{why}: packets for {subnet} have no way")
    found = Lease(four if attrs.public_ip else None, six if attrs.public_ipv6 else None, attrs, node=node.name)
    return found if found.subnet or found.subnet6 else None, tuple(problems)


def _with_family(attrs: Attrs, node: K8sNode, names: Names, version: int) -> Attrs:
    """With what the Node says of this IP version. Raises ConfigError naming the annotation."""
    said = node.metadata.annotations
    data = _data(node, said, names.data(version))
    if version == 6:
        return replace(attrs, public_ipv6=_address(node, said, names.public_ip(6), IPv6Address), data6=data)
    return replace(attrs, public_ip=_address(node, said, names.public_ip(4), IPv4Address), data=data)


def _address(node: K8sNode, said: Mapping[str, str], name: str, kind: type[A]) -> A | None:
    text = said.get(name, "")
    if not text:
        return None
    try:
        if isinstance(found := parse_ip(text), kind):
            return found
    except ConfigError:
        pass
    version = 6 if kind is IPv6Address else 4
    raise ConfigError(f'annotation {name}: "{text}" is not an IPv{version} address', f'node "{node.name}"')


def _data(node: K8sNode, said: Mapping[str, str], name: str) -> str | None:
    """As compact JSON; None for none."""
    text = said.get(name, "")
    try:
        found = read_json(text.encode()) if text else None
    except ValueError as error:
        raise ConfigError(f"annotation {name}: is not JSON: {error}", f'node "{node.name}"') from None
    return None if found is None else compact_json(found)


# --- what is written ----------------------------------------------------------------------------------------------


def as_published(attrs: Attrs, said: Overrides) -> Attrs:
    """With the addresses that the operator wants other nodes to be told, of the versions that are published at all."""
    return replace(
        attrs,
        public_ip=attrs.public_ip and (said.published_ip or attrs.public_ip),
        public_ipv6=attrs.public_ipv6 and (said.published_ipv6 or attrs.public_ipv6),
    )


def annotated(have: Mapping[str, str], attrs: Attrs, names: Names) -> dict[str, str]:
    """A Node's annotations with what is published of it."""
    wanted = dict(have) | {names.type: attrs.backend_type, names.managed: "true"}
    for version, address, data in ((4, attrs.public_ip, attrs.data), (6, attrs.public_ipv6, attrs.data6)):
        has_way = version == 4 or attrs.backend_type in DUAL
        if address is not None and has_way and not (attrs.backend_type == VXLAN and data is None):
            wanted |= {names.data(version): data or NOTHING, names.public_ip(version): str(address)}
    return wanted


# --- what is wrong with all of them -------------------------------------------------------------------------------


def shared_addresses(leases: Mapping[str, Lease]) -> tuple[str, ...]:
    """A line for each public address that more Nodes than one publish: packets for all of them go to one."""
    who: dict[IPv4Address | IPv6Address, list[str]] = {}
    for name, lease in sorted(leases.items()):
        for address in (lease.attrs.public_ip, lease.attrs.public_ipv6):
            if address is not None:
                who.setdefault(address, []).append(name)
    return tuple(
        f"nodes {_listed(names)} publish the same public IP {address}: only one of them is reached"
        f"{_HINT if address == NAT_OF_VIRTUALBOX else ''}; give each an address of its own, by --iface or --public-ip"
        for address, names in who.items()
        if len(names) > 1
    )


_HINT = " (VirtualBox's NAT gives this address to every machine)"


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
