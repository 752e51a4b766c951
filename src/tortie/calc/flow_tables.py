"""Which links' TCP connections the kernel may forward past the rules, once they are established: nftables' flow tables.

    FelixConfiguration: tortie.dev/flow-tables: Enabled ─► FlowTable: links whose packets are looked for in it,
                                                           and the pods whose connections never get there

Policy asks about the first packet of a connection only; what comes after it is accepted as established. So a connection
that is established can go by a table of the kernel's, from link to link, and meet neither rules nor routing. Where a
rule does look at every packet, it must not: at a pod with a limit of packets a second or a DSCP to set, and at a link
whose host endpoint has doNotTrack policy for what comes in. UDP is left alone: flows of services to backends that have
gone are deleted, which the kernel refuses for flows that are in such a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from tortie.calc.hosts import Interfaces, covered
from tortie.calc.qos import QoS
from tortie.calc.state import DesiredState, Settings
from tortie.policy.rules import DIRECTIONS

LACKING = "this kernel has no flow tables (nft_flow_offload)"


@dataclass(frozen=True, slots=True)
class FlowTable:
    """`devices` are the links at which packets are looked for in the table, `slow` pods' interfaces whose connections
    stay out of it."""

    devices: frozenset[str]
    slow: frozenset[str] = frozenset()


def flow_table(state: DesiredState, interfaces: Interfaces, pods: Set[str]) -> FlowTable | None:
    """What is wanted, None if nothing is. `interfaces` are the node's own links that are there, `pods` those of pods.

    Besides pods these are the links by which other nodes and the world are reached: tunnels, and the links that have
    the node's own addresses. A connection that leaves by another link has one direction in the table, which is allowed:
    so it is with a link whose packets are all looked at as they come in.
    """
    if not state.settings.flow_tables or without(state.settings):
        return None
    slow = frozenset(name for name, one in state.endpoints.items() if looked_at(one.qos))
    tunnels = {device.name for device in state.overlay.devices} & interfaces.keys()
    uplinks = {name for name, ips in interfaces.items() if not state.hosts.isdisjoint(ips)}
    wanted = (state.endpoints.keys() & pods) - slow | tunnels | uplinks
    return FlowTable(frozenset(wanted - _watched(state, interfaces)), slow)


def narrowed(old: DesiredState | None, new: DesiredState) -> bool:
    """Whether a pod may send from less than before. Where a packet comes from is asked of each that goes by the rules:
    what the pod has in the table from there must leave it."""
    if old is None:
        return False
    pairs = ((one, new.endpoints.get(name)) for name, one in old.endpoints.items())
    changed = ((one, now) for one, now in pairs if now is not None and now is not one)
    return any(not {*one.ips, *one.sources} <= {*now.ips, *now.sources} for one, now in changed)


def _watched(state: DesiredState, interfaces: Interfaces) -> Set[str]:
    """The links where doNotTrack policy is asked about every packet that comes in, whatever it belongs to."""
    return {name for name, host in covered(state, interfaces).items() if host is not None and host.untracked.ingress}


def without(settings: Settings) -> str:
    """Why a node on which somebody wants a flow table has none by its configuration, "" if it has one."""
    if settings.established == "Cut":
        return "established-flows is Cut, and what is to be cut must be seen"
    return ""


def looked_at(qos: QoS) -> str:
    """Why every packet of a pod is looked at, "" if none but the first of a connection is.

    >>> from tortie.calc.qos import Limits
    >>> looked_at(QoS(ingress=Limits(packet_rate=100), dscp=46)), looked_at(QoS(egress=Limits(bandwidth=1000)))
    ('a limit of 100 packets a second (ingress), DSCP 46 is set', '')
    """
    return ", ".join(_looks(qos))


def _looks(qos: QoS) -> Iterator[str]:
    for direction in DIRECTIONS:
        if rate := qos.of(direction).packet_rate:
            yield f"a limit of {rate} packets a second ({direction})"
    if qos.dscp is not None:
        yield f"DSCP {qos.dscp} is set"
