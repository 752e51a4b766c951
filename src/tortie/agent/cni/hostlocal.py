"""What `calico` adds to the configuration of the plugin `host-local`: the node's own pod CIDRs, and routes for the pod.

`usePodCidr` and `usePodCidrIPv6`, in any case, stand for the pod CIDRs of the Kubernetes Node, in `ipam.subnet` and in
the subnets of `ipam.ranges`. Pure: what is not understood is left for host-local to complain about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_network
from typing import Any

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError
from tortie.cni.spec import json_type, lookup
from tortie.model.k8s import K8sNode

PodCidrs = Mapping[str, str]
"""CIDRs by the word that stands for them, in lower case."""

V4, V6 = "usepodcidr", "usepodcidripv6"
ANYTHING: PodCidrs = {V4: "0.0.0.0/0", V6: "::/0"}
"""For DEL, which goes by the container: the plugin only has to be able to read it."""
_SPELLING = {V4: "usePodCidr", V6: "usePodCidrIPv6"}


def wants_pod_cidrs(conf: Mapping[str, Any]) -> bool:
    """Raises ConfigError where `ipam` is not of the right shape."""
    return any(subnet in _SPELLING for subnet in map(_folded, _subnets(_ipam(conf))))


def pod_cidrs(node: K8sNode) -> PodCidrs:
    """Those of a node, one of each family at most. Raises ConfigError."""
    where = f"Node {node.name}"
    listed = node.pod_cidrs
    if not listed:
        raise ConfigError("has no pod CIDR, and ipam asks for it", where, "spec.podCIDRs")
    found: dict[str, str] = {}
    for cidr in listed:
        word = V4 if parse_net(cidr).version == 4 else V6
        if word in found:
            raise ConfigError(f"{', '.join(listed)} are not one of each family", where, "spec.podCIDRs")
        found[word] = cidr
    return found


def with_pod_cidrs(conf: Mapping[str, Any], cidrs: PodCidrs) -> dict[str, Any]:
    """The configuration with CIDRs in place of the words. Raises ConfigError when the family is missing."""

    def resolved(subnet: Any) -> Any:
        word = _folded(subnet)
        if word not in _SPELLING:
            return subnet
        if word not in cidrs:
            family = "IPv4" if word == V4 else "IPv6"
            raise ConfigError(f"{_SPELLING[word]}: the node has no {family} pod CIDR", "ipam")
        return cidrs[word]

    ipam = _ipam(conf)
    for key in list(ipam):
        if key.casefold() == "subnet":
            ipam[key] = resolved(ipam[key])
        elif key.casefold() == "ranges":
            ipam[key] = [[_with_subnet(one, resolved) for one in ranges] for ranges in _ranges(ipam)]
    return {key: value for key, value in conf.items() if key.casefold() != "ipam"} | {"ipam": ipam}


def custom_routes(conf: Mapping[str, Any]) -> tuple[Net, ...]:
    """The destinations of `ipam.routes`; entries without one do not count. Raises ConfigError."""
    found = []
    for i, route in enumerate(_list(lookup(_ipam(conf), "routes", []), "ipam.routes")):
        where = f"ipam.routes[{i}]"
        dst = lookup(_object(route, where), "dst")
        if dst is None:
            continue
        if not isinstance(dst, str):
            raise ConfigError(f"must be a CIDR, not {json_type(dst)}", f"{where}.dst")
        try:
            if "/" not in dst:
                raise ValueError
            found.append(ip_network(dst, strict=False))
        except ValueError:
            raise ConfigError(f'"{dst}" is not a CIDR such as 10.0.0.0/24 or fd00::/64', f"{where}.dst") from None
    return tuple(found)


def _with_subnet(one: Mapping[str, Any], resolved: Any) -> dict[str, Any]:
    return {key: resolved(value) if key.casefold() == "subnet" else value for key, value in one.items()}


def _subnets(ipam: Mapping[str, Any]) -> Iterator[Any]:
    yield lookup(ipam, "subnet")
    yield from (lookup(one, "subnet") for ranges in _ranges(ipam) for one in ranges)


def _ranges(ipam: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    sets = _list(lookup(ipam, "ranges", []), "ipam.ranges")
    lists = [_list(one, f"ipam.ranges[{i}]") for i, one in enumerate(sets)]
    return [[_object(one, f"ipam.ranges[{i}][{j}]") for j, one in enumerate(each)] for i, each in enumerate(lists)]


def _folded(subnet: Any) -> Any:
    return subnet.lower() if isinstance(subnet, str) else None


def _ipam(conf: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_object(lookup(conf, "ipam", {}), "ipam"))


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"must be an object, not {json_type(value)}", where)
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"must be a list, not {json_type(value)}", where)
    return value
