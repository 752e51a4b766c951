"""Which policies are active on this node and which of them each local endpoint consults, in order.

    policies ─► label index ─► matches (policy, endpoint) ─► consulted: EndpointPolicy per endpoint
    profiles ──────┘ (inherited labels)                      hosts: HostPolicy per host endpoint
                                                             active: the policies in any of these

A change marks the endpoints that it touches; `flush` recomputes those and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tortie.base.addr import IP
from tortie.calc.staging import StagedPolicies
from tortie.calc.state import EndpointKey
from tortie.model.policy import BUILT_IN_TIERS
from tortie.policy.labels import LabelIndex, Match
from tortie.policy.rules import Direction, Policy, PolicyKey
from tortie.policy.verdict import EndpointPolicy, HostPolicy, HostTiers, Staging, TierPolicies

TierSettings = tuple[float | None, str]
"""Order (None is last) and default action."""

_BUILT_IN: dict[str, TierSettings] = {name: (order, action) for name, order, action in BUILT_IN_TIERS}


@dataclass(frozen=True, slots=True)
class _Workload:
    """What there is to know of a pod's endpoint."""

    interface: str
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Host:
    """What there is to know of a host endpoint."""

    node: str
    interface: str
    ips: tuple[IP, ...]
    profiles: tuple[str, ...]


def _host_key(name: str) -> EndpointKey:
    """Host endpoints are in no namespace; pods always are."""
    return "", name


