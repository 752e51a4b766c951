"""One station of a packet, asked: a pod's policy or a class of a host endpoint, with what fires on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tortie.calc.explain.explanation import Note, Step
from tortie.calc.explain.picture import Picture
from tortie.policy.rules import Direction, Policy, rule_id
from tortie.policy.verdict import (
    Contains,
    HostClass,
    HostPolicy,
    Packet,
    TierPolicies,
    Verdict,
    judge,
    judge_host,
    judge_pending,
    matches,
)


def pod_step(picture: Picture, node: str, interface: str, direction: Direction, packet: Packet) -> Step:
    """What a pod's policy says."""
    policy = picture.endpoint(interface).policy
    verdict = judge(packet, policy, direction, picture.contains)
    profiles = tuple(profile for _, profile in policy.profiles if profile is not None)
    notes = (*_fired(policy.tiers(direction), profiles, packet, direction, picture.contains),)
    pending = judge_pending(packet, policy, direction, picture.contains)
    if (pending.allowed, pending.rule) != (verdict.allowed, verdict.rule):
        would = "allowed" if pending.allowed else "denied"
        notes += (Note(f"pending: would be {would}: {pending.reason}"),)
    return _step(node, direction, verdict, verdict.reason, notes, interface)


def host_step(
    picture: Picture, node: str, host: HostPolicy, why: str, kind: HostClass, direction: Direction, packet: Packet
) -> Step | None:
    """What a class of a host endpoint says; None when it says nothing."""
    if kind != "normal" and not host.tiers(kind, direction):
        return None
    verdict = judge_host(packet, host, kind, direction, picture.contains, picture.settings(node).failsafes)
    if verdict is None:
        return None
    tiers = () if verdict.rule.startswith("failsafe|") else host.tiers(kind, direction)  # failsafes come first
    notes = (*_fired(tiers, (), packet, direction, picture.contains),)
    reason = f"{verdict.reason}; host endpoint {host.name}, {why}"
    return _step(node, f"host {kind} {direction}", verdict, reason, notes)


def _step(
    node: str, hook: str, verdict: Verdict, reason: str, notes: tuple[Note, ...] = (), interface: str = ""
) -> Step:
    return Step(node, hook, verdict.allowed, reason, verdict.tier, verdict.policy, verdict.rule, notes, interface)


def _fired(
    tiers: Iterable[TierPolicies],
    profiles: Iterable[Policy],
    packet: Packet,
    direction: Direction,
    contains: Contains,
) -> Iterator[Note]:
    """What matches before the rule that decides: Log rules, and how tiers are passed."""
    for tier in tiers:
        ended = ""
        for policy in tier.policies:
            notes, ended = _matching(policy, packet, direction, contains)
            yield from notes
            if ended:
                break
        if ended in ("Allow", "Deny") or (not ended and tier.default_action != "Pass"):
            return
        if not ended:
            yield Note(f"tier {tier.name}: no rule matched, and its defaultAction is Pass")
    for profile in profiles:
        notes, ended = _matching(profile, packet, direction, contains)
        yield from (note for note in notes if ended != "Pass")
        if ended in ("Allow", "Deny"):
            return


def _matching(policy: Policy, packet: Packet, direction: Direction, contains: Contains) -> tuple[list[Note], str]:
    """A note for each matching rule that does not decide, and the action that ends the policy: "" when none does."""
    notes: list[Note] = []
    for index, rule in enumerate(policy.rules(direction)):
        if not matches(rule, packet, contains):
            continue
        name = rule_id(policy.key, direction, index)
        if rule.action != "Log":
            if rule.action == "Pass":
                notes.append(Note(f"Pass by rule {index} ({direction}) of {policy.key}: on to the next tier", name))
            return notes, rule.action
        notes.append(Note(f"Log by rule {index} ({direction}) of {policy.key}", name))
    return notes, ""
