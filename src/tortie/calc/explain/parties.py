"""Who can be asked about, and by which words.

NAMESPACE/POD, POD          a pod (of namespace default)
NODE, node/NODE             a process of a node
ADDRESS                     whoever has it: a pod, a node, a floating IP, a network set, or a stranger
svc/NAMESPACE/NAME[:PORT]   each backend of a service that the source may get; so are the service's addresses, and a
                            NodePort at an address of a node
netset/NAMESPACE/NAME       the first address of each network of a NetworkSet; gns/NAME: of a GlobalNetworkSet
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tortie.base.addr import IP, Net, parse_ip
from tortie.base.errors import ConfigError, NotFound
from tortie.calc.cluster import Cluster
from tortie.calc.explain.party import Party, Translation
from tortie.calc.explain.path import outgoing
from tortie.calc.explain.picture import Picture
from tortie.calc.explain.services import Door, Services
from tortie.calc.proxy.state import Frontend, ServiceKey
from tortie.calc.state import DesiredState, LocalEndpoint
from tortie.model.policy import PORT_PROTOCOLS, PROTOCOLS, protocol_number
from tortie.model.service import Service
from tortie.model.workload import WorkloadEndpoint
from tortie.policy.verdict import Packet

SERVICE, NODE, NETWORK_SET, GLOBAL_SET = "svc", "node", "netset", "gns"
WORDS = "NAMESPACE/POD, NODE, an address, svc/NAMESPACE/NAME, netset/NAMESPACE/NAME or gns/NAME"
_SETS = {NETWORK_SET: "NetworkSet", GLOBAL_SET: "GlobalNetworkSet"}


class Parties:
    """Everybody in a cluster at one moment."""

    def __init__(self, cluster: Cluster, state: DesiredState, picture: Picture, services: Services) -> None:
        self._cluster = cluster
        self._picture = picture
        self._services = services
        self._by_pod: dict[tuple[str, str], Party] = {}
        self._by_ip: dict[IP, Party] = {}
        self._floating: dict[IP, Party] = {}
        for local in state.endpoints.values():
            endpoint = cluster.endpoint(local.key)
            if endpoint is not None:
                self._add(endpoint, local, floating=state.settings.floating_ips)

    def one(self, text: str) -> Party:
        """Raises NotFound, ConfigError; also for words that mean several."""
        found = self.every(text, "tcp", 0)
        if len(found) != 1:
            names = ", ".join(party.name for party in found)
            raise ConfigError(f"{text} is {len(found)} parties: ask about one of {names}")
        return found[0]

    def every(self, text: str, protocol: str, port: int, source: Party | None = None) -> list[Party]:
        """All that the words mean. Protocol and port are asked of services, by `source`; None: by somebody outside.
        Who is told of a service's ports that nobody serves is the address itself. Raises NotFound, ConfigError."""
        kind, _, rest = text.partition("/")
        if kind == SERVICE and "/" in rest:
            return self._behind_name(rest, protocol, port, source)
        if kind == NODE and rest in self._cluster.nodes() and (NODE, rest) not in self._by_pod:
            return self._behind_node(self._node(rest), protocol, port, source)
        if (kind == NETWORK_SET and "/" in rest) or (kind == GLOBAL_SET and rest and (kind, rest) not in self._by_pod):
            return self._of_set(kind, rest)
        if kind == SERVICE and (kind, rest) not in self._by_pod:
            raise ConfigError(f'"{text}" is no service: write svc/NAMESPACE/NAME or svc/NAMESPACE/NAME:PORT')
        if "/" in text:
            if "." in kind or ":" in kind:  # a network, say; no namespace has a name with these
                raise ConfigError(f'"{text}" is nobody: write {WORDS}')
            return [self._pod(kind, rest)]
        try:
            ip = parse_ip(text)
        except ConfigError:
            if ":" in text or text.replace(".", "").isdigit():
                raise ConfigError(f'"{text}" is nobody: write {WORDS}') from None
        else:
            return self._behind_address(ip, protocol, port, source)
        if ("default", text) not in self._by_pod and text in self._cluster.nodes():
            return self._behind_node(self._node(text), protocol, port, source)
        return [self._pod("default", text)]

    def address(self, ip: IP) -> Party:
        """Whoever has an address."""
        found = self._by_ip.get(ip) or self._floating.get(ip)
        if found is not None:
            return found
        for node in self._cluster.nodes():
            if str(ip) == self._cluster.address_of(node, ip.version):
                return Party(str(ip), (ip,), node)
        if node := self._cluster.tunnel_owner(ip):
            return Party(str(ip), (ip,), node)
        return Party(str(ip), (ip,), sets=tuple(self._sets_with(ip)))

    def _add(self, endpoint: WorkloadEndpoint, local: LocalEndpoint, *, floating: bool) -> None:
        key = endpoint.namespace, endpoint.spec.pod
        numbers = ((port.name, protocol_number(port.protocol), port.port) for port in endpoint.spec.ports)
        ports = tuple((name, number, port) for name, number, port in numbers if name and number is not None)
        party = Party("/".join(key), local.ips, endpoint.spec.node, local.interface, ports)
        self._by_pod[key] = party
        for ip in local.ips:
            self._by_ip.setdefault(ip, party)
        for external, own in local.nats if floating else ():
            reason = f"floating IP {external} leads to {party.name}, {own}"
            lead = (Translation(external, own, reason),)
            self._floating.setdefault(external, replace(party, ips=(own,), translations=lead))

    def _pod(self, namespace: str, name: str) -> Party:
        found = self._by_pod.get((namespace, name))
        if found is None:
            why = "the pod does not exist, is not running, or no agent connected it, as with flannel alone"
            raise NotFound(f"{namespace}/{name} has no endpoint: {why}")
        return found

    def _node(self, name: str) -> Party:
        texts = (self._cluster.address_of(name, version) for version in (4, 6))
        ips = tuple(parse_ip(text) for text in texts if text is not None)
        if not ips:
            raise NotFound(f"node {name} has no address yet: its agent has not registered it")
        return Party(name, ips, name)

    def _sets_with(self, ip: IP) -> Iterator[str]:
        for (kind, namespace, name), addresses in self._cluster.addresses():
            if kind in ("netset", "gns") and any(ip in net for net in addresses.nets):
                yield f"{kind}/{namespace}/{name}" if namespace else f"{kind}/{name}"

    def _of_set(self, kind: str, rest: str) -> list[Party]:
        namespace, _, name = rest.rpartition("/")
        for item, addresses in self._cluster.addresses():
            if item == (kind, namespace, name):
                if not addresses.nets:
                    raise NotFound(f"{_SETS[kind]} {rest} has no networks")
                return [self.address(_first(net)) for net in addresses.nets]
        raise NotFound(f"there is no {_SETS[kind]} {rest}")

    # --- services -------------------------------------------------------------------------------------------------

    def _behind_name(self, rest: str, protocol: str, port: int, source: Party | None) -> list[Party]:
        """The backends of `NAMESPACE/NAME[:PORT]`, each under the service's own address."""
        namespace, _, name = rest.partition("/")
        name, _, wanted = name.partition(":")
        key = namespace, name
        service, title = self._services.service(key), f"{namespace}/{name}"
        number = protocol_number(protocol)
        own = [
            one
            for one in service.spec.ports
            if PROTOCOLS[one.protocol] == number
            and (wanted in (one.name, str(one.port)) if wanted else one.port == port)
        ]
        if not own:
            raise ConfigError(f"Service {title} has no port {wanted or port} of this protocol; {_ports(service)}")
        frontends = self._services.of_service(key, number, own[0].port)
        found = [party for one in frontends for party in self._behind(key, one, source)]
        if not frontends and self._services.has_address(key):
            why = self._services.problem(key) or "its label or annotation leaves it to somebody else"
            raise NotFound(f"Service {title} is not served by Tortie: {why}")
        if not frontends:
            found = [self._by_name(service, ip, target) for ip, target in self._services.endpoints(key, own[0].name)]
        if not found or (source is None and all(_refused(party) for party in found)):
            raise NotFound(f"Service {title} has no ready backend for {protocol} {wanted or port}")
        return _merged(found)

    def _behind_address(self, ip: IP, protocol: str, port: int, source: Party | None) -> list[Party]:
        """Who answers at an address: of a service's, its backends; else who has it, or the NodePort there."""
        number = protocol_number(protocol)
        found = self._services.at(ip, number, port)
        if found is not None:
            return _merged(self._behind(*found, source))
        key = self._services.cluster_ip_of(ip) if self._services.has(ip) else None
        if key is not None:
            return [self._no_such_port(key, ip, protocol, port)]
        return self._behind_node(self.address(ip), protocol, port, source)

    def _behind_node(self, party: Party, protocol: str, port: int, source: Party | None) -> list[Party]:
        """A party, or the backends of the NodePort that its node answers at this port."""
        if party.is_pod or not party.node:
            return [party]
        found: list[Party] = []
        for key, frontend in self._services.node_ports(protocol_number(protocol), port):
            ip = party.ip(frontend.version)
            if ip is not None:
                found += self._behind(key, frontend, source, party.node, ip)
        return _merged(found) or [party]

    def _behind(
        self, key: ServiceKey, frontend: Frontend, source: Party | None, node: str = "", ip: IP | None = None
    ) -> list[Party]:
        """All that may become of who asks at a frontend; of a NodePort, at this address of a node."""
        asked = ip or frontend.ip
        assert asked is not None
        at = node or (source.node if source is not None else "") or None
        outside = source is None or self._from_outside(source, at, asked, frontend)
        doors = self._services.doors(key, frontend, at, outside=outside)
        shut = doors[0].shut_out(source.ip(asked.version)) if source is not None else ""
        if shut:  # whichever it would get
            lead = Translation(asked, asked, shut, frontend.port, frontend.port, not node, node, True, doors[0])
            return [Party(str(asked), (asked,), node, service=doors[0].title, translations=(lead,))]
        return [self._through(door, asked, node) for door in doors]

    def _from_outside(self, source: Party, at: str | None, asked: IP, frontend: Frontend) -> bool:
        """Whether a node that translates takes the source for neither a pod nor a process of its own."""
        if source.node and source.node == at:
            return False
        ip = source.ip(asked.version)
        if ip is None or not source.is_pod:
            return True
        packet = Packet(ip, asked, frontend.protocol, 0, frontend.port, 0, 0)
        return outgoing(self._picture, source.node, packet) is not None

    def _through(self, door: Door, asked: IP, node: str) -> Party:
        """Who is behind a door; where nobody is, the address itself, at which all ends."""
        port = door.entrance.frontend.port
        if door.backend is None:
            lead = Translation(asked, asked, door.refusal, port, port, not node, node, refused=True, door=door)
            return Party(str(asked), (asked,), node, service=door.title, translations=(lead,))
        to = door.backend
        lead = Translation(asked, to.ip, door.reason, port, to.port, not node, node, door=door)
        return replace(self.address(to.ip), ips=(to.ip,), service=door.title, translations=(lead,))

    def _no_such_port(self, key: ServiceKey, ip: IP, protocol: str, port: int) -> Party:
        title = "/".join(key)
        what = f"{protocol} port {port}" if protocol_number(protocol) in PORT_PROTOCOLS else protocol
        text = f"Service {title} has no {what}: refused at once; {_ports(self._services.service(key))}"
        lead = Translation(ip, ip, text, port, port, anywhere=True, refused=True)
        return Party(str(ip), (ip,), service=title, translations=(lead,))

    def _by_name(self, service: Service, ip: IP, target: int) -> Party:
        """A backend of a service without an address: nothing is translated."""
        title = f"{service.namespace}/{service.name}"
        text = f"Service {title} has no IPv{ip.version} address of its own: its name leads to {ip} at once"
        lead = Translation(ip, ip, text, target, target, anywhere=True)
        return replace(self.address(ip), ips=(ip,), service=title, translations=(lead,))


def _merged(parties: Iterable[Party]) -> list[Party]:
    """Who is reached over both IP versions is one party."""
    found: list[Party] = []
    for one in parties:
        versions = {ip.version for ip in one.ips}
        for i, known in enumerate(found):
            if known.name == one.name and versions.isdisjoint(ip.version for ip in known.ips):
                ips, translations = known.ips + one.ips, known.translations + one.translations
                found[i] = replace(known, ips=ips, translations=translations)
                break
        else:
            found.append(one)
    return found


def _refused(party: Party) -> bool:
    return all(lead.refused for lead in party.translations)


def _ports(service: Service) -> str:
    known = (f"{one.port}/{one.protocol}" + (f" ({one.name})" if one.name else "") for one in service.spec.ports)
    return f"it has {', '.join(known) or 'none'}"


def _first(net: Net) -> IP:
    """An address that stands for a network: the first that a host may have."""
    return net[1] if net.num_addresses > 2 else net[0]
