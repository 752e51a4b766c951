"""Which policies are active on this node and which of them each local endpoint consults, in order.

    policies ─► label index ─► matches (policy, endpoint) ─► consulted: EndpointPolicy per endpoint
    profiles ──────┘ (inherited labels)                      active: the policies in any of these

A change marks the endpoints that it touches; `flush` recomputes those and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tortie.calc.state import EndpointKey
from tortie.model.policy import BUILT_IN_TIERS
from tortie.policy.labels import LabelIndex, Match
from tortie.policy.rules import Direction, Policy, PolicyKey
from tortie.policy.verdict import EndpointPolicy, TierPolicies

TierSettings = tuple[float | None, str]
"""Order (None is last) and default action."""

_BUILT_IN: dict[str, TierSettings] = {name: (order, action) for name, order, action in BUILT_IN_TIERS}


class ActivePolicies:
    """Feed it policies, profiles, tiers and local endpoints in any order; then `flush`, and read what is public."""

    def __init__(self) -> None:
        self.consulted: dict[EndpointKey, EndpointPolicy] = {}
        """What every local endpoint consults; unchanged ones are the very same objects as before the last flush."""
        self.active: Mapping[PolicyKey, Policy] = {}
        """Policies and profiles that some local endpoint consults. Replaced when it changes, never changed."""
        self._index: LabelIndex[PolicyKey, EndpointKey] = LabelIndex()
        self._policies: dict[PolicyKey, Policy] = {}
        self._profiles: dict[str, Policy] = {}
        self._tiers: dict[str, TierSettings] = {}
        self._endpoints: dict[EndpointKey, tuple[str, tuple[str, ...]]] = {}
        self._dirty: set[EndpointKey] = set()
        self._uses: dict[PolicyKey, int] = {}

    def set_policy(self, policy: Policy) -> None:
        if self._policies.get(policy.key) == policy or policy.selector is None:
            return
        self._policies[policy.key] = policy
        self._touch(self._index.set_selector(policy.key, policy.selector))
        self._dirty |= self._index.matching_items(policy.key)

    def remove_policy(self, key: PolicyKey) -> None:
        if self._policies.pop(key, None) is not None:
            self._touch(self._index.remove_selector(key))

    def set_profile(self, name: str, rules: Policy | None, labels: Mapping[str, str] | None) -> None:
        """A profile's rules and the labels it gives; None and None when it is gone."""
        if self._profiles.get(name) != rules:
            if rules is None:
                self._profiles.pop(name, None)
            else:
                self._profiles[name] = rules
            self._dirty |= {key for key, (_, profiles) in self._endpoints.items() if name in profiles}
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
        self._endpoints[key] = (interface, tuple(profiles))
        self._index.set_item(key, labels, tuple(profiles))
        self._dirty.add(key)

    def remove_endpoint(self, key: EndpointKey) -> None:
        if self._endpoints.pop(key, None) is not None:
            self._index.remove_item(key)
            self._dirty.add(key)

    def flush(self) -> None:
        """Bring `consulted` and `active` up to date."""
        active = dict(self.active)
        for key in self._dirty:
            old, new = self.consulted.get(key), self._resolve(key)
            if old == new:
                continue
            for policy_key in _policies_of(old):
                self._uses[policy_key] -= 1
            for policy_key, policy in _policies_of(new).items():
                self._uses[policy_key] = self._uses.get(policy_key, 0) + 1
                active[policy_key] = policy
            if new is not None:
                self.consulted[key] = new
            else:
                del self.consulted[key]
        self._dirty.clear()
        for policy_key in [unused for unused, uses in self._uses.items() if not uses]:
            del self._uses[policy_key], active[policy_key]
        if active != self.active:
            self.active = active

    def _touch(self, matches: Iterable[Match[PolicyKey, EndpointKey]]) -> None:
        self._dirty.update(match.item_id for match in matches)

    def _resolve(self, key: EndpointKey) -> EndpointPolicy | None:
        if key not in self._endpoints:
            return None
        interface, profiles = self._endpoints[key]
        policies = [self._policies[policy] for policy in self._index.matching_selectors(key)]
        return EndpointPolicy(
            interface,
            self._in_order(policies, "ingress"),
            self._in_order(policies, "egress"),
            tuple((name, self._profiles.get(name)) for name in profiles),
        )

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


def _policies_of(endpoint: EndpointPolicy | None) -> dict[PolicyKey, Policy]:
    """The policies and profiles that an endpoint consults."""
    if endpoint is None:
        return {}
    found = {policy.key: policy for tier in (*endpoint.ingress, *endpoint.egress) for policy in tier.policies}
    found.update((profile.key, profile) for _, profile in endpoint.profiles if profile is not None)
    return found
