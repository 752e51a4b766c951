"""Services as a connection meets them: which node translates, which backends it may get there, and what is said of it.

    who asks                      at an address of a service              at a NodePort
    a pod, a process of a node    its own node translates                 the node that has the address
    somebody outside              whichever node it comes to first        the node that has the address

What a node does is `calc.proxy`'s to say, of each node anew: hints, local backends and duplicates are in there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tortie.base.addr import IP, parse_ip
from tortie.base.errors import ConfigError, NotFound, suggest
from tortie.calc.proxy.inputs import ZONE, ProxyInputs
from tortie.calc.proxy.state import Backend, Entrance, Frontend, ProxyState, Served, ServiceKey
from tortie.calc.state import DesiredState
from tortie.model.k8s import K8sNode
from tortie.model.meta import Resource, title
from tortie.model.node import Node
from tortie.model.service import EndpointSlice, Service


@dataclass(frozen=True, slots=True)
class Door:
    """One thing that can become of who asks at a frontend: a backend, or none: refused. `local`: it is one of those for
    who comes from outside to its node. `state` is the node's that translates."""

    key: ServiceKey
    entrance: Entrance
    backend: Backend | None
    local: bool = False
    notes: tuple[str, ...] = ()
    refusal: str = ""
    drops: bool = False
    state: ProxyState = field(default_factory=ProxyState, compare=False, repr=False)

    @property
    def title(self) -> str:
        return "/".join(self.key)

    @property
    def reason(self) -> str:
        """Of the translation, in words."""
        many = len(self.entrance.local or () if self.local else self.entrance.backends)
        local = "local " if self.local else ""
        which = f"one of {many} {local}backends" if many != 1 else f"the only {local}backend"
        return f"Service {self.title}, {called(self.entrance)}: {self.backend} is {which}"

    def shut_out(self, source: IP | None) -> str:
        """Why who has this address may not ask here at all, "" if it may."""
        sources = self.entrance.sources
        if source is None or sources is None or any(source in net for net in sources):
            return ""
        nets = ", ".join(map(str, sources)) or "nobody"
        return f"{source} is not in loadBalancerSourceRanges of Service {self.title}: {nets}"

    def masked(self, source: IP) -> str:
        """Why the backend sees another source address than this, "" if it sees this one."""
        if self.local or self.backend is None:
            return ""
        if self.backend.ip == source:
            return "or the pod would take itself for the other end"
        if self.entrance.kind == "NodePort":
            return "as whoever asks at a NodePort is"
        if any(source in net for net in self.state.pods):
            return ""
        return f"for {source} is no pod's address"


def called(entrance: Entrance) -> str:
    """A frontend in words: `port 80`, `NodePort 30080`."""
    front = entrance.frontend
    if entrance.kind == "NodePort":
        return f"NodePort {front.port}"
    if entrance.kind == "ClusterIP":
        return f"port {front.port}"
    return f"{'external address' if entrance.kind == 'ExternalIP' else 'load balancer'} {front.ip}, port {front.port}"


