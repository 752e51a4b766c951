"""DesiredState to the input of bird.conf."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from tortie.calc.state import DesiredState
from tortie.render.bird import BindMode, BirdConfig, LogLevel, Pool


def bird_config(state: DesiredState, connect_delay: int) -> BirdConfig | None:
    """None for a node that has no address to speak from."""
    routing = state.routing
    if routing is None:
        return None
    return BirdConfig(
        router_id=IPv4Address(routing.router_id),
        ipv4=routing.ipv4 if isinstance(routing.ipv4, IPv4Address) else None,
        ipv6=routing.ipv6 if isinstance(routing.ipv6, IPv6Address) else None,
        listen_port=routing.listen_port,
        bind_mode=BindMode.NODE_IP if routing.bind_node_ip else BindMode.ANY,
        normal_priority_ipv4=state.settings.priority[4],
        normal_priority_ipv6=state.settings.priority[6],
        blocks=state.blocks,
        pools=tuple(
            Pool(cidr=pool.net, bgp_program=not pool.encapsulated, export_disabled=not pool.bgp_export)
            for pool in state.pools
            if not pool.load_balancer_only
        ),
        ignored_interfaces=routing.ignored_interfaces,
        log_level=LogLevel(routing.log_level),
        peers=routing.peers,
        connect_delay=connect_delay,
    )
