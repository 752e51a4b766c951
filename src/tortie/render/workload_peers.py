"""Workloads that speak BGP with their node may dial it, whatever becomes of other packets from pods to their node."""

from __future__ import annotations

from tortie.bgp.sessions import BGP_PORT
from tortie.calc.state import DesiredState


def workload_peer_rules(state: DesiredState) -> tuple[str, ...]:
    """In `workload-to-host`, behind the workload's own policy: to the address for workloads, and no other."""
    routing = state.routing
    if routing is None or not routing.workload_interfaces:
        return ()
    names = ", ".join(f'"{name}"' for name in routing.workload_interfaces)
    port = routing.listen_port or BGP_PORT
    return tuple(
        f"iifname {{ {names} }} {'ip' if ip.version == 4 else 'ip6'} daddr {ip} tcp dport {port}"
        ' counter accept comment "localWorkloadPeering"'
        for ip in routing.workload_ips
    )
