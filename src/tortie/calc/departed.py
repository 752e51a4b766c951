"""Which addresses have left their pods: what is established with such an address must not go on with the next pod.

    DesiredState, old and new ─► departed ─► the kernel finds their flows, which are deleted

Policy asks about the first packet of a flow only. Who is given the address would get what follows, whatever its own
policy says.
"""

from __future__ import annotations

from collections.abc import Collection

from tortie.base.addr import IP
from tortie.calc.state import DesiredState, LocalEndpoint


def departed(old: DesiredState | None, new: DesiredState) -> frozenset[IP]:
    """The addresses that pods of the old state have no more; not those that another pod had then and still has."""
    if old is None:
        return frozenset()
    pairs = [(one, new.endpoints.get(name)) for name, one in old.endpoints.items()]
    left = frozenset(ip for one, now in pairs if now is not one for ip in one.ips if ip not in _still(one, now))
    return left and left - {ip for one, now in pairs for ip in one.ips if ip in _still(one, now)}


def _still(one: LocalEndpoint, now: LocalEndpoint | None) -> tuple[IP, ...]:
    """What it has of late, if there it is the same pod."""
    return now.ips if now is not None and now.key == one.key else ()


def reused(ips: Collection[IP], state: DesiredState) -> frozenset[IP]:
    """Those of the addresses that a pod has."""
    return frozenset(ip for one in state.endpoints.values() for ip in one.ips if ip in ips) if ips else frozenset()
