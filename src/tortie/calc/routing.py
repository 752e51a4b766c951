"""The node's BGP from resources: addresses, AS numbers, the mesh, the peers that are written down, what is announced.

    BGPPeer ─► Peering   who has the session (near), with whom (far), and how
                 near, far is an address or selected nodes ─► a session for each address of the far end
                 far, and peering back is not Manual       ─► a session for each address of the near end, in reverse
                 near, far is workloads                    ─► a session for each address of each that is selected

Sessions are worked out anew only when something changes that they depend on; services have a part of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_interface
from typing import TypeVar

from tortie.base.addr import IP, Net, parse_ip, parse_net
from tortie.base.errors import ConfigError
from tortie.bgp.communities import Advertisement
from tortie.bgp.filters import Filter
from tortie.bgp.sessions import BGP_PORT, Cluster, ExplicitPeer, Peer, Router, Scope, router_id, sessions
from tortie.calc.bgp_filters import filter_of
from tortie.calc.local_workloads import LocalWorkload, LocalWorkloads
from tortie.calc.passwords import Passwords
from tortie.calc.peerings import Peering, password_of, peering, real_as, seconds, speaking
from tortie.calc.service_routes import EXCLUDE, ServiceRoutes, ranges_of
from tortie.calc.state import EndpointKey, Routing
from tortie.model.bgp import (
    DEFAULT_AS,
    INTERFACE_PATTERN,
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPPeer,
    SecretKeySelector,
    community,
)
from tortie.model.bgpfilter import BGPFilter
from tortie.model.node import Node, NodeBGPSpec
from tortie.model.secret import Secret

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BgpEnvironment:
    """What an agent is told of BGP beside the datastore.

    `router_id`: CALICO_ROUTER_ID: "", `hash` or an address. `secrets`: the namespace of passwords. `service_ips`: what
    takes the place of serviceClusterIPs, None for nothing. `kubernetes_node`: what EndpointSlices call this node, ""
    when it is its name.
    """

    router_id: str = ""
    secrets: str = "kube-system"
    service_ips: tuple[Net, ...] | None = None
    kubernetes_node: str = ""

    def checked(self) -> BgpEnvironment:
        """Raises ConfigError for a router id that is none."""
        router_id(IPv4Address("192.0.2.1"), "", self.router_id)
        return self


@dataclass(frozen=True, slots=True)
class _Made:
    """The sessions of a node, which of their passwords come from Secrets, and what of it cannot be had."""

    routing: Routing | None
    secrets: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)


def router_address(node: Node | None, version: int) -> IP | None:
    """The address that a node speaks BGP on, without its prefix length. Raises ConfigError."""
    bgp = node.spec.bgp if node is not None else None
    text = "" if bgp is None else bgp.ipv4_address if version == 4 else bgp.ipv6_address
    return _without_length(text, version) if text else None


@lru_cache(maxsize=1 << 16)
def _without_length(text: str, version: int) -> IP:
    where = f"spec.bgp.ipv{version}Address"
    try:
        ip = ip_interface(text).ip
    except ValueError:
        ip = None
    if ip is None or ip.version != version:
        raise ConfigError(f'"{text}" is not an IPv{version} address', where)
    return speaking(ip, where)


class RoutingInputs:
    """Everything that BGP is made of, as it comes; `routing(node)` is what one node makes of it."""

    def __init__(self, here: str | None = None, environment: BgpEnvironment | None = None) -> None:
        """`here`: the node whose services and workloads are followed. Raises ConfigError for a bad environment."""
        self.nodes: dict[str, Node] = {}
        self.service_routes = ServiceRoutes((environment or BgpEnvironment()).kubernetes_node or here or "")
        self.secrets_known = True
        """False: nobody has asked for Secrets yet; where sessions need one there are none."""
        self._here = here
        self._environment = (environment or BgpEnvironment()).checked()
        self._workloads = LocalWorkloads()
        self._passwords = Passwords(self._environment.secrets)
        self._configurations: dict[str, BGPConfigurationSpec] = {}
        self._peers: dict[str, Peering] = {}
        self._filters: dict[str, Filter] = {}
        self._routers: dict[str, Router] = {}
        self._hosts: frozenset[IP] | None = None
        self._made: dict[str, _Made] = {}
        """By node, as long as nothing changes that it is made of."""
        self._latest: tuple[_Made, Routing] | None = None
        self.on_configuration(None, "", "default")

    def on_node(self, node: Node | None, namespace: str, name: str) -> None:
        old = self.nodes.pop(name, None)
        self._routers.pop(name, None)
        if node is not None:
            self._router(node)
            self.nodes[name] = node
        if old is None or node is None or (old.spec.bgp, old.labels) != (node.spec.bgp, node.labels):
            self._changed()
        if name == self._here:
            self.service_routes.set_excluded(node is not None and node.labels.get(EXCLUDE) == "true")

    def on_configuration(self, configuration: BGPConfiguration | None, namespace: str, name: str) -> None:
        self._configurations.pop(name, None)
        self._routers.pop(name.removeprefix("node."), None)
        self._changed()
        if configuration is not None:
            _check(configuration.spec)
            self._configurations[name] = configuration.spec
        if name == "default":
            self.service_routes.set_ranges(ranges_of(self._default, self._environment.service_ips))

    def on_peer(self, peer: BGPPeer | None, namespace: str, name: str) -> None:
        known = self._peers.get(name)
        if peer is not None and known is not None and peer.spec == known.spec:
            return  # only its status has changed, where every node writes
        read = peering(peer.spec) if peer is not None else None
        self._workloads.set_selector(name, read.workloads if read is not None else None)
        if _set(self._peers, name, read):
            self._changed()

    def on_filter(self, resource: BGPFilter | None, namespace: str, name: str) -> None:
        read = filter_of(resource) if resource is not None else None
        if _set(self._filters, name, read):
            self._changed()

    def on_secret(self, secret: Secret | None, namespace: str, name: str) -> None:
        if self._passwords.set_secret(namespace, name, secret) and name in self._secret_names():
            self._made.clear()

    def on_workload(
        self,
        key: EndpointKey,
        workload: LocalWorkload | None,
        labels: Mapping[str, str] | None = None,
        profiles: tuple[str, ...] = (),
    ) -> None:
        """An endpoint of this node is like this, or (None) gone."""
        if self._here is None:
            return  # all endpoints count as local then, and nobody asks for the sessions of all of them
        if workload is None:
            matters = self._workloads.remove_endpoint(key)
        else:
            matters = self._workloads.set_endpoint(key, workload, labels or {}, profiles)
        if matters:
            self._made.clear()

    def on_profile_labels(self, name: str, labels: Mapping[str, str] | None) -> None:
        if self._workloads.set_profile_labels(name, labels):
            self._made.clear()

    def secrets_are_known(self, known: bool) -> None:
        """Whether what there is of Secrets has been heard, or will not be."""
        if known != self.secrets_known:
            self.secrets_known = known
            self._made.clear()

    def asks_secrets(self, node: str) -> bool:
        """Whether some session of a node has a password that is in a Secret."""
        return self._made_of(node).secrets

    def origins(self, node: str) -> dict[IP, tuple[str, ...]]:
        """The names of the BGPPeers that a node's sessions come from, by the address of the other end."""
        here = self.nodes.get(node)
        found: dict[IP, tuple[str, ...]] = {}
        if here is None:
            return found
        for name, one in sorted(self._peers.items()):
            for ip in {session.ip for session in self._sessions(here, name, one, None)}:
                found[ip] = (*found.get(ip, ()), name)
        return found

    def problems(self, node: str) -> Mapping[str, str]:
        """What sessions of a node go without, by what it is, with the reason."""
        return self._made_of(node).problems

    def hosts(self) -> frozenset[IP]:
        """Every node's own addresses."""
        if self._hosts is None:
            found = (router_address(node, version) for node in self.nodes.values() for version in (4, 6))
            self._hosts = frozenset(ip for ip in found if ip is not None)
        return self._hosts

    def services(self) -> tuple[Net, ...]:
        """The networks of services' addresses that the cluster's configuration names."""
        return ranges_of(self._default).every

    @property
    def programs(self) -> str | None:
        """What the cluster's configuration says BIRD writes."""
        return self._default.program_cluster_routes

    def routing(self, node: str) -> Routing | None:
        """None for a node that is not known or has no address to speak from, and while its passwords are not known.
        The very same object as last time when nothing has changed."""
        made = self._made_of(node)
        if made.secrets and not self.secrets_known:
            return None
        if made.routing is None or node != self._here:
            return made.routing
        services = self.service_routes.announced()
        if self._latest is None or self._latest[0] is not made or self._latest[1].services is not services:
            self._latest = made, replace(made.routing, services=services)
        return self._latest[1]

    def _changed(self) -> None:
        self._hosts = None
        self._made.clear()

    def _made_of(self, node: str) -> _Made:
        if self._here is not None and node != self._here:
            return self._make(node)  # asked for once in a while, and as large as our own
        if node not in self._made:
            self._made[node] = self._make(node)
        return self._made[node]

    def _make(self, node: str) -> _Made:
        here = self.nodes.get(node)
        if here is None or (router_address(here, 4) is None and router_address(here, 6) is None):
            return _Made(None)
        problems: dict[str, str] = {}
        meshed = self._default.node_to_node_mesh_enabled is not False
        mesh_secret = password_of(self._default.node_mesh_password) if meshed else None
        cluster = _cluster(self._default, self._password(mesh_secret, "the node-to-node mesh", problems))
        others = [self._router(other) for name, other in self.nodes.items() if name != node]
        near = [(name, one) for name, one in sorted(self._peers.items()) if self._concerns(here, one)]
        explicit = [
            session
            for name, one in near
            for session in self._sessions(here, name, one, self._password(one.secret, f"BGPPeer {name}", problems))
        ]
        peers = sessions(self._router(here), others, explicit, cluster)
        problems |= self._missing_filters(near)
        secrets = mesh_secret is not None or any(one.secret is not None for _, one in near)
        return _Made(self._routing(here, peers), secrets, problems)

    def _routing(self, here: Node, peers: tuple[Peer, ...]) -> Routing:
        """The sessions of a node, and what else it goes by."""
        default, me = self._default, self._router(here)
        own = self._configurations.get(f"node.{here.name}", BGPConfigurationSpec())
        identity = self._environment.router_id or ("" if me.ipv4 else "hash")
        return Routing(
            str(router_id(me.ipv4, here.name, identity)),
            me.ipv4,
            me.ipv6,
            me.as_number if me.as_number is not None else _cluster_as(default),
            own.listen_port or default.listen_port,
            default.bind_mode == "NodeIP",
            own.log_severity_screen or default.log_severity_screen or "Info",
            default.ignored_interfaces,
            peers,
            subnet=_subnet(here),
            reflects=me.cluster_id is not None,
            priority=_priorities(default),
            advertisements=_advertisements(own if own.prefix_advertisements else default),
            filters=self._filters_of(peers),
            workload_ips=_workload_ips(default),
            workload_interfaces=self._workload_interfaces(here),
        )

    @property
    def _default(self) -> BGPConfigurationSpec:
        return self._configurations.get("default", BGPConfigurationSpec())

    def _router(self, node: Node) -> Router:
        """A node as its peers see it. Raises ConfigError."""
        known = self._routers.get(node.name)
        if known is None:
            own = self._configurations.get(f"node.{node.name}")
            known = self._routers[node.name] = _router_of(node, own.listen_port if own is not None else None)
        return known

    def _concerns(self, here: Node, one: Peering) -> bool:
        """Whether a node is at either end of a peering."""
        return one.is_near(here) or (one.back and self._is_far(here, one))

    def _sessions(self, here: Node, name: str, one: Peering, password: str | None) -> Iterator[ExplicitPeer]:
        """The sessions of a node that a BGPPeer asks for."""
        if one.is_near(here):
            if one.address is not None:
                ip, port = one.address, one.port
                yield one.explicit(scope=one.scope, ip=ip, port=port, remote_as=one.remote_as, password=password)
            for workload in self._workloads.matched(name) if here.name == self._here else ():
                for ip in workload.ips:
                    yield one.explicit(scope=one.scope, ip=ip, remote_as=one.remote_as, password=password)
            for node, ip in self._ends(one.selects):
                yield self._with(ip, node, one, one.scope, password)
        if one.back and self._is_far(here, one):
            for node, ip in self._ends(one.is_near):
                if node is not here and (one.address is None or one.address.version == ip.version):
                    back = self._with(ip, node, one, Scope.NODE, password)
                    yield replace(back, reachable_by=None, reverse=True)

    def _ends(self, chosen: Callable[[Node], bool]) -> Iterator[tuple[Node, IP]]:
        """Every address of every chosen node."""
        for node in filter(chosen, self.nodes.values()):
            yield from ((node, ip) for ip in self._router(node).addresses)

    def _with(self, ip: IP, node: Node, one: Peering, scope: Scope, password: str | None) -> ExplicitPeer:
        """The session with a node that is at the other end of a peering."""
        return one.explicit(scope=scope, ip=ip, remote_as=self._as_of(node), port=None, password=password)

    def _is_far(self, node: Node, one: Peering) -> bool:
        """Whether the peering is with this node: selected, or meant by its address, AS number and port."""
        if one.address is None:
            return one.selects(node)
        router = self._router(node)
        if one.address not in router.addresses:
            return False
        port = router.listen_port or self._default.listen_port or BGP_PORT
        return one.port in (None, port) and one.remote_as == self._as_of(node)

    def _as_of(self, node: Node) -> int:
        own = self._router(node).as_number
        return own if own is not None else _cluster_as(self._default)

    def _password(self, ref: SecretKeySelector | None, whose: str, problems: dict[str, str]) -> str | None:
        """None where none is asked for, and where it cannot be had: then with a problem."""
        if ref is None:
            return None
        password, why = self._passwords.find(ref)
        if why and self.secrets_known:
            problems[f"password of {whose}"] = f"{why}, so its sessions have none"
        return password

    def _secret_names(self) -> set[str]:
        """Of the Secrets that anybody asks for."""
        asked = (password_of(self._default.node_mesh_password), *(one.secret for one in self._peers.values()))
        return {ref.name for ref in asked if ref is not None}

    def _filters_of(self, peers: tuple[Peer, ...]) -> tuple[Filter, ...]:
        names = {name for peer in peers for name in peer.filters}
        return tuple(self._filters[name] for name in sorted(names & self._filters.keys()))

    def _missing_filters(self, peerings: list[tuple[str, Peering]]) -> Iterator[tuple[str, str]]:
        for name, one in peerings:
            for wanted in one.filters:
                if wanted not in self._filters:
                    why = "there is no such BGPFilter, or none that can be read, so its sessions go without"
                    yield f"filter {wanted} of BGPPeer {name}", why

    def _workload_interfaces(self, here: Node) -> tuple[str, ...]:
        """Of the workloads that this node has sessions with."""
        if here.name != self._here:
            return ()
        near = (name for name, one in self._peers.items() if one.workloads is not None and one.is_near(here))
        return tuple(sorted({workload.interface for name in near for workload in self._workloads.matched(name)}))


