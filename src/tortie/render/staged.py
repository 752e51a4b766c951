"""Staged policies in the kernel: chains that count and decide nothing.

    fw-<if>, tw-<if>   start of a tier
                       jump to each policy, to a staged one (so-<policy>, si-<policy>) where it would stand
                       end of the tier; where all its policies are staged: count who would be denied, and go on

A packet that comes to a staged policy is one that no policy before it has decided. What the staged policy would do with
it is a mark, so that staged policies behind it do not count it, too: ENDED for the rest of the endpoint's chain,
NEXT_TIER for the rest of the tier. Neither is looked at by anything that decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from tortie.policy.rules import Direction, Policy, PolicyKey, rule_id, staged_end_id
from tortie.policy.verdict import EndpointPolicy, TierPolicies
from tortie.render.match import CHAIN_NAME, PASS, comment, fit, rule_clauses
from tortie.render.ruleset import Chain

ENDED = 0x00080000
"""Mark bit: a staged policy would have allowed or denied the packet. Calico's first bit for scratch."""
NEXT_TIER = 0x00100000
"""Mark bit: a staged policy would have passed the packet to the next tier. Calico's second bit for scratch."""
CLEAR_BOTH = 0xFFFFFFFF & ~(ENDED | NEXT_TIER)
CLEAR_NEXT_TIER = 0xFFFFFFFF & ~NEXT_TIER
UNDECIDED = f"meta mark & {PASS | ENDED | NEXT_TIER:#010x} == 0"

_MARK = {"Allow": ENDED, "Deny": ENDED, "Pass": NEXT_TIER}


def staged_chain(key: PolicyKey, direction: Direction) -> str:
    """The chain of a staged policy: `si-snp/red/web`."""
    return fit(f"{'si' if direction == 'ingress' else 'so'}-{key}", plain=CHAIN_NAME)


def staged_chains(policy: Policy) -> dict[str, Chain]:
    """One chain for each direction that the policy speaks about."""
    return {
        staged_chain(policy.key, direction): Chain(tuple(_counts(policy, direction)))
        for direction in sorted(policy.directions)
    }


def _counts(policy: Policy, direction: Direction) -> Iterator[str]:
    for index, rule in enumerate(policy.rules(direction)):
        name = comment(rule_id(policy.key, direction, index))
        mark = f" meta mark set meta mark | {_MARK[rule.action]:#010x} return" if rule.action in _MARK else ""
        for clauses in rule_clauses(rule):
            yield f"{clauses} counter{mark} {name}".lstrip()


def tiers_with_staged(policy: EndpointPolicy, direction: Direction) -> tuple[TierPolicies, ...]:
    """The tiers that an endpoint's chain goes through, staged policies among the others."""
    staging = policy.staging
    if staging is None or not any(map(has_staged, staging.tiers(direction))):
        return policy.tiers(direction)
    return staging.tiers(direction)


def has_staged(tier: TierPolicies) -> bool:
    return any(policy.staged is not None for policy in tier.policies)


def all_staged(tier: TierPolicies) -> bool:
    """Whether nobody is obeyed in a tier: then it ends nothing."""
    return all(policy.staged is not None for policy in tier.policies)


def first_rule(tiers: tuple[TierPolicies, ...]) -> Iterator[str]:
    """At the beginning of an endpoint's chain: nothing is decided yet."""
    if any(map(has_staged, tiers)):
        yield f"meta mark set meta mark & {CLEAR_BOTH:#010x}"


def tier_rule(tier: TierPolicies) -> Iterator[str]:
    """At the beginning of a tier: who was passed on to it has arrived."""
    if has_staged(tier):
        yield f"meta mark set meta mark & {CLEAR_NEXT_TIER:#010x}"


def jump(policy: Policy, direction: Direction) -> str:
    """At the place of a staged policy."""
    return f"{UNDECIDED} jump {staged_chain(policy.key, direction)}"


def end_rule(tier: TierPolicies, interface: str, direction: Direction) -> str:
    """At the end of a tier that would deny what it has not decided."""
    name = comment(staged_end_id(tier.name, interface, direction))
    return f"{UNDECIDED} counter meta mark set meta mark | {ENDED:#010x} {name}"
