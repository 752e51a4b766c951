"""Which policies the staged ones would replace or delete."""

from __future__ import annotations

from collections.abc import Iterable

from tortie.policy.rules import SET_BY, Policy, PolicyKey


class StagedPolicies:
    """The staged policies that there are, by the policy that each would be or would delete."""

    def __init__(self) -> None:
        self._by_target: dict[PolicyKey, Policy] = {}

    def note(self, key: PolicyKey, policy: Policy | None) -> bool:
        """A policy is like this or (None) gone. Whether it matters here: whether it is of a staged kind."""
        if key.kind not in SET_BY:
            return False
        if policy is None:
            self._by_target.pop(key.target, None)
        else:
            self._by_target[key.target] = policy
        return True

    def gone(self, policies: Iterable[Policy]) -> frozenset[PolicyKey]:
        """Those among the policies that would not be there any more if all that is staged were carried out."""
        return frozenset(one.key for one in policies if one.staged is None and one.key in self._by_target)