def _set(known: dict[str, _T], name: str, value: _T | None) -> bool:
    """Put in what is there, or (None) is gone; whether it is another than before."""
    before = known.pop(name, None)
    if value is not None:
        known[name] = value
    return value != before


def _router_of(node: Node, listen_port: int | None) -> Router:
    bgp = node.spec.bgp or NodeBGPSpec()
    ipv4, ipv6 = router_address(node, 4), router_address(node, 6)
    return Router(
        name=node.name,
        ipv4=ipv4 if isinstance(ipv4, IPv4Address) else None,
        ipv6=ipv6 if isinstance(ipv6, IPv6Address) else None,
        as_number=real_as(bgp.as_number, "spec.bgp.asNumber"),
        cluster_id=str(parse_ip(bgp.route_reflector_cluster_id)) if bgp.route_reflector_cluster_id else None,
        listen_port=listen_port,
    )


def _subnet(node: Node) -> Net | None:
    """The IPv4 network that a node says it is in."""
    text = node.spec.bgp.ipv4_address if node.spec.bgp is not None else ""
    return IPv4Interface(text).network if text else None


def _check(spec: BGPConfigurationSpec) -> None:
    """Raises ConfigError for what cannot be understood."""
    _cluster(spec, None)
    _advertisements(spec)
    _workload_ips(spec)
    ranges_of(spec)
    for i, name in enumerate(spec.ignored_interfaces):
        if not INTERFACE_PATTERN.fullmatch(name):
            raise ConfigError(f'"{name}" is not an interface name or pattern', f"spec.ignoredInterfaces[{i}]")


