"""Which nodes are reached without a gateway, out of the external interface: the kernel's own answer, now."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.base.addr import IP
from tortie.base.errors import KernelError
from tortie.flannel.state import External, Ways
from tortie.kernel.netlink import Netlink
from tortie.kernel.routes import Route, lookup


def look(external: External, addresses: Iterable[IP], netns: str | None = None) -> Ways:
    """`netns` is a path; None is the calling thread's. Raises KernelError when the kernel cannot be asked at all."""
    with Netlink(netns) as nl:
        return {ip: _is_direct(nl, external, ip) for ip in addresses}


def _is_direct(nl: Netlink, external: External, ip: IP) -> bool:
    try:
        return leads_straight(lookup(nl, None, ip), external)
    except KernelError:  # no route at all, or one that says `unreachable`
        return False


def leads_straight(route: Route, external: External) -> bool:
    """Exactly one way, out of the external interface, to nobody but the node itself."""
    return route.type == "unicast" and route.dev == external.index and route.via is None and not route.nexthops