class ActivePolicies:
    """Feed it policies, profiles, tiers and local endpoints in any order; then `flush`, and read what is public."""

    def __init__(self) -> None:
        self.consulted: dict[EndpointKey, EndpointPolicy] = {}
        """What every local endpoint consults; unchanged ones are the very same objects as before the last flush."""
        self.hosts: Mapping[str, HostPolicy] = {}
        """What every local host endpoint consults, by name. Replaced when it changes, never changed."""
        self.active: Mapping[PolicyKey, Policy] = {}
        """Policies and profiles that some local endpoint consults, be they staged, and those that are to be kept ready
        everywhere. Replaced when it changes, never changed."""
        self._index: LabelIndex[PolicyKey, EndpointKey] = LabelIndex()
        self._policies: dict[PolicyKey, Policy] = {}
        self._profiles: dict[str, Policy] = {}
        self._tiers: dict[str, TierSettings] = {}
        self._endpoints: dict[EndpointKey, _Workload | _Host] = {}
        self._dirty: set[EndpointKey] = set()
        self._uses: dict[PolicyKey, int] = {}
        self._staged = StagedPolicies()
        self._everywhere: dict[PolicyKey, Policy] = {}

    def set_policy(self, policy: Policy) -> None:
        old = self._policies.get(policy.key)
        if old == policy or policy.selector is None:
            return
        self._policies[policy.key] = policy
        self._note(policy.key, old, policy)
        self._touch(self._index.set_selector(policy.key, policy.selector))
        self._dirty |= self._index.matching_items(policy.key)

    def remove_policy(self, key: PolicyKey) -> None:
        old = self._policies.pop(key, None)
        if old is not None:
            self._note(key, old, None)
            self._touch(self._index.remove_selector(key))

    def _note(self, key: PolicyKey, old: Policy | None, new: Policy | None) -> None:
        """What a policy is beside what it selects: staged for another, used everywhere."""
        self._uses[key] = self._uses.get(key, 0) + bool(new and new.everywhere) - bool(old and old.everywhere)
        self._everywhere.pop(key, None)
        if new is not None and new.everywhere:
            self._everywhere[key] = new
        if self._staged.note(key, new):
            self._dirty |= self._index.matching_items(key.target)

    def set_profile(self, name: str, rules: Policy | None, labels: Mapping[str, str] | None) -> None:
        """A profile's rules and the labels it gives; None and None when it is gone."""
        if self._profiles.get(name) != rules:
            if rules is None:
                self._profiles.pop(name, None)
            else:
                self._profiles[name] = rules
            self._dirty |= {key for key, endpoint in self._endpoints.items() if name in endpoint.profiles}
        self._touch(self._index.remove_parent(name) if labels is None else self._index.set_parent(name, labels))

    def set_tier(self, name: str, settings: TierSettings | None) -> None:
        if settings is None:
            self._tiers.pop(name, None)
        else:
            self._tiers[name] = settings
        for key, policy in self._policies.items():
            if policy.tier == name:
                self._dirty |= self._index.matching_items(key)

    def set_endpoint(
        self, key: EndpointKey, interface: str, labels: Mapping[str, str], profiles: Iterable[str]
    ) -> None:
        self._set(key, _Workload(interface, tuple(profiles)), labels)

    def set_host(
        self,
        name: str,
        node: str,
        interface: str,
        ips: tuple[IP, ...],
        labels: Mapping[str, str],
        profiles: Iterable[str],
    ) -> None:
        self._set(_host_key(name), _Host(node, interface, ips, tuple(profiles)), labels)

    def remove_host(self, name: str) -> None:
        self.remove_endpoint(_host_key(name))

    def _set(self, key: EndpointKey, endpoint: _Workload | _Host, labels: Mapping[str, str]) -> None:
        self._endpoints[key] = endpoint
        self._index.set_item(key, labels, endpoint.profiles)
        self._dirty.add(key)

    def remove_endpoint(self, key: EndpointKey) -> None:
        if self._endpoints.pop(key, None) is not None:
            self._index.remove_item(key)
            self._dirty.add(key)

    def flush(self) -> None:
        """Bring `consulted`, `hosts` and `active` up to date."""
        active, hosts = dict(self.active), dict(self.hosts)
        for key in self._dirty:
            old, new = self._known(key), self._resolve(key)
            if old == new:
                continue
            for policy_key in _policies_of(old):
                self._uses[policy_key] -= 1
            for policy_key, policy in _policies_of(new).items():
                self._uses[policy_key] = self._uses.get(policy_key, 0) + 1
                active[policy_key] = policy
            if isinstance(new, HostPolicy):
                hosts[new.name] = new
            elif new is not None:
                self.consulted[key] = new
            elif isinstance(old, HostPolicy):
                del hosts[old.name]
            else:
                del self.consulted[key]
        self._dirty.clear()
        active |= self._everywhere
        for policy_key in [unused for unused, uses in self._uses.items() if not uses]:
            del self._uses[policy_key]
            active.pop(policy_key, None)
        if active != self.active:
            self.active = active
        if hosts != self.hosts:
            self.hosts = hosts

    def _known(self, key: EndpointKey) -> EndpointPolicy | HostPolicy | None:
        namespace, name = key
        return self.consulted.get(key) if namespace else self.hosts.get(name)

    def _touch(self, matches: Iterable[Match[PolicyKey, EndpointKey]]) -> None:
        self._dirty.update(match.item_id for match in matches)

    def _resolve(self, key: EndpointKey) -> EndpointPolicy | HostPolicy | None:
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return None
        selecting = [self._policies[policy] for policy in self._index.matching_selectors(key)]
        policies = [policy for policy in selecting if policy.staged is None]
        profiles = tuple((name, self._profiles.get(name)) for name in endpoint.profiles)
        ordinary = [policy for policy in policies if policy.hook == "filter"]
        if isinstance(endpoint, _Workload):
            ingress, egress = self._in_order(ordinary, "ingress"), self._in_order(ordinary, "egress")
            return EndpointPolicy(endpoint.interface, ingress, egress, profiles, self._staging(selecting))
        return HostPolicy(
            key[1],
            endpoint.interface,
            endpoint.ips,
            endpoint.node,
            untracked=self._host_tiers(policy for policy in policies if policy.hook == "untracked"),
            pre_dnat=self._host_tiers(policy for policy in policies if policy.hook == "preDNAT"),
            forward=self._host_tiers(policy for policy in ordinary if policy.on_forward),
            normal=self._host_tiers(ordinary),
            profiles=profiles,
        )

    def _host_tiers(self, policies: Iterable[Policy]) -> HostTiers:
        found = list(policies)
        return HostTiers(self._in_order(found, "ingress"), self._in_order(found, "egress"))

    def _staging(self, selecting: Iterable[Policy]) -> Staging | None:
        """What would be consulted; None when that is what is."""
        policies = [policy for policy in selecting if policy.hook == "filter" and policy.staged != "Delete"]
        gone = self._staged.gone(policies)
        if not gone and all(policy.staged is None for policy in policies):
            return None
        return Staging(self._in_order(policies, "ingress"), self._in_order(policies, "egress"), gone)

    def _in_order(self, policies: Iterable[Policy], direction: Direction) -> tuple[TierPolicies, ...]:
        tiers: dict[str, list[Policy]] = {}
        for policy in policies:
            if direction in policy.directions:
                tiers.setdefault(policy.tier, []).append(policy)
        return tuple(
            TierPolicies(name, self._settings(name)[1], tuple(sorted(tiers[name], key=lambda policy: policy.sort_key)))
            for name in sorted(tiers, key=self._tier_sort_key)
        )

    def _settings(self, tier: str) -> TierSettings:
        """A tier that does not exist is enforced all the same, last, and denies."""
        return self._tiers.get(tier) or _BUILT_IN.get(tier) or (None, "Deny")

    def _tier_sort_key(self, tier: str) -> tuple[bool, bool, float, str]:
        missing = tier not in self._tiers and tier not in _BUILT_IN
        order = self._settings(tier)[0]
        return missing, order is None, order or 0.0, tier


def _tiers_of(endpoint: EndpointPolicy) -> Iterable[TierPolicies]:
    staging = endpoint.staging or Staging()
    return (*endpoint.ingress, *endpoint.egress, *staging.ingress, *staging.egress)


def _policies_of(endpoint: EndpointPolicy | HostPolicy | None) -> dict[PolicyKey, Policy]:
    """The policies and profiles that an endpoint consults."""
    if endpoint is None:
        return {}
    tiers = endpoint.all_tiers if isinstance(endpoint, HostPolicy) else _tiers_of(endpoint)
    found = {policy.key: policy for tier in tiers for policy in tier.policies}
    found.update((profile.key, profile) for _, profile in endpoint.profiles if profile is not None)
    return found