def _cluster(spec: BGPConfigurationSpec, mesh_password: str | None) -> Cluster:
    """What holds for every session. Raises ConfigError."""
    return Cluster(
        as_number=_cluster_as(spec),
        listen_port=spec.listen_port,
        mesh_enabled=spec.node_to_node_mesh_enabled is not False,
        mesh_password=mesh_password,
        mesh_restart_time=seconds(spec.node_mesh_max_restart_time),
    )


def _cluster_as(spec: BGPConfigurationSpec) -> int:
    return real_as(spec.as_number, "spec.asNumber") or DEFAULT_AS


def _priorities(spec: BGPConfigurationSpec) -> dict[int, int]:
    said = {4: spec.ipv4_normal_route_priority, 6: spec.ipv6_normal_route_priority}
    return {version: value for version, value in said.items() if value is not None}


def _advertisements(spec: BGPConfigurationSpec) -> tuple[Advertisement, ...]:
    """Raises ConfigError."""
    named = {one.name: community(one.value) for one in spec.communities}
    return tuple(
        Advertisement(parse_net(one.cidr), tuple(named.get(word) or community(word) for word in one.communities))
        for one in spec.prefix_advertisements
    )


def _workload_ips(spec: BGPConfigurationSpec) -> tuple[IP, ...]:
    """Raises ConfigError."""
    said = {4: spec.local_workload_peering_ipv4, 6: spec.local_workload_peering_ipv6}
    return tuple(_workload_ip(text, f"spec.localWorkloadPeeringIPV{version}") for version, text in said.items() if text)


def _workload_ip(text: str, where: str) -> IP:
    try:
        ip = parse_ip(text)
    except ConfigError as error:
        raise error.within(where) from None
    return speaking(ip, where)
