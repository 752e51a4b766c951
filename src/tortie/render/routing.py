"""DesiredState to the input of bird.conf."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from tortie.calc.state import DesiredState, Programming, Routing
from tortie.calc.state import Pool as AnyPool
from tortie.render.bird import IPIP, BindMode, BirdConfig, LogLevel, Pool

POD_NETWORK_PROTOCOL = 87
"""rtm_protocol of the agent's routes to pod networks of other nodes, which announce them themselves."""


def bird_config(state: DesiredState, connect_delay: int, *, tunnel_there: bool = True) -> BirdConfig | None:
    """None for a node that has no address to speak from. `tunnel_there`: whether there is a link for IP in IP."""
    routing = state.routing
    if routing is None:
        return None
    services = routing.services
    return BirdConfig(
        router_id=IPv4Address(routing.router_id),
        ipv4=routing.ipv4 if isinstance(routing.ipv4, IPv4Address) else None,
        ipv6=routing.ipv6 if isinstance(routing.ipv6, IPv6Address) else None,
        listen_port=routing.listen_port,
        bind_mode=BindMode.NODE_IP if routing.bind_node_ip else BindMode.ANY,
        normal_priority_ipv4=_priority(state, routing, 4),
        normal_priority_ipv6=_priority(state, routing, 6),
        blocks=state.blocks,
        pools=tuple(_pool(pool, state.programming) for pool in state.pools if not pool.load_balancer_only),
        services=(*services.nets, *state.pod_networks.own),
        kept_out=services.kept_out,
        passed_on=(*services.passed_on, *state.pod_networks.others) if routing.reflects else (),
        unlearned=(POD_NETWORK_PROTOCOL,) if state.pod_networks.routes else (),
        ignored_interfaces=routing.ignored_interfaces,
        advertisements=routing.advertisements,
        filters=routing.filters,
        workload_ips=routing.workload_ips,
        subnet=routing.subnet,
        tunnel_there=tunnel_there,
        log_level=LogLevel(routing.log_level),
        peers=routing.peers,
        connect_delay=connect_delay,
    )


def asks_tunnel(state: DesiredState) -> bool:
    """Whether BIRD routes some pool through IP in IP."""
    return "IPIP" in state.programming.bird and any(pool.tunnel == "IPIP" for pool in state.pools)


def _pool(pool: AnyPool, who: Programming) -> Pool:
    ipip = IPIP.NEVER
    if pool.tunnel == "IPIP" and "IPIP" in who.bird:  # not one that BIRD merely keeps as it was, without a tunnel
        ipip = IPIP.CROSS_SUBNET if pool.cross_subnet else IPIP.ALWAYS
    return Pool(cidr=pool.net, bgp_program=who.by_bird(pool), export_disabled=not pool.bgp_export, ipip=ipip)


def _priority(state: DesiredState, routing: Routing, version: int) -> int:
    """BGPConfiguration's, or the agent's own, which must be the same."""
    return routing.priority.get(version, state.settings.priority[version])
