"""Services for one node, from objects as they come: in any order and as often as they like; `state()` is what follows.

    Service ───────► asked ──┬─► claims: who has a frontend ─┐
    EndpointSlice ─► offers ─┴───────────────────────────────┴─► serve ─► Served
    Node ──────────► the zone of this node, whether it is leaving; which ones load balancers leave out
    IPPool ────────► where pods are; which addresses are answered for by ARP and neighbour discovery
    podCIDRs ──────► where pods are, if no pool is for them: addresses are somebody else's to give

A change costs what the services have that it is about. Nothing here fails: what cannot be served as it is asked for is
left out and is a problem of the state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tortie.base.addr import IP, Net, collapse, parse_net
from tortie.base.errors import ConfigError
from tortie.calc.proxy.backends import Candidates, Offer, PortKey, merged, offer, whereabouts
from tortie.calc.proxy.claims import Claims
from tortie.calc.proxy.frontends import Asked, asked
from tortie.calc.proxy.serve import addresses_here, serve, told
from tortie.calc.proxy.state import Entrance, Frontend, ProxyState, Served, ServiceKey
from tortie.calc.service_routes import EXCLUDE
from tortie.model.meta import title
from tortie.model.service import EndpointSlice, Service

ZONE = "topology.kubernetes.io/zone"

SliceKey = tuple[str, str]
"""Namespace and name of an EndpointSlice."""
Answering = Mapping[IP, frozenset[str] | None]
"""Which nodes may answer for an address; None: any."""


@dataclass(frozen=True, slots=True)
class Range:
    """What counts of an IPPool."""

    net: Net
    workloads: bool
    layer2: bool


class ProxyInputs:
    """Feed it; ask `state`."""

    def __init__(
        self,
        node: str,
        *,
        cluster_cidrs: Iterable[Net] = (),
        masquerade_all: bool = False,
        node_ports: tuple[Net, ...] | None = None,
    ) -> None:
        """`node` is what EndpointSlices call this one, "" none in particular. `cluster_cidrs`, where there are some,
        take the place of pools and pod CIDRs. `node_ports`: where NodePorts are answered on this node."""
        self._node = node
        self._cidrs = tuple(collapse(cluster_cidrs))
        self._zone = ""
        self._leaving = False
        self._asked: dict[ServiceKey, Asked] = {}
        self._balanced: set[ServiceKey] = set()
        """Those that have addresses of load balancers."""
        self._claims = Claims()
        self._offers: dict[SliceKey, Offer] = {}
        self._slices: dict[ServiceKey, set[SliceKey]] = {}
        self._ranges: dict[str, Range] = {}
        self._pod_cidrs: dict[str, tuple[Net, ...]] = {}
        """By node."""
        self._excluded: frozenset[str] = frozenset()
        self._served: dict[ServiceKey, Served] = {}
        self._here: Counter[IP] = Counter()
        self._here_of: dict[ServiceKey, frozenset[IP]] = {}
        self._answering_of: dict[ServiceKey, Answering] = {}
        self._problems: dict[str, str] = {}
        self._stale: set[ServiceKey] = set()
        """Services to be worked out again."""
        self._changed: set[str] = set()
        """Fields of the state to be made again."""
        self._last = ProxyState(node=node, pods=self._cidrs, node_ports=node_ports, masquerade_all=masquerade_all)

    def set_service(self, namespace: str, name: str, service: Service | None) -> None:
        """It is like this, or (None) gone."""
        key = namespace, name
        old, new = self._asked.get(key), asked(service) if service is not None else None
        if old == new:
            return
        self._stale.add(key)
        self._balanced.discard(key)
        if new is None:
            del self._asked[key]
            self._stale |= self._claims.claim(key, "", ())
            return
        self._asked[key] = new
        if new.balanced:
            self._balanced.add(key)
        self._stale |= self._claims.claim(key, new.created, (entrance.frontend for entrance in new.entrances))

    def set_slice(self, namespace: str, name: str, slice_: EndpointSlice | None) -> None:
        """It is like this, or (None) gone. It may come to be of another service."""
        key = namespace, name
        old, new = self._offers.pop(key, None), offer(slice_, self._node) if slice_ is not None else None
        if new is not None:
            self._offers[key] = new
        if old == new:
            return
        if old is not None:
            self._slices[old.service].discard(key)
            if not self._slices[old.service]:
                del self._slices[old.service]
            self._stale.add(old.service)
        if new is not None:
            self._slices.setdefault(new.service, set()).add(key)
            self._stale.add(new.service)
        self._note(title(EndpointSlice.KIND, name, namespace), _refused(new) if new is not None else "")

    def set_node(self, name: str, labels: Mapping[str, str] | None, *, leaving: bool = False) -> None:
        """Its labels are these, or (None) it is gone. Any node: some are left out by load balancers. `leaving`: it is
        being deleted, or about to be; once it is gone, that stays so."""
        excluded = self._excluded - {name} if labels is None or EXCLUDE not in labels else self._excluded | {name}
        if excluded != self._excluded:
            self._excluded = excluded
            self._changed.add("excluded")
            self._stale |= self._answering_of.keys()
        if name != self._node:
            return
        zone = (labels or {}).get(ZONE, "")
        if zone != self._zone:
            self._zone = zone
            self._stale.update(one.service for one in self._offers.values() if one.hinted)
        if labels is not None and leaving != self._leaving:
            self._leaving = leaving
            self._changed.add("leaving")

    def set_pool(self, name: str, net: Net | None, *, workloads: bool = True, layer2: bool = False) -> None:
        """A pool is like this, or (None) gone. `layer2`: load balancers' addresses of it are answered for by ARP and
        neighbour discovery."""
        old, new = self._ranges.pop(name, None), Range(net, workloads, layer2) if net is not None else None
        if new is not None:
            self._ranges[name] = new
        if old == new:
            return
        self._changed.add("pods")
        if any(one is not None and one.layer2 for one in (old, new)):
            self._stale |= self._balanced

    def set_pod_cidrs(self, node: str, cidrs: Iterable[str]) -> None:
        """The networks that Kubernetes has given a node for its pods; none: it is gone. What is no network counts as
        none."""
        old, new = self._pod_cidrs.pop(node, ()), tuple(_nets(cidrs))
        if new:
            self._pod_cidrs[node] = new
        if new != old:
            self._changed.add("pods")

    def state(self) -> ProxyState:
        """The very same object as last time when nothing has changed. It is read by other threads: nothing in it
        changes later."""
        for key in self._stale:
            self._work_out(key)
        self._stale.clear()
        makers = {
            "services": self._served.copy,
            "pods": self._pods,
            "here": lambda: frozenset(self._here),
            "layer2": self._layer2,
            "excluded": lambda: self._node in self._excluded,
            "leaving": lambda: self._leaving,
            "problems": self._problems.copy,
        }
        made: dict[str, Any] = {field: makers[field]() for field in self._changed}
        self._changed.clear()
        new = {field: value for field, value in made.items() if value != getattr(self._last, field)}
        if new:
            self._last = replace(self._last, generation=self._last.generation + 1, **new)
        return self._last

    def _work_out(self, key: ServiceKey) -> None:
        """What one service has, again."""
        wanted, old = self._asked.get(key), self._served.get(key)
        served: Served | None = None
        answering: Answering = {}
        problem = ""
        if wanted is not None:
            held, lost = self._split(wanted)
            ports = merged([self._offers[each] for each in sorted(self._slices.get(key, ()))], self._node)
            served = serve(wanted, held, ports, self._node, self._zone, old)
            answering = self._answered(served, ports)
            problem = "; ".join((*wanted.refused, *told(lost)))
        if served is not None:
            self._served[key] = served
        elif old is not None:
            del self._served[key]
        if served is not old:
            self._changed.add("services")
            self._count_here(key, addresses_here(served, self._node) if served is not None else frozenset())
        if answering != self._answering_of.get(key, {}):
            self._changed.add("layer2")
            self._answering_of[key] = answering
        if not answering:
            self._answering_of.pop(key, None)
        self._note(title(Service.KIND, key[1], key[0]), problem)

    def _split(self, wanted: Asked) -> tuple[list[Entrance], dict[ServiceKey, list[Frontend]]]:
        """The entrances that are a service's own, and the frontends that others have."""
        held: list[Entrance] = []
        lost: dict[ServiceKey, list[Frontend]] = {}
        for entrance in wanted.entrances:
            holder = self._claims.holder(entrance.frontend)
            if holder is None or holder == wanted.key:
                held.append(entrance)
            else:
                lost.setdefault(holder, []).append(entrance.frontend)
        return held, lost

    def _answered(self, served: Served, ports: Mapping[PortKey, Candidates]) -> Answering:
        """The addresses of a service that are answered for by ARP and neighbour discovery."""
        nets = [one.net for one in self._ranges.values() if one.layer2]
        if not nets or served.key not in self._balanced:
            return {}
        found: dict[IP, frozenset[str] | None] = {}
        for entrance in served.entrances:
            ip = entrance.frontend.ip
            if entrance.kind == "LoadBalancer" and ip is not None and any(ip in net for net in nets):
                found[ip] = None if entrance.local is None else whereabouts(ports, ip.version) - self._excluded
        return found

    def _count_here(self, key: ServiceKey, now: frozenset[IP]) -> None:
        """Several services may have one backend."""
        old = self._here_of.pop(key, frozenset())
        if now:
            self._here_of[key] = now
        self._here.update(now - old)
        for ip in old - now:
            self._here[ip] -= 1
            if not self._here[ip]:
                del self._here[ip]
        if now != old:
            self._changed.add("here")

    def _note(self, whose: str, problem: str) -> None:
        if problem != self._problems.get(whose, ""):
            self._changed.add("problems")
            self._problems[whose] = problem
        if not problem:
            self._problems.pop(whose, None)

    def _pods(self) -> tuple[Net, ...]:
        pools = [one.net for one in self._ranges.values() if one.workloads]
        return self._cidrs or tuple(collapse(pools or chain.from_iterable(self._pod_cidrs.values())))

    def _layer2(self) -> dict[IP, frozenset[str] | None]:
        """Services may share an address. Then it is for a node that all of them may have it on, if there is one."""
        asked_for: dict[IP, list[frozenset[str]]] = {}
        for answering in self._answering_of.values():
            for ip, nodes in answering.items():
                of = asked_for.setdefault(ip, [])
                if nodes is not None:
                    of.append(nodes)
        return {
            ip: (frozenset.intersection(*of) or frozenset.union(*of)) if of else None for ip, of in asked_for.items()
        }


def _nets(cidrs: Iterable[str]) -> Iterator[Net]:
    for text in cidrs:
        with suppress(ConfigError):
            yield parse_net(text)


def _refused(one: Offer) -> str:
    if not one.refused:
        return ""
    shown = ", ".join(one.refused[:3]) + (f" and {len(one.refused) - 3} more" if len(one.refused) > 3 else "")
    return f"{shown}: no address that a service can lead to: it must be of the slice's IP version, and not loopback"
