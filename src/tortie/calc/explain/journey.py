"""The stations of one packet, in the order in which it meets them.

    pod ─► * preDNAT in ─► [DNAT] ─► * forward in ─► guards, egress ─┬─► ingress ─► * forward out ─► pod of this node
                                                                     └─► forward out ─► [SNAT] ─► route ─► elsewhere
    process of a node ─► [DNAT] ─► host endpoint: untracked, normal out ─► route; to its own pods: nothing
    another node ─► untracked, preDNAT in ─► [DNAT] ─┬─► forward in ─► ingress ─► * forward out ─► pod
                                                     ├─► forward in, forward out ─► [SNAT] ─► route ─► elsewhere
                                                     └─► normal in ─► process

Stations at host endpoints say nothing where there is none. What has been allowed before connection tracking or before
translation is not asked again at host endpoints on its way in. Who asks at a NodePort goes to that node first, and from
there to the backend's; policy sees a service's backend, and only what comes before DNAT sees the service.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace

from tortie.base.addr import IP
from tortie.calc.established import NEIGHBOURS, guard
from tortie.calc.explain.asked import host_step, pod_step
from tortie.calc.explain.explanation import Note, Route, Step
from tortie.calc.explain.party import Party, Translation
from tortie.calc.explain.path import hairpin, masked, outgoing, road, to_pod
from tortie.calc.explain.picture import Picture
from tortie.calc.explain.services import Door
from tortie.calc.state import SERVICE_LOOP
from tortie.model.hostendpoint import EVERY_INTERFACE
from tortie.policy.rules import Direction
from tortie.policy.verdict import HostClass, HostPolicy, Packet

HOST_ACTION = "pod to its own host: defaultEndpointToHostAction"


class Journey:
    """`steps` can be walked once; `routes` has what lay between those that were walked."""

    def __init__(self, picture: Picture, source: Party, destination: Party, packet: Packet) -> None:
        self._picture = picture
        self._source = source
        self._destination = destination
        self._packet = packet
        self._lead: Translation | None = destination.translation(packet.version)
        self._asked = False
        """Whether a host endpoint has had a say."""
        self._mask: IP | None = None
        """The source address that the packet has when it leaves the node that translates, if it is masqueraded."""
        self.routes: list[Route] = []

    def steps(self) -> Iterator[Step]:
        """Up to the first denial."""
        for step in self._walk():
            yield step
            if not step.allowed:
                return

    def _walk(self) -> Iterator[Step]:
        source, destination = self._source, self._destination
        if source.is_pod and source.interface == destination.interface and self._unchanged:
            yield Step(source.node, "inside the pod", True, "never leaves the pod: no policy is asked")
        elif source.is_pod:
            yield from self._from_pod()
        elif source.node:
            yield from self._from_process()
        else:
            yield from self._arrives("")
        if not source.is_pod and not source.node:
            yield from self._looped("")
        if not source.is_pod and not destination.is_pod and not self._asked:
            yield Step("", "no pod", True, "neither end is a pod: nothing here decides about it")

    @property
    def _unchanged(self) -> bool:
        """Whether the packet goes to the very address that it was sent to."""
        lead = self._lead
        return lead is None or (lead.address == lead.to and not lead.refused and lead.door is None)

    @property
    def _next(self) -> str:
        """The node that the packet is on its way to."""
        return self._lead.at if self._lead is not None and self._lead.at else self._destination.node

    def _from_pod(self) -> Iterator[Step]:
        node, interface = self._source.node, self._source.interface
        accepted = yield from self._at_every(node, "preDNAT", "ingress")
        yield from self._translated(node, "prerouting", destination_there=self._destination.node == node)
        if not self._destination.is_pod and self._next == node:
            yield from self._to_own_host(node, interface)
            return
        if not accepted:
            yield from self._at_every(node, "forward", "ingress")
        yield self._guarded(node) or pod_step(self._picture, node, interface, "egress", self._packet)
        if self._next == node:
            yield from self._into_pod(interface)
            itself = hairpin(self._destination, node, self._packet.version)
            if itself is not None and self._destination.interface == interface:
                yield itself[0]
            return
        yield from self._at_host(node, "forward", "egress")
        yield from self._looped(node)
        nat = outgoing(self._picture, node, self._packet) if self._mask is None else None
        self._leaves(node, interface)
        if nat is not None:
            yield nat[0]
            self._packet = replace(self._packet, source=nat[1] or self._packet.source)
        if self._next:
            yield from self._arrives(node)

    def _leaves(self, node: str, interface: str) -> None:
        """By a route, and with another source address where it is masqueraded."""
        to = self._destination if self._next == self._destination.node else Party(self._next, (), self._next)
        self.routes.append(road(self._picture, node, interface, self._packet, to))
        if self._mask is not None:
            self._packet = replace(self._packet, source=self._mask)
            self._mask = None

    def _to_own_host(self, node: str, interface: str) -> Iterator[Step]:
        if self._packet.protocol == 58 and self._packet.icmp_type in NEIGHBOURS:
            yield Step(node, "input", True, "neighbour discovery: a link cannot do without it")
            return
        yield self._guarded(node) or pod_step(self._picture, node, interface, "egress", self._packet)
        action = self._picture.settings(node).endpoint_to_host
        text = f"a pod to its own node: defaultEndpointToHostAction is {action}"
        if action == "Return":
            text += ", so the node's own rules decide; host endpoints are not asked"
        rule = HOST_ACTION if action == "Drop" else ""
        yield Step(node, "input", action != "Drop", text, rule=rule)

    def _looped(self, node: str) -> Iterator[Step]:
        """What is forwarded to an address of services that none has."""
        to, packet = self._destination, self._packet
        if to.is_pod or to.node or self._picture.settings(node).service_loops == "Disabled":
            return
        if any(packet.destination in net for net in self._picture.state.services):
            self._asked = True
            text = "it is an address of services, and no service has it"
            yield Step(node, "forward", False, text, rule=SERVICE_LOOP)

    def _guarded(self, node: str) -> Step | None:
        name = guard(self._packet, self._picture.settings(node))
        if not name:
            return None
        text = f"{name}: not let through whatever policy says, unless FelixConfiguration allows it"
        return Step(node, "egress", False, text, rule=name, interface=self._source.interface)

    def _from_process(self) -> Iterator[Step]:
        node, destination = self._source.node, self._destination
        yield from self._translated(node, "output", destination_there=destination.node == node)
        if destination.is_pod and self._next == node:
            yield Step(node, "ingress", True, "a node reaches its own pods: no policy is asked")
            return
        if self._next == node:
            yield from self._to_itself(node)
            return
        accepted = yield from self._at_host(node, "untracked", "egress")
        if not accepted:
            yield from self._at_host(node, "normal", "egress")
        self._leaves(node, "")
        if self._next:
            yield from self._arrives(node)

    def _to_itself(self, node: str) -> Iterator[Step]:
        """Over lo, which no host endpoint but the one for every interface is about."""
        yield from self._at_every(node, "normal", "egress")
        accepted = yield from self._at_every(node, "preDNAT", "ingress")
        if not accepted:
            yield from self._at_every(node, "normal", "ingress")

    def _arrives(self, before: str) -> Iterator[Step]:
        """At the destination's node, or at the one that translates, from another machine."""
        node = self._next
        accepted = yield from self._at_host(node, "untracked", "ingress")
        if not accepted:
            accepted = yield from self._at_host(node, "preDNAT", "ingress")
        first = not before  # what has passed no node yet meets a service's translation here
        yield from self._translated(node, "prerouting", destination_there=True, first=first)
        if self._next != node:
            yield from self._passes(node, accepted=accepted)
        elif self._destination.is_pod:
            if not accepted:
                yield from self._at_host(node, "forward", "ingress")
            yield from self._into_pod("")
        elif not accepted:
            yield from self._at_host(node, "normal", "ingress")

    def _passes(self, node: str, *, accepted: bool) -> Iterator[Step]:
        """Through the node that has translated, on to another one, or out of the cluster."""
        if not accepted:
            yield from self._at_host(node, "forward", "ingress")
        yield from self._at_host(node, "forward", "egress")
        self._leaves(node, "")
        if self._next:
            yield from self._arrives(node)

    def _into_pod(self, interface: str) -> Iterator[Step]:
        to = self._destination
        yield pod_step(self._picture, to.node, to.interface, "ingress", self._packet)
        yield from self._at_every(to.node, "forward", "egress")
        self.routes.append(to_pod(self._packet, to, interface))

    def _translated(self, node: str, hook: str, *, destination_there: bool, first: bool = True) -> Iterator[Step]:
        """The destination's other address becomes its own: a service's where the packet comes in first, a NodePort's on
        the node that has the address, a floating IP on the node of its pod."""
        lead = self._lead
        if lead is None or not (first if lead.anywhere else lead.at == node if lead.at else destination_there):
            return
        if lead.refused:
            yield Step(node, _refusing(hook, lead), False, lead.reason, door=lead.door)
            return
        notes = tuple(map(Note, (*lead.door.notes, *self._masked(node, lead.door)))) if lead.door is not None else ()
        self._lead = None
        port = lead.to_port or self._packet.destination_port
        self._packet = replace(self._packet, destination=lead.to, destination_port=port)
        yield Step(node, hook, True, lead.reason, notes=notes, door=lead.door)

    def _masked(self, node: str, door: Door) -> Iterator[str]:
        """What becomes of the source address, in words, where the node that translates gives it another one."""
        source, to = self._packet.source, self._destination
        if to.node == node and not to.is_pod:
            return  # a process of that node: what stays there passes no postrouting
        why = door.masked(source)
        mask = masked(self._picture, node, self._packet.version, to) if why else None
        if not why or mask == source:
            return
        self._mask = mask
        yield f"masqueraded: the backend sees {mask or 'an address of this node'} as the source, {why}"

    def _at_every(self, node: str, kind: HostClass, direction: Direction) -> Generator[Step, None, bool]:
        """A class of the host endpoint for every interface, as which pods' interfaces and lo count, too."""
        every = self._picture.host_of_every(node)
        return (yield from self._at(node, every, "which is for every interface", kind, direction))

    def _at_host(self, node: str, kind: HostClass, direction: Direction) -> Generator[Step, None, bool]:
        """A class of the node's host endpoint. What it returns at its end is whether that has allowed the packet."""
        host, why = (self._picture.host_of(node) if node else None) or (None, "")
        return (yield from self._at(node, host, why, kind, direction))

    def _at(
        self, node: str, host: HostPolicy | None, why: str, kind: HostClass, direction: Direction
    ) -> Generator[Step, None, bool]:
        if host is None or (kind == "untracked" and host.interface == EVERY_INTERFACE):  # Calico does not support it
            return False
        step = host_step(self._picture, node, host, why, kind, direction, self._packet)
        if step is None:
            return False
        self._asked = True
        yield step
        return step.allowed


def _refusing(hook: str, lead: Translation) -> str:
    """The hook at which a connection ends: at once for who may not ask, else that of processes, of the node itself, of
    what is forwarded."""
    shut_out = lead.door is not None and lead.door.backend is not None
    if shut_out or hook == "output":
        return hook
    return "input" if lead.at else "forward"
