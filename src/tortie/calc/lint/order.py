"""What order makes of policies: rules that nothing reaches, policies that change nothing, names that decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from tortie.calc.explain import Party
from tortie.calc.lint.findings import Finding, about
from tortie.calc.lint.subjects import Place, Scene, Subject, by_path
from tortie.calc.simulate.diff import addresses
from tortie.calc.simulate.reach import Reach
from tortie.calc.simulate.services import Cuts
from tortie.policy.lint_cover import covers, implies
from tortie.policy.rules import DIRECTIONS, Direction, Policy, PolicyRule
from tortie.policy.verdict import EndpointPolicy, TierPolicies


@dataclass(frozen=True, slots=True)
class Reason:
    """Why nothing reaches a rule: an earlier one takes it all."""

    subject: Subject
    rule: PolicyRule
    path: str


def order(scene: Scene) -> Iterator[Finding]:
    """Unreachable rules, and policies without effect."""
    for subject in scene.ours:
        reasons = unreachable(scene, subject)
        before = _without_effect(scene, subject, reasons)
        if before is not None:
            text = f"changes nothing: {before.resource.title} comes before it, for the same pods"
            yield about("TL005", subject, "", text, "give it a lower order, or delete it")
            continue
        for places in by_path(subject.places, reasons):
            yield _unreachable(subject, places[0], reasons[places[0].direction, places[0].index])


def _unreachable(subject: Subject, place: Place, reason: Reason) -> Finding:
    other = "" if reason.subject is subject else f" of {reason.subject.resource.title}"
    same = reason.rule.action == place.rule.action
    text = f"no packet reaches this rule: {reason.path}{other} takes all that it matches"
    verdict = "says the same" if same else f"says {reason.rule.action}"
    hint = "delete it" if same else f"the earlier rule {verdict}: put this one before it, or make the earlier narrower"
    return about("TL001", subject, place.path, text, hint)


def unreachable(scene: Scene, subject: Subject) -> dict[tuple[Direction, int], Reason]:
    """The rules that no packet reaches, by direction and number, whatever pods there are."""
    found: dict[tuple[Direction, int], Reason] = {}
    if subject.policy.staged is not None:
        return found
    earlier = [one for one in scene.subjects if _decides_before(one, subject)]
    for place in subject.places:
        own = [one for one in subject.places if one.direction == place.direction and one.index < place.index]
        for other, places in ((subject, own), *((one, one.places) for one in earlier)):
            reason = next((Reason(other, one.rule, one.path) for one in places if _takes(other, one, place)), None)
            if reason is not None:
                found[place.direction, place.index] = reason
                break
    return found


def _takes(other: Subject, earlier: Place, place: Place) -> bool:
    """Whether all that a rule matches has been decided, in this tier, by an earlier one."""
    asked = earlier.direction == place.direction and place.direction in other.policy.directions
    return asked and earlier.rule.action != "Log" and covers(earlier.rule, place.rule)


def _decides_before(first: Subject, second: Subject) -> bool:
    """Whether whatever consults the second policy has consulted the first before, in the same tier."""
    a, b = first.policy, second.policy
    if first is second or a.tier != b.tier or a.staged is not None or a.hook != b.hook or a.sort_key > b.sort_key:
        return False
    if a.key.namespace not in ("", b.key.namespace):
        return False  # it cannot select all that the other does
    if a.selector is None or b.selector is None or (b.on_forward and not a.on_forward):
        return False
    return implies(b.selector, a.selector)


def _without_effect(scene: Scene, subject: Subject, reasons: dict[tuple[Direction, int], Reason]) -> Subject | None:
    """The policy before it that leaves nothing to this one; None when it has an effect."""
    if not subject.places or any((place.direction, place.index) not in reasons for place in subject.places):
        return None
    if any(reason.subject is subject for reason in reasons.values()):
        return None
    isolating = [
        one
        for one in scene.subjects
        if _decides_before(one, subject) and one.policy.directions >= subject.policy.directions
    ]
    return isolating[0] if isolating else None


# --- ties ---------------------------------------------------------------------------------------------------------


def ties(scene: Scene) -> Iterator[Finding]:
    """Policies of one order of which the names say who is asked first, where the answer is another the other way."""
    groups: dict[tuple[str, float | None], list[Subject]] = {}
    for subject in scene.subjects:
        if subject.policy.staged is None and subject.policy.hook == "filter":
            groups.setdefault((subject.policy.tier, subject.policy.order), []).append(subject)
    pairs = [
        tuple(sorted(pair, key=lambda one: one.policy.sort_key))
        for group in groups.values()
        for pair in combinations(group, 2)
        if any(one.written is not None for one in pair) and _may_differ(*pair)
    ]
    common = [(pair, pods) for pair in pairs if (pods := _common(scene, *pair))]
    if not common:
        return
    test = _Swapped(scene)
    for (first, second), pods in common:
        pod = next((pod for pod in pods if test.differs(pod, first.policy, second.policy)), None)
        if pod is not None:
            mine, other = (second, first) if second.written is not None else (first, second)
            order = "no order" if mine.policy.order is None else f"order {mine.policy.order:g}"
            text = (
                f"has {order} as {other.resource.title} has: their names decide which comes first, and {pod} would fare"
            )
            yield about("TL006", mine, "spec.order", f"{text} otherwise", "give one of them another order")


def _may_differ(first: Subject, second: Subject) -> bool:
    """Whether some rules of the two end otherwise, in a direction that both are about."""
    for direction in first.policy.directions & second.policy.directions:
        actions = [
            {rule.action for rule in one.policy.rules(direction) if rule.action != "Log"} for one in (first, second)
        ]
        if all(actions) and len(actions[0] | actions[1]) > 1:
            return True
    return False


def _common(scene: Scene, first: Subject, second: Subject) -> list[str]:
    other = set(scene.selected(second))
    return [name for name in scene.selected(first) if name in other]


class _Swapped:
    """Asks every lot of packets from and to everybody, with two policies the other way round."""

    def __init__(self, scene: Scene) -> None:
        simulation = scene.simulation
        outside = [Party(name, ips) for name, ips in addresses(simulation)]
        self._names = list(simulation.endpoints)
        self._reach = Reach(simulation, [*map(simulation.party, self._names), *outside])
        self._reach.choose(range(len(self._names) + len(outside)))
        cuts = Cuts()
        self._reach.cut(cuts)
        self._services = list(cuts.services())
        self._asked: dict[tuple[object, ...], bool] = {}

    def differs(self, pod: str, first: Policy, second: Policy) -> bool:
        index = self._names.index(pod)
        key = (self._reach.signature(index), first.key, second.key)
        if key not in self._asked:
            self._asked[key] = self._differs(index, first, second)
        return self._asked[key]

    def _differs(self, index: int, first: Policy, second: Policy) -> bool:
        policy = self._reach.policy(index)
        other = _swapped(policy, first, second)
        return any(
            self._reach.differs(index, direction, service, other)
            for direction in DIRECTIONS
            if direction in first.directions & second.directions
            for service in self._services
        )


def _swapped(policy: EndpointPolicy, first: Policy, second: Policy) -> EndpointPolicy:
    exchanged = {first.key: second, second.key: first}

    def tiers(every: Sequence[TierPolicies]) -> tuple[TierPolicies, ...]:
        return tuple(
            replace(tier, policies=tuple(exchanged.get(one.key, one) for one in tier.policies)) for tier in every
        )

    return replace(policy, ingress=tiers(policy.ingress), egress=tiers(policy.egress))
