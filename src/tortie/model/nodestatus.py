"""What a node is asked to write down of itself: CalicoNodeStatus (projectcalico.org/v3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from tortie.model.meta import Kind, Problem, Resource, Value

Class = Literal["Agent", "BGP", "Routes"]
DEFAULT_PERIOD = 10
"""Seconds, as in Calico."""
LONGEST_PERIOD = 86400


class CalicoNodeStatusSpec(Value, frozen=True, kw_only=True):
    """`update_period_seconds` 0: the status is never written."""

    node: str = ""
    classes: tuple[Class, ...] = ()
    update_period_seconds: Annotated[int, Meta(ge=0, le=LONGEST_PERIOD)] | None = None

    @property
    def period(self) -> int:
        return DEFAULT_PERIOD if self.update_period_seconds is None else self.update_period_seconds

    def problems(self) -> Iterator[Problem]:
        if not self.node:
            yield "node", "is required: the node that writes the status"
        if not self.classes:
            yield "classes", "is empty: give some of Agent, BGP, Routes"
        if len(set(self.classes)) != len(self.classes):
            yield "classes", "has one twice"


class BirdStatus(Value, frozen=True, kw_only=True):
    """BIRD of one family. Times are in RFC 3339; `state` is Ready or NotReady."""

    state: str = ""
    version: str = ""
    router_id: str = field(name="routerID", default="")
    last_boot_time: str = ""
    last_reconfiguration_time: str = ""


class AgentStatus(Value, frozen=True, kw_only=True):
    bird_v4: BirdStatus | None = field(name="birdV4", default=None)
    bird_v6: BirdStatus | None = field(name="birdV6", default=None)


class PeerStatus(Value, frozen=True, kw_only=True):
    """`type` is NodeMesh, NodePeer or GlobalPeer; `state` and `since` as BIRD prints them."""

    peer_ip: str = field(name="peerIP", default="")
    type: str = ""
    state: str = ""
    since: str = ""


class BGPStatus(Value, frozen=True, kw_only=True, omit_defaults=False):
    """Counts and lists are there also when they are 0 or empty."""

    number_established_v4: int = field(name="numberEstablishedV4", default=0)
    number_not_established_v4: int = field(name="numberNotEstablishedV4", default=0)
    number_established_v6: int = field(name="numberEstablishedV6", default=0)
    number_not_established_v6: int = field(name="numberNotEstablishedV6", default=0)
    peers_v4: tuple[PeerStatus, ...] = field(name="peersV4", default=())
    peers_v6: tuple[PeerStatus, ...] = field(name="peersV6", default=())


class LearnedFrom(Value, frozen=True, kw_only=True):
    """`source_type` is Kernel, Static, Direct, NodeMesh or BGPPeer; `peer_ip` is that of the last two."""

    source_type: str = ""
    peer_ip: str = field(name="peerIP", default="")


class RouteStatus(Value, frozen=True, kw_only=True):
    """`type` is FIB for BIRD's best route to `destination`, RIB for another; `gateway` N/A: none."""

    type: str = ""
    destination: str = ""
    gateway: str = ""
    interface: str = ""
    learned_from: LearnedFrom = LearnedFrom()


class RoutesStatus(Value, frozen=True, kw_only=True):
    routes_v4: tuple[RouteStatus, ...] = field(name="routesV4", default=())
    routes_v6: tuple[RouteStatus, ...] = field(name="routesV6", default=())


class CalicoNodeStatusStatus(Value, frozen=True, kw_only=True):
    """What the node has written, `last_updated` in RFC 3339. Classes that are not asked for are None."""

    last_updated: str = ""
    agent: AgentStatus | None = None
    bgp: BGPStatus | None = None
    routes: RoutesStatus | None = None


class CalicoNodeStatus(Resource, frozen=True, kw_only=True):
    KIND: ClassVar[Kind] = Kind(
        api_version="projectcalico.org/v3",
        kind="CalicoNodeStatus",
        plural="caliconodestatuses",
        aliases=("caliconodestatus", "nodestatus", "nodestatuses"),
    )
    spec: CalicoNodeStatusSpec = CalicoNodeStatusSpec()
    status: CalicoNodeStatusStatus = CalicoNodeStatusStatus()
