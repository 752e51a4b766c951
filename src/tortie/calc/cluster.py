"""The cluster as one node sees it: resources go in, in any order and as often as they like; a DesiredState comes out.

    store ─► put/drop ─► ActivePolicies ─┐
                     └─► AddressSets ────┼─► state()
                     └─► pools, blocks, ─┘
                         nodes, settings

With `node=None` every endpoint counts as local: that is how questions about the whole cluster are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from tortie.base.addr import IP, Net, parse_net
from tortie.base.errors import ConfigError, NotSupported
from tortie.calc.copies import POLICY_PREFIX, Originals
from tortie.calc.hosts import host_addresses, not_enforced
from tortie.calc.local_workloads import LocalWorkload
from tortie.calc.overlay import OverlayInputs
from tortie.calc.pod_networks import PodNetworkInputs
from tortie.calc.policies import ActivePolicies
from tortie.calc.programming import programming
from tortie.calc.proxy.election import asks_layer2
from tortie.calc.proxy.inputs import ProxyInputs
from tortie.calc.qos import qos_of
from tortie.calc.routing import BgpEnvironment, RoutingInputs, router_address
from tortie.calc.services import Services
from tortie.calc.sets import Addresses, AddressSets, ItemKey
from tortie.calc.settings import SettingsInputs
from tortie.calc.state import (
    ClusterRoute,
    DesiredState,
    EndpointKey,
    LocalEndpoint,
    Pool,
    Programming,
    Routing,
    Settings,
)
from tortie.calc.workloads import allowed_sources, endpoint_addresses, floating_ips
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.bgpfilter import BGPFilter
from tortie.model.closed_rules import unknown_conditions
from tortie.model.clusterpolicy import ClusterNetworkPolicy
from tortie.model.hostendpoint import HostEndpoint
from tortie.model.ipam import BlockAffinity, IPPool, IPPoolSpec
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource, title
from tortie.model.node import FelixConfiguration, FelixConfigurationSpec, Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.model.secret import Secret
from tortie.model.service import EndpointSlice, Service
from tortie.model.staged import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from tortie.model.workload import INTERFACE_NAME, WorkloadEndpoint
from tortie.policy.rules import Policy, PolicyKey, ServiceSet, SetRef
from tortie.policy.translate import (
    DEFAULT_ALLOW,
    NAMESPACE,
    POLICY_KINDS,
    default_allow,
    namespace_profile,
    policy_of,
    profile_of,
    service_account_profile,
    without_reserved,
)
from tortie.policy.verdict import EndpointPolicy

INPUTS: tuple[type[Resource], ...] = (
    Namespace, ServiceAccount, Node, IPPool, BlockAffinity, Tier, Profile, NetworkSet, GlobalNetworkSet, NetworkPolicy,
    GlobalNetworkPolicy, K8sNetworkPolicy, ClusterNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy, EndpointSlice, WorkloadEndpoint, HostEndpoint, FelixConfiguration, BGPConfiguration,
    BGPFilter, BGPPeer, Service,
)  # fmt: skip
"""The kinds that a node must know. Secrets it follows only when a password is in one."""


class Cluster:
    """Incremental: `state()` costs what has changed since the last one."""

    def __init__(
        self,
        node: str | None,
        *,
        bird: bool = True,
        environment: BgpEnvironment | None = None,
        proxy: ProxyInputs | None = None,
    ) -> None:
        """`bird`: the node runs BIRD; without it the agent alone writes routes. `proxy`: for services, made with this
        node's options. Raises ConfigError for an environment that cannot be."""
        self.node = node
        self._bird = bird
        self.problems: dict[str, str] = {}
        """Objects that cannot be understood and count as absent, by title, with the reason."""
        self._policies = ActivePolicies()
        self._profiles: Originals[str, tuple[Policy, Mapping[str, str]]] = Originals()
        self._copied: Originals[tuple[str, str], Policy] = Originals()
        self._sets = AddressSets()
        self._services = Services()
        self._endpoints: dict[EndpointKey, WorkloadEndpoint] = {}
        self._spoofers: dict[EndpointKey, WorkloadEndpoint] = {}
        """Those that want to send from others' addresses, whether that is allowed (then they are endpoints) or not."""
        self._spoofing = False
        self._pools: dict[str, Pool] = {}
        self._blocks: dict[str, Net] = {}
        self._active: Mapping[PolicyKey, Policy] = {}
        self._local: dict[EndpointKey, LocalEndpoint] = {}
        self._settings = SettingsInputs()
        self._routing = RoutingInputs(node, environment)
        self._overlay = OverlayInputs(node)
        self._pod_networks = PodNetworkInputs(node)
        self._kubernetes_node = (environment or BgpEnvironment()).kubernetes_node or node or ""
        self._proxy = proxy or ProxyInputs(self._kubernetes_node)
        self.generation = 0
        """Of the state that was made last."""
        self._not_enforced: dict[str, str] = {}
        self._handlers: dict[type[Resource], Callable[[Any, str, str], None]] = {
            WorkloadEndpoint: self._on_endpoint,
            HostEndpoint: self._on_host_endpoint,
            **{kind: self._on_policy(kind) for kind in POLICY_KINDS if kind is not Profile},
            EndpointSlice: self._on_slice,
            Tier: self._on_tier,
            Profile: self._on_profile,
            Namespace: self._on_namespace,
            ServiceAccount: self._on_service_account,
            NetworkSet: self._on_network_set,
            GlobalNetworkSet: self._on_network_set,
            IPPool: self._on_pool,
            BlockAffinity: self._on_affinity,
            FelixConfiguration: self._settings.on_configuration,
            Node: self._on_node,
            BGPConfiguration: self._routing.on_configuration,
            BGPPeer: self._routing.on_peer,
            BGPFilter: self._routing.on_filter,
            Secret: self._routing.on_secret,
            Service: self._on_service,
        }
        self._policies.set_profile(DEFAULT_ALLOW, default_allow(), {})
        self._sets.set_profile_labels(DEFAULT_ALLOW, {})

    def tell(self, settings: FelixConfigurationSpec) -> None:
        """What this node's environment says of settings, which beats the datastore. Raises ConfigError."""
        self._settings.told(settings)

    def put(self, resource: Resource) -> None:
        """An object is there, like this. Kinds that nobody needs are ignored; one that cannot be read is a problem."""
        if isinstance(resource, WorkloadEndpoint):
            key = (resource.namespace, resource.name)
            self._spoofers.pop(key, None)
            if resource.spec.allow_spoofed_source_prefixes:
                self._spoofers[key] = resource
        self._handle(type(resource), resource, resource.namespace, resource.name, resource.title)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        """An object is gone."""
        if kind is WorkloadEndpoint:
            self._spoofers.pop((namespace, name), None)
        self._handle(kind, None, namespace, name, title(kind.KIND, name, namespace))

    def state(self) -> DesiredState:
        """What this node must look like now. It is read by other threads: nothing in it changes later."""
        self.generation += 1
        self._policies.flush()
        missing = self._routing.problems(self.node) if self.node is not None else {}
        pod_networks, unrouted = self._pod_networks.networks()
        if self._policies.active is not self._active:
            self._active = self._policies.active
            self._need([ref for policy in self._active.values() for ref in policy.refs])
        self._note_problems({**not_enforced(self._policies.hosts), **missing, **unrouted, **self._services.problems()})
        endpoints: dict[str, LocalEndpoint] = {}
        for key in sorted(self._policies.consulted, reverse=True):  # of two on one interface the lowest name wins
            endpoint = self._local_endpoint(key, self._policies.consulted[key])
            endpoints[endpoint.interface] = endpoint
        settings = self.settings()
        who, overlay = self._overlay.overlay(settings, self._programming(settings))
        return DesiredState(
            self.generation,
            self.node or "",
            endpoints,
            self._active,
            self._sets.members() | self._services.members(),
            tuple(self._pools[name] for name in sorted(self._pools)),
            tuple(sorted(set(self._blocks.values()), key=_net_order)),
            self._routing.hosts(),
            settings,
            self.routing(),
            self._policies.hosts,
            self._routing.services(),
            who,
            overlay,
            pod_networks,
            self._proxy.state(),
        )

    def _note_problems(self, problems: dict[str, str]) -> None:
        """Those that only show when everything is put together."""
        for gone in self._not_enforced.keys() - problems.keys():
            self.problems.pop(gone, None)
        self.problems |= problems
        self._not_enforced = problems

    def _need(self, refs: list[SetRef]) -> None:
        self._sets.need(ref for ref in refs if not isinstance(ref, ServiceSet))
        self._services.need(ref for ref in refs if isinstance(ref, ServiceSet))

    def settings(self) -> Settings:
        return self.settings_of(self.node)

    def settings_of(self, node: str | None) -> Settings:
        """What holds on a node; with None what holds where nothing else is said."""
        found = self._routing.nodes.get(node) if node is not None else None
        return self._settings.settings(node, found.labels if found is not None else {})

    def _programming(self, settings: Settings) -> Programming:
        who = programming(self._routing.programs, settings.cluster_routes)
        return who if self._bird else replace(who, bird=frozenset())

    def way(self, node: str, ip: IP, to: str) -> ClusterRoute | None:
        """How a node gets to an address on another one, for answers to people; None where BIRD writes the route."""
        settings = self.settings_of(node)
        rules = self._overlay.rules(node, settings, self._programming(settings))
        return self._overlay.way(rules, ip, to)

    def tunnel_source(self, node: str, ip: IP, to: str) -> IP | None:
        """The address of its own that a node speaks from to one on another node; None where that is no tunnel's."""
        way = self.way(node, ip, to)
        return self._overlay.tunnel_address(node, way.device) if way is not None and way.device else None

    def tunnel_owner(self, ip: IP) -> str:
        """The node that has an address as its own end of a tunnel, "" if none has."""
        return self._overlay.tunnel_owner(ip)

    def routing(self) -> Routing | None:
        """None as long as this node has no Node object with an address."""
        return self.routing_of(self.node) if self.node is not None else None

    def routing_of(self, node: str) -> Routing | None:
        """The same of any node: what its own agent makes of the same objects. Raises ConfigError."""
        return self._routing.routing(node)

    def origins(self, node: str) -> dict[IP, tuple[str, ...]]:
        """The names of the BGPPeers that a node's sessions come from, by the address of the other end."""
        return self._routing.origins(node)

    def node_of(self, node: str) -> Node | None:
        """A Node by its name; None when there is none, or it cannot be understood."""
        return self._routing.nodes.get(node)

    def asks_secrets(self) -> bool:
        """Whether a session of this node has a password that is in a Secret."""
        return self.node is not None and self._routing.asks_secrets(self.node)

    def secrets_are_known(self, known: bool) -> None:
        """Whether all Secrets have been put in, or will not be. While they are not, and one is asked for, there is no
        routing: a session without its password would end the one that runs with it."""
        self._routing.secrets_are_known(known)

    def address_of(self, node: str, version: int) -> str | None:
        """A node's own address, for answers to people."""
        ip = router_address(self._routing.nodes.get(node), version)
        return str(ip) if ip is not None else None

    def addresses(self) -> Iterable[tuple[ItemKey, Addresses]]:
        """What every endpoint and network set brings into sets, for answers to people."""
        return self._sets.items()

    def nodes(self) -> list[str]:
        return sorted(self._routing.nodes)

    def endpoint(self, key: EndpointKey) -> WorkloadEndpoint | None:
        """The object, also of an endpoint that counts as absent for the sources that it asks for."""
        return self._endpoints.get(key) or self._spoofers.get(key)

    def _local_endpoint(self, key: EndpointKey, policy: EndpointPolicy) -> LocalEndpoint:
        """The very same object as last time when nothing has changed."""
        known = self._local.get(key)
        if known is None or known.policy is not policy:
            endpoint = self._endpoints[key]
            ips = endpoint_addresses(endpoint).ips
            nats = floating_ips(endpoint)
            sources, qos = allowed_sources(endpoint), qos_of(endpoint.spec.qos_controls)
            known = LocalEndpoint(key, endpoint.spec.interface_name, ips, endpoint.spec.mac, policy, nats, sources, qos)
            self._local[key] = known
        return known

    def _handle(self, kind: type[Resource], resource: Resource | None, namespace: str, name: str, whose: str) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            return
        try:
            handler(resource, namespace, name)
            self.problems.pop(whose, None)
            self.problems.pop(f"a rule of {whose}", None)
            if resource is not None and (closed := "; ".join(unknown_conditions(resource))):
                self.problems[f"a rule of {whose}"] = closed
        except (ConfigError, NotSupported) as error:
            self.problems[whose] = str(error)
            handler(None, namespace, name)
        if kind is FelixConfiguration or (kind is Node and name == self.node):
            self._allow_spoofing(self.settings().source_spoofing)

    def _allow_spoofing(self, allowed: bool) -> None:
        """Endpoints that ask for sources of others come and go with the setting."""
        if self._spoofing != allowed:
            self._spoofing = allowed
            for endpoint in list(self._spoofers.values()):
                self.put(endpoint)

    def _on_endpoint(self, endpoint: WorkloadEndpoint | None, namespace: str, name: str) -> None:
        key, item = (namespace, name), ("wep", namespace, name)
        self._local.pop(key, None)
        before = _whereabouts(self._endpoints.get(key))
        if endpoint is None:
            self._endpoints.pop(key, None)
            self._overlay.on_endpoint(key, before, _whereabouts(None))
            self._sets.remove_item(item)
            self._policies.remove_endpoint(key)
            self._routing.on_workload(key, None)
            return
        spec = endpoint.spec
        local = bool(spec.interface_name) and (self.node is None or spec.node == self.node)
        if local and not INTERFACE_NAME.match(spec.interface_name):
            raise ConfigError(f'"{spec.interface_name}" is not an interface name', "spec.interfaceName")
        if allowed_sources(endpoint) and not self._spoofing:
            text = "sources of others are allowed only where FelixConfiguration says workloadSourceSpoofing: Any"
            raise ConfigError(text, "spec.allowSpoofedSourcePrefixes")
        self._endpoints[key] = endpoint
        self._overlay.on_endpoint(key, before, _whereabouts(endpoint))
        self._sets.set_item(item, endpoint.labels, spec.profiles, endpoint_addresses(endpoint))
        if local:
            self._policies.set_endpoint(key, spec.interface_name, endpoint.labels, spec.profiles)
            speaker = LocalWorkload(spec.interface_name, endpoint_addresses(endpoint).ips)
            self._routing.on_workload(key, speaker, endpoint.labels, spec.profiles)
        else:
            self._policies.remove_endpoint(key)
            self._routing.on_workload(key, None)

    def _on_host_endpoint(self, host: HostEndpoint | None, namespace: str, name: str) -> None:
        item: ItemKey = ("hep", "", name)
        if host is None:
            self._sets.remove_item(item)
            self._policies.remove_host(name)
            return
        for path, problem in host.spec.problems():  # not every datastore's objects come through the model's checks
            raise ConfigError(problem, f"spec.{path}")
        spec, addresses = host.spec, host_addresses(host)
        self._sets.set_item(item, host.labels, spec.profiles, addresses)
        if self.node is None or spec.node == self.node:
            self._policies.set_host(name, spec.node, spec.interface_name, addresses.ips, host.labels, spec.profiles)
        else:
            self._policies.remove_host(name)

    def _on_policy(self, kind: type[Resource]) -> Callable[[Any, str, str], None]:
        def handler(resource: Any, namespace: str, name: str) -> None:
            policy = None if resource is None else policy_of(resource)
            if kind is K8sNetworkPolicy:
                original, copy = name, f"{POLICY_PREFIX}{name}"
                self._count(namespace, original, copy, self._copied.original((namespace, original), policy))
            elif kind is NetworkPolicy and name.startswith(POLICY_PREFIX):
                original = name.removeprefix(POLICY_PREFIX)
                self._count(namespace, original, name, self._copied.copy((namespace, original), policy))
            elif policy is None:
                self._policies.remove_policy(PolicyKey(POLICY_KINDS[kind], namespace, name))
            else:
                self._policies.set_policy(policy)

        return handler

    def _count(self, namespace: str, original: str, copy: str, policy: Policy | None) -> None:
        """Of a policy and its copy the one that counts, and not the other."""
        for key in (PolicyKey("knp", namespace, original), PolicyKey("np", namespace, copy)):
            if policy is None or policy.key != key:
                self._policies.remove_policy(key)
        if policy is not None:
            self._policies.set_policy(policy)

    def _on_slice(self, slice_: EndpointSlice | None, namespace: str, name: str) -> None:
        self._services.set_slice(namespace, name, slice_)
        self._routing.service_routes.set_slice(namespace, name, slice_)
        self._proxy.set_slice(namespace, name, slice_)

    def _on_service(self, service: Service | None, namespace: str, name: str) -> None:
        self._routing.service_routes.set_service(namespace, name, service)
        self._proxy.set_service(namespace, name, service)

    def _on_tier(self, tier: Tier | None, namespace: str, name: str) -> None:
        settings = None if tier is None else (tier.spec.order, tier.spec.default_action or "Deny")
        self._policies.set_tier(name, settings)

    def _on_profile(self, profile: Profile | None, namespace: str, name: str) -> None:
        if name == DEFAULT_ALLOW:
            return
        if profile is None:
            self._set_profile(name, self._profiles.copy(name, None))
        else:
            self._set_profile(name, self._profiles.copy(name, (profile_of(profile), profile.spec.labels_to_apply)))

    def _on_namespace(self, resource: Namespace | None, namespace: str, name: str) -> None:
        profile = f"kns.{name}"
        self._set_profile(profile, self._profiles.original(profile, namespace_profile(resource) if resource else None))

    def _on_service_account(self, resource: ServiceAccount | None, namespace: str, name: str) -> None:
        profile = f"ksa.{namespace}.{name}"
        made = service_account_profile(resource) if resource else None
        self._set_profile(profile, self._profiles.original(profile, made))

    def _set_profile(self, name: str, profile: tuple[Policy, Mapping[str, str]] | None) -> None:
        rules, labels = profile or (None, None)
        self._policies.set_profile(name, rules, labels)
        self._sets.set_profile_labels(name, labels)
        self._routing.on_profile_labels(name, labels)

    def _on_network_set(self, resource: NetworkSet | GlobalNetworkSet | None, namespace: str, name: str) -> None:
        item: ItemKey = ("netset" if namespace else "gns", namespace, name)
        if resource is None:
            self._sets.remove_item(item)
            return
        labels = dict(resource.labels)
        parents: tuple[str, ...] = ()
        if namespace:
            labels = without_reserved(labels) | {NAMESPACE: namespace}
            parents = (f"kns.{namespace}",)
        self._sets.set_item(item, labels, parents, Addresses(nets=tuple(parse_net(n) for n in resource.spec.nets)))

    def _on_pool(self, pool: IPPool | None, namespace: str, name: str) -> None:
        if pool is None:
            self._pools.pop(name, None)
            self._overlay.on_pool(None, name)
            self._proxy.set_pool(name, None)
            return
        spec = pool.spec
        self._pools[name] = Pool(
            name,
            spec.net,
            spec.nat_outgoing,
            spec.disabled,
            not spec.disable_bgp_export,
            set(spec.uses) == {"LoadBalancer"},
            tunnel_of(spec),
            "CrossSubnet" in (spec.ipip_mode, spec.vxlan_mode),
        )
        self._overlay.on_pool(self._pools[name], name)
        self._proxy.set_pool(name, spec.net, workloads="Workload" in spec.uses, layer2=asks_layer2(pool))

    def _on_affinity(self, affinity: BlockAffinity | None, namespace: str, name: str) -> None:
        self._blocks.pop(name, None)
        if affinity is None or not affinity.spec.owns:
            self._overlay.on_affinity(name, None, "")
            return
        block, node = parse_net(affinity.spec.cidr), affinity.spec.node
        self._overlay.on_affinity(name, block, node)
        if node == self.node:
            self._blocks[name] = block

    def _on_node(self, node: Node | None, namespace: str, name: str) -> None:
        self._routing.on_node(node, namespace, name)
        self._overlay.on_node(node, name)
        self._pod_networks.on_node(node, name)
        known_as = self._kubernetes_node if name == self.node else name
        leaving = node is not None and node.leaving
        self._proxy.set_node(known_as, node.labels if node is not None else None, leaving=leaving)
        self._proxy.set_pod_cidrs(known_as, node.pod_cidrs if node is not None else ())


def _whereabouts(endpoint: WorkloadEndpoint | None) -> tuple[str, tuple[IP, ...]]:
    """The node of an endpoint, and its addresses."""
    return (endpoint.spec.node, endpoint_addresses(endpoint).ips) if endpoint is not None else ("", ())


def tunnel_of(pool: IPPoolSpec) -> str:
    """How packets of a pool travel between nodes."""
    if pool.vxlan_mode not in (None, "Never"):
        return "VXLAN"
    return "IPIP" if pool.ipip_mode not in (None, "Never") else ""


def _net_order(net: Net) -> tuple[int, Net]:
    return net.version, net