class Services:
    """Those of a cluster at one moment. A node's state is made of what is asked about only."""

    def __init__(self, state: DesiredState, also: Iterable[Resource] = ()) -> None:
        self._pools = state.pools
        self._known: dict[ServiceKey, Service] = {}
        self._slices: dict[ServiceKey, list[EndpointSlice]] = defaultdict(list)
        self._labels: dict[str, dict[str, str]] = {}
        self._sharing: dict[IP | int, set[ServiceKey]] = defaultdict(set)
        """Services by their addresses and NodePorts: what is another's, too, may be the other's alone."""
        self._states: dict[tuple[str, frozenset[ServiceKey]], ProxyState] = {}
        self._pod_cidrs: dict[str, tuple[str, ...]] = {}
        for one in also:
            if isinstance(one, K8sNode):
                self._pod_cidrs[one.name] = one.pod_cidrs
            if isinstance(one, Service):
                self._add(one)
            elif isinstance(one, EndpointSlice):
                self._slices[one.namespace, one.service].append(one)
            elif isinstance(one, Node | K8sNode):
                self._labels[one.name] = {**self._labels.get(one.name, {}), **one.labels}

    def service(self, key: ServiceKey) -> Service:
        """Raises NotFound; ConfigError for one that is a name for something else."""
        found, title = self._known.get(key), "/".join(key)
        if found is None:
            hint = suggest(title, ("/".join(known) for known in self._known))
            raise NotFound(f"there is no Service {title}{hint and ', '}{hint}")
        if found.spec.type == "ExternalName":
            raise ConfigError(f"Service {title} is a name for {found.spec.external_name}, nothing else")
        return found

    def slices(self, key: ServiceKey) -> list[EndpointSlice]:
        return self._slices.get(key, [])

    def has(self, ip: IP) -> bool:
        """Whether it is an address of some service."""
        return ip in self._sharing

    def node_ports(self, protocol: int | None, port: int) -> list[tuple[ServiceKey, Frontend]]:
        """What is answered at this port of every node, of each IP version."""
        return [
            (key, one.frontend)
            for key, one in self._entrances(self._sharing.get(port, ()))
            if one.kind == "NodePort" and (one.frontend.protocol, one.frontend.port) == (protocol, port)
        ]

    def at(self, ip: IP, protocol: int | None, port: int) -> tuple[ServiceKey, Frontend] | None:
        """Whose an address and port is; None if no service's."""
        for key, one in self._entrances(self._sharing.get(ip, ())):
            if one.frontend.ip == ip and (one.frontend.protocol, one.frontend.port) == (protocol, port):
                return key, one.frontend
        return None

    def cluster_ip_of(self, ip: IP) -> ServiceKey | None:
        """The service whose ClusterIP it is: what asks there at a port that the service does not have is rejected."""
        keys = sorted(self._sharing.get(ip, ()))
        state = self.state("", keys)
        return next((key for key in keys if key in state.services and ip in state.services[key].cluster_ips), None)

    def of_service(self, key: ServiceKey, protocol: int | None, port: int | str) -> list[Frontend]:
        """At its own addresses, by number or name of the port; empty where it has no such port."""
        served = self.state("", self._rivals(key)).services.get(key)
        return [
            one.frontend
            for one in (served.entrances if served is not None else ())
            if one.kind == "ClusterIP"
            and one.frontend.protocol == protocol
            and str(port) in (one.port_name, str(one.frontend.port))
        ]

    def has_address(self, key: ServiceKey) -> bool:
        """Whether it is more than a name: headless services are not."""
        spec = self._known[key].spec
        return any(text not in ("", "None") for text in (spec.cluster_ip, *spec.cluster_ips))

    def endpoints(self, key: ServiceKey, port_name: str) -> Iterator[tuple[IP, int]]:
        """What a service's name leads to: ready endpoints with their port."""
        for one in self.slices(key):
            target = next((port.port for port in one.ports if port.name == port_name and port.port), None)
            for end in one.endpoints if target else ():
                ip = end.ip(one.version)
                if end.conditions.ready is not False and ip is not None:
                    yield ip, target or 0

    def problem(self, key: ServiceKey) -> str:
        """Why it is not served as it asks for, "" if it is."""
        return self.state("", self._rivals(key)).problems.get(title(Service.KIND, key[1], key[0]), "")

    def doors(self, key: ServiceKey, frontend: Frontend, node: str | None, *, outside: bool) -> list[Door]:
        """What may become of who asks there, at least one. `node` translates; None: whichever it comes to first.
        `outside`: the source is no pod, and no process of that node."""
        if node is None:
            return self._anywhere(key, frontend)
        state, entrance = self._entrance(node, key, frontend)
        local = outside and entrance.local is not None
        chosen = entrance.local if local and entrance.local is not None else entrance.backends
        notes = tuple(self._notes(node, key, entrance, local))
        if not chosen:
            return [self._refused(node, key, entrance, local, state)]
        return [Door(key, entrance, one, local, notes, state=state) for one in chosen]

    def _anywhere(self, key: ServiceKey, frontend: Frontend) -> list[Door]:
        """Each backend as its own node would translate to it."""
        found: dict[tuple[IP, int], Door] = {}
        for node in (*self._nodes(key), ""):
            for door in self.doors(key, frontend, node, outside=True):
                one = door.backend
                if one is not None and one.node == node:
                    found[one.ip, one.port] = door
        ordered = [found[place] for place in sorted(found, key=lambda place: (int(place[0]), place[1]))]
        return ordered or self.doors(key, frontend, "", outside=True)

    def _refused(self, node: str, key: ServiceKey, entrance: Entrance, local: bool, state: ProxyState) -> Door:
        ready, every = self._ready(key, entrance)
        drops = entrance.unserved == "drop"
        what = "dropped" if drops else "refused at once"
        title = f"Service {'/'.join(key)}, {called(entrance)}"
        if local:
            why = f"externalTrafficPolicy is Local, and none of {ready} ready endpoints is on {node or 'that node'}"
        elif ready:
            why = f"internalTrafficPolicy is Local, and none of {ready} ready endpoints is on {node or 'that node'}"
        else:
            why = f"none of its {every} endpoints is ready" if every else "it has no endpoints"
        return Door(key, entrance, None, local, (), f"{title}: {why}: {what}", drops, state)

    def _notes(self, node: str, key: ServiceKey, entrance: Entrance, local: bool) -> Iterator[str]:
        """What else there is to say of the choice."""
        ready, _ = self._ready(key, entrance)
        service, here = self._known[key], node or "the node that it comes to"
        if local:
            yield f"externalTrafficPolicy Local: only backends on {here} are chosen from, and see the client's address"
        elif entrance.kind == "ClusterIP" and service.spec.internal_traffic_policy == "Local":
            yield f"internalTrafficPolicy Local: only backends on {here} are chosen from"
        elif 0 < len(entrance.backends) < ready:
            zone = self._labels.get(node, {}).get(ZONE, "")
            place = f"zone {zone}, where {node} is" if zone else f"node {node}"
            yield f"{len(entrance.backends)} of {ready} ready endpoints have hints for {place}: the others are not used"
        if not ready:
            yield "no endpoint is ready: those are used that end and still serve"
        if entrance.affinity:
            yield f"session affinity: the same client gets the same backend for {entrance.affinity} s"

    def _ready(self, key: ServiceKey, entrance: Entrance) -> tuple[int, int]:
        """How many endpoints are ready, and how many there are."""
        version, name = entrance.frontend.version, entrance.port_name
        ready: dict[str, bool] = {}
        for one in self.slices(key):
            fits = one.address_type == f"IPv{version}" and any(p.name == name and p.port for p in one.ports)
            for endpoint in one.endpoints if fits else ():
                if endpoint.addresses:
                    there = endpoint.addresses[0]
                    ready[there] = ready.get(there, False) or endpoint.conditions.ready is not False
        return sum(ready.values()), len(ready)

    def _nodes(self, key: ServiceKey) -> list[str]:
        return sorted({end.node_name for one in self.slices(key) for end in one.endpoints if end.node_name})

    def _entrance(self, node: str, key: ServiceKey, frontend: Frontend) -> tuple[ProxyState, Entrance]:
        state = self.state(node, self._rivals(key))
        return state, next(one for one in state.services[key].entrances if one.frontend == frontend)

    def _entrances(self, keys: Iterable[ServiceKey]) -> Iterator[tuple[ServiceKey, Entrance]]:
        wanted = sorted(keys)
        found: dict[ServiceKey, Served] = dict(self.state("", wanted).services) if wanted else {}
        yield from ((key, one) for key in wanted if key in found for one in found[key].entrances)

    def _rivals(self, key: ServiceKey) -> set[ServiceKey]:
        """The service, and all that may be in its way."""
        return {key, *(other for sharing in _places(self._known[key]) for other in self._sharing[sharing])}

    def state(self, node: str, keys: Iterable[ServiceKey]) -> ProxyState:
        """Of some services, as a node sees them; "": one that has no backend and no zone."""
        wanted = frozenset(keys)
        if (node, wanted) not in self._states:
            self._states[node, wanted] = self._made(node, wanted)
        return self._states[node, wanted]

    def _made(self, node: str, keys: frozenset[ServiceKey]) -> ProxyState:
        inputs = ProxyInputs(node)
        if node in self._labels:
            inputs.set_node(node, self._labels[node])
        for pool in self._pools:
            inputs.set_pool(pool.name, pool.net, workloads=not pool.load_balancer_only)
        for name, cidrs in self._pod_cidrs.items():
            inputs.set_pod_cidrs(name, cidrs)
        for key in keys:
            inputs.set_service(*key, self._known[key])
            for one in self.slices(key):
                inputs.set_slice(one.namespace, one.name, one)
        return inputs.state()

    def _add(self, service: Service) -> None:
        key = service.namespace, service.name
        self._known[key] = service
        for place in _places(service):
            self._sharing[place].add(key)


def _places(service: Service) -> Iterator[IP | int]:
    """The addresses at which a service may be asked, and its NodePorts."""
    spec = service.spec
    balanced = (one.ip for one in service.ingress)
    for text in {spec.cluster_ip, *spec.cluster_ips, *spec.external_ips, *balanced}:
        if text and text != "None":
            try:
                yield parse_ip(text)
            except ConfigError:
                continue
    yield from {port.node_port for port in spec.ports if port.node_port}
