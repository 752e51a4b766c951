"""The host's interfaces with their addresses, as host endpoints are matched to them."""

from __future__ import annotations

from tortie.base.addr import IP, parse_ip
from tortie.kernel import links
from tortie.kernel.addresses import list_addresses
from tortie.kernel.netlink import Netlink
from tortie.model.workload import INTERFACE_NAME, INTERFACE_PREFIX


def host_interfaces(netns: str | None = None) -> dict[str, frozenset[IP]]:
    """By name, without those of pods. Raises KernelError."""
    found: dict[str, set[IP]] = {}
    names = links.names(netns)
    with Netlink(netns) as nl:
        addresses = list_addresses(nl)
    for name in names.values():
        if INTERFACE_NAME.match(name) and not name.startswith(INTERFACE_PREFIX):
            found[name] = set()
    for address in addresses:
        ips = found.get(names.get(address.index, ""))
        if ips is not None:
            ips.add(parse_ip(address.ip.partition("/")[0]))
    return {name: frozenset(ips) for name, ips in found.items()}
