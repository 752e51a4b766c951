"""The stages that build the overlay, and the routes to pod networks, which look at the same links and routes."""

from __future__ import annotations

from tortie.dataplane.stages.cluster_routes import ClusterRoutes
from tortie.dataplane.stages.pod_networks import PodNetworkRoutes
from tortie.dataplane.stages.tunnels import LINGER, Tunnels
from tortie.dataplane.stages.vteps import Vteps
from tortie.kernel.live import LiveRoutes
from tortie.kernel.live_links import LiveLinks
from tortie.model.workload import INTERFACE_PREFIX


def overlay_stages(netns: str | None = None, *, linger: float = LINGER) -> tuple[Tunnels, Vteps, ClusterRoutes]:
    """In their order. `linger`: seconds that a tunnel's device outlives the last pool that wants it."""
    return routing_stages(netns, linger=linger)[:3]


def routing_stages(
    netns: str | None = None, *, linger: float = LINGER
) -> tuple[Tunnels, Vteps, ClusterRoutes, PodNetworkRoutes]:
    """The same, and behind them the routes to pod networks."""
    links, routes = LiveLinks(netns, without=INTERFACE_PREFIX), LiveRoutes(netns)
    return (
        Tunnels(links, routes, netns, linger=linger),
        Vteps(links, routes, netns),
        ClusterRoutes(links, routes, netns),
        PodNetworkRoutes(links, routes, netns),
    )
