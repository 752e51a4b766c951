"""The cluster as one node sees it: resources go in, in any order and as often as they like; a DesiredState comes out.

    store ─► put/drop ─► ActivePolicies ─┐
                     └─► AddressSets ────┼─► state()
                     └─► pools, blocks, ─┘
                         nodes, settings

With `node=None` every endpoint counts as local: that is how questions about the whole cluster are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tortie.base.addr import Net, parse_net
from tortie.base.errors import ConfigError, NotSupported
from tortie.calc.policies import ActivePolicies
from tortie.calc.routing import RoutingInputs, router_address
from tortie.calc.sets import Addresses, AddressSets, ItemKey
from tortie.calc.settings import SettingsInputs
from tortie.calc.state import DesiredState, EndpointKey, LocalEndpoint, Pool, Routing, Settings
from tortie.calc.workloads import endpoint_addresses, floating_ips
from tortie.model.bgp import BGPConfiguration, BGPPeer
from tortie.model.ipam import BlockAffinity, BlockAffinitySpec, IPPool
from tortie.model.k8s import K8sNetworkPolicy, Namespace, ServiceAccount
from tortie.model.meta import Resource, title
from tortie.model.node import FelixConfiguration, Node
from tortie.model.policy import GlobalNetworkPolicy, GlobalNetworkSet, NetworkPolicy, NetworkSet, Profile, Tier
from tortie.model.workload import INTERFACE_NAME, WorkloadEndpoint
from tortie.policy.rules import Policy, PolicyKey
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
    GlobalNetworkPolicy, K8sNetworkPolicy, WorkloadEndpoint, FelixConfiguration, BGPConfiguration, BGPPeer,
)  # fmt: skip
"""The kinds that a node must know."""


class Cluster:
    """Incremental: `state()` costs what has changed since the last one."""

    def __init__(self, node: str | None) -> None:
        self.node = node
        self.problems: dict[str, str] = {}
        """Objects that cannot be understood and count as absent, by title, with the reason."""
        self._policies = ActivePolicies()
        self._sets = AddressSets()
        self._endpoints: dict[EndpointKey, WorkloadEndpoint] = {}
        self._pools: dict[str, Pool] = {}
        self._blocks: dict[str, Net] = {}
        self._active: Mapping[PolicyKey, Policy] = {}
        self._local: dict[EndpointKey, LocalEndpoint] = {}
        self._settings = SettingsInputs()
        self._routing = RoutingInputs()
        self._generation = 0
        self._handlers: dict[type[Resource], Callable[[Any, str, str], None]] = {
            WorkloadEndpoint: self._on_endpoint,
            NetworkPolicy: self._on_policy(NetworkPolicy),
            GlobalNetworkPolicy: self._on_policy(GlobalNetworkPolicy),
            K8sNetworkPolicy: self._on_policy(K8sNetworkPolicy),
            Tier: self._on_tier,
            Profile: self._on_profile,
            Namespace: self._on_namespace,
            ServiceAccount: self._on_service_account,
            NetworkSet: self._on_network_set,
            GlobalNetworkSet: self._on_network_set,
            IPPool: self._on_pool,
            BlockAffinity: self._on_affinity,
            FelixConfiguration: self._settings.on_configuration,
            Node: self._routing.on_node,
            BGPConfiguration: self._routing.on_configuration,
            BGPPeer: self._routing.on_peer,
        }
        self._policies.set_profile(DEFAULT_ALLOW, default_allow(), {})
        self._sets.set_profile_labels(DEFAULT_ALLOW, {})

    def put(self, resource: Resource) -> None:
        """An object is there, like this. Kinds that nobody needs are ignored; one that cannot be read is a problem."""
        self._handle(type(resource), resource, resource.namespace, resource.name, resource.title)

    def drop(self, kind: type[Resource], namespace: str, name: str) -> None:
        """An object is gone."""
        self._handle(kind, None, namespace, name, title(kind.KIND, name, namespace))

    def state(self) -> DesiredState:
        """What this node must look like now. It is read by other threads: nothing in it changes later."""
        self._generation += 1
        self._policies.flush()
        if self._policies.active is not self._active:
            self._active = self._policies.active
            self._sets.need(ref for policy in self._active.values() for ref in policy.refs)
        endpoints: dict[str, LocalEndpoint] = {}
        for key in sorted(self._policies.consulted, reverse=True):  # of two on one interface the lowest name wins
            endpoint = self._local_endpoint(key, self._policies.consulted[key])
            endpoints[endpoint.interface] = endpoint
        return DesiredState(
            self._generation,
            self.node or "",
            endpoints,
            self._active,
            self._sets.members(),
            tuple(self._pools[name] for name in sorted(self._pools)),
            tuple(sorted(set(self._blocks.values()), key=_net_order)),
            self._routing.hosts(),
            self.settings(),
            self.routing(),
        )

    def settings(self) -> Settings:
        return self.settings_of(self.node)

    def settings_of(self, node: str | None) -> Settings:
        """What holds on a node; with None what holds where nothing else is said."""
        found = self._routing.nodes.get(node) if node is not None else None
        return self._settings.settings(node, found.labels if found is not None else {})

    def routing(self) -> Routing | None:
        """None as long as this node has no Node object with an address."""
        return self._routing.routing(self.node) if self.node is not None else None

    def address_of(self, node: str, version: int) -> str | None:
        """A node's own address, for answers to people."""
        ip = router_address(self._routing.nodes.get(node), version)
        return str(ip) if ip is not None else None

    def nodes(self) -> list[str]:
        return sorted(self._routing.nodes)

    def endpoint(self, key: EndpointKey) -> WorkloadEndpoint | None:
        return self._endpoints.get(key)

    def _local_endpoint(self, key: EndpointKey, policy: EndpointPolicy) -> LocalEndpoint:
        """The very same object as last time when nothing has changed."""
        known = self._local.get(key)
        if known is None or known.policy is not policy:
            endpoint = self._endpoints[key]
            ips = endpoint_addresses(endpoint).ips
            nats = floating_ips(endpoint)
            known = LocalEndpoint(key, endpoint.spec.interface_name, ips, endpoint.spec.mac, policy, nats)
            self._local[key] = known
        return known

    def _handle(self, kind: type[Resource], resource: Resource | None, namespace: str, name: str, whose: str) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            return
        try:
            handler(resource, namespace, name)
            self.problems.pop(whose, None)
        except (ConfigError, NotSupported) as error:
            self.problems[whose] = str(error)
            handler(None, namespace, name)

    def _on_endpoint(self, endpoint: WorkloadEndpoint | None, namespace: str, name: str) -> None:
        key, item = (namespace, name), ("wep", namespace, name)
        self._local.pop(key, None)
        if endpoint is None:
            self._endpoints.pop(key, None)
            self._sets.remove_item(item)
            self._policies.remove_endpoint(key)
            return
        spec = endpoint.spec
        local = bool(spec.interface_name) and (self.node is None or spec.node == self.node)
        if local and not INTERFACE_NAME.match(spec.interface_name):
            raise ConfigError(f'"{spec.interface_name}" is not an interface name', "spec.interfaceName")
        self._endpoints[key] = endpoint
        self._sets.set_item(item, endpoint.labels, spec.profiles, endpoint_addresses(endpoint))
        if local:
            self._policies.set_endpoint(key, spec.interface_name, endpoint.labels, spec.profiles)
        else:
            self._policies.remove_endpoint(key)

    def _on_policy(self, kind: type[Resource]) -> Callable[[Any, str, str], None]:
        def handler(resource: Any, namespace: str, name: str) -> None:
            if resource is None:
                self._policies.remove_policy(PolicyKey(POLICY_KINDS[kind], namespace, name))
            else:
                self._policies.set_policy(policy_of(resource))

        return handler

    def _on_tier(self, tier: Tier | None, namespace: str, name: str) -> None:
        settings = None if tier is None else (tier.spec.order, tier.spec.default_action or "Deny")
        self._policies.set_tier(name, settings)

    def _on_profile(self, profile: Profile | None, namespace: str, name: str) -> None:
        if name == DEFAULT_ALLOW:
            return
        if profile is None:
            self._set_profile(name, None, None)
        else:
            self._set_profile(name, profile_of(profile), profile.spec.labels_to_apply)

    def _on_namespace(self, resource: Namespace | None, namespace: str, name: str) -> None:
        self._set_profile(f"kns.{name}", *(namespace_profile(resource) if resource else (None, None)))

    def _on_service_account(self, resource: ServiceAccount | None, namespace: str, name: str) -> None:
        self._set_profile(f"ksa.{namespace}.{name}", *(service_account_profile(resource) if resource else (None, None)))

    def _set_profile(self, name: str, rules: Policy | None, labels: Mapping[str, str] | None) -> None:
        self._policies.set_profile(name, rules, labels)
        self._sets.set_profile_labels(name, labels)

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
            return
        spec = pool.spec
        self._pools[name] = Pool(
            name,
            spec.net,
            spec.nat_outgoing,
            spec.encapsulated,
            spec.disabled,
            not spec.disable_bgp_export,
            set(spec.uses) == {"LoadBalancer"},
        )

    def _on_affinity(self, affinity: BlockAffinity | None, namespace: str, name: str) -> None:
        self._blocks.pop(name, None)
        if affinity is not None and affinity.spec.node == self.node and _owns(affinity.spec):
            self._blocks[name] = parse_net(affinity.spec.cidr)


def _owns(affinity: BlockAffinitySpec) -> bool:
    """Whether an affinity makes its node the owner of the block; a pending one does not."""
    return not affinity.deleted and affinity.state in ("", "confirmed") and affinity.type != "virtual"


def _net_order(net: Net) -> tuple[int, Net]:
    return net.version, net
